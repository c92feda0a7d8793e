r"""Score predictions, made by anything, with a benchmark's official rules and the usual tool kits' side by side.

Needs no model, GPU or torch. The result goes to --out:
  {"benchmark", "n", "n_missing", "n_unknown", "rules": {RULE: {"metrics": {...}, "per_sample": [...]}}}
and "n_duplicates", "warnings". --submission takes what a test server wants where the data has no answers. Figures are
shares of 1 without rounding (MME's scores are points); where the official script rounds, NAME_rounded is the figure as
it prints it.

Rules: official (the benchmark's script, or LLaVA's), reference (MG-LLaVA's), vlmevalkit (exact matching of June 2024),
xtuner and lmms_eval. Metrics of multiple choice: accuracy (Average of reference, Overall of vlmevalkit), each category
and l2-category by its name, vanilla (base rows alone), circular (where the table has circular copies; then accuracy is
circular too); vanilla/CATEGORY; SPLIT/NAME for several splits. POPE: SPLIT/f1, accuracy, precision, recall, yes_ratio
and, without SPLIT, their means. MME: TASK, TASK/acc, TASK/acc_plus, ..., perception, cognition. SEED: total, image,
video and each type of question. ScienceQA: accuracy, IMG-Accuracy. HallusionBench: aAcc, fAcc, qAcc and
CATEGORY/aAcc. MMVP: pair_accuracy. MMStar (official): final score, CATEGORY, CATEGORY(l2_category).

Examples:
    mg-llava score mmbench --data MMBench_DEV_EN.tsv --predictions replies.jsonl --out result.json
    mg-llava score pope --data POPE/coco --predictions replies.jsonl --out result.json
    mg-llava score mmbench --data MMBench_TEST_EN.tsv --predictions replies.jsonl --out result.json \
        --submission mmbench_test.xlsx
    mg-llava score vqav2_submission --data FULL.jsonl --predictions replies.jsonl --out upload.json

Exit status: 0 scored (warnings included), 1 nothing could be scored, 2 wrong arguments, unreadable or malformed files.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    from mg_llava.evaluation.benchmark import BENCHMARKS
    from mg_llava.evaluation.score import score_predictions
    from mg_llava.evaluation.scoring.files import read_predictions
    from mg_llava.evaluation.submission import write_submission
    from mg_llava.work.atomic import write_json

    listing = "\n".join(f"  {name:18} {kind.form}" for name, kind in sorted(BENCHMARKS.scorers.items()))
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"Benchmarks, their --data and prediction lines (a split behind the name is allowed):\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("benchmark", help="name of the benchmark; see below")
    parser.add_argument("--data", type=Path, action="append", required=True, help="file or folder; repeat for several")
    parser.add_argument("--predictions", type=Path, required=True, help="JSON lines, JSON, TSV, CSV or xlsx")
    parser.add_argument("--out", type=Path, required=True, help="where the result goes, as JSON")
    parser.add_argument("--submission", type=Path, help="write the test server's file here (.json, .tsv or .xlsx)")
    parser.add_argument("--split", help="split of scienceqa (default: test)")
    parser.add_argument("--box-format", help="what fractions of refcoco are of: original (default) or padded picture")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="option of the scorer")
    args = parser.parse_args(arguments)
    options: dict[str, Any] = dict(map(parse_option, args.option))
    options |= {name: value for name in ("split", "box_format") if (value := getattr(args, name)) is not None}
    try:
        result = score_predictions(args.benchmark, args.data, read_predictions(args.predictions), **options)
        submission = result.get("submission")
        only_submission = args.benchmark.lower().endswith("_submission")
        content = submission if only_submission else {k: v for k, v in result.items() if k != "submission"}
        write_json(args.out, content)
        if args.submission is not None:
            write_submission(args.submission, submission)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print_result(result)
    if not result["rules"] and submission is None:
        print("error: nothing was scored; the warnings say why", file=sys.stderr)
        return 1
    return 0


def parse_option(text: str) -> tuple[str, Any]:
    """``NAME=VALUE`` with a JSON value, or any other text as it is."""
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def print_result(result: dict[str, Any]) -> None:
    """Counts, warnings and metrics, for people."""
    counts = ", ".join(f"{name} {result[name]}" for name in ("n", "n_missing", "n_unknown", "n_duplicates"))
    print(f"{result['benchmark']}: {counts}", flush=True)
    for warning in result["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    for rule, content in result["rules"].items():
        print(f"\n{rule}")
        for name, value in content["metrics"].items():
            print(f"  {name:45} {value:.4f}" if isinstance(value, float) else f"  {name:45} {value}")
