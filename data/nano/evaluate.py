"""Evaluate a checkpoint on the held-out questions of the miniature: by kind, and in MMBench's and POPE's formats.

All of it goes through the runner of ``mg_llava.evaluation``, whose replies and scores are kept beside ``--out``.

Examples:
    python data/nano/evaluate.py configs/mg_llava_nano_instruct.py --checkpoint work_dirs/.../iter_250.pth
    python data/nano/evaluate.py configs/mg_llava_nano_instruct.py --checkpoint ... --boxes none --out result.json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
GENERATED = HERE / "generated"
BOX_FILES = {"proposals": "heldout_boxes.json", "exact": "heldout_exact_boxes.json", "none": None}
KINDS = "nano"
"""Name of the benchmark of all kinds."""
Result = dict[str, Any]


def load_questions(data: Path = GENERATED, limit: int | None = None) -> list[dict[str, str]]:
    """The held-out questions; ``limit`` keeps those of the first so many pictures.

    Raises:
        FileNotFoundError: If the data has not been made.
    """
    path = data / "heldout.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; run `python data/nano/make_data.py` first")
    questions = [json.loads(line) for line in path.read_text().splitlines()]
    pictures = list(dict.fromkeys(question["picture"] for question in questions))[:limit]
    return [question for question in questions if question["picture"] in set(pictures)]


def load_chance(data: Path = GENERATED) -> dict[str, float]:
    """Accuracy of guessing, by kind."""
    return json.loads((data / "meta.json").read_text())["chance"]


def score(questions: Sequence[Mapping[str, str]], answers: Iterable[str], chance: Mapping[str, float]) -> Result:
    """Exact match of the stripped text.

    Returns:
        ``kinds``: accuracy, number of right answers and of questions, and chance of each kind; ``overall``: the same
        over all questions; ``answers``: every question with what was answered.
    """
    rows = [
        {**question, "predicted": text, "right": text.strip() == question["answer"].strip()}
        for question, text in zip(questions, answers, strict=True)
    ]
    kinds = {}
    for kind in dict.fromkeys(question["kind"] for question in questions):
        kinds[kind] = _accuracy([row for row in rows if row["kind"] == kind], chance)
    return {"kinds": kinds, "overall": _accuracy(rows, chance), "answers": rows}


def _accuracy(rows: Sequence[Mapping[str, Any]], chance: Mapping[str, float]) -> dict[str, float]:
    right = sum(row["right"] for row in rows)
    guessed = sum(chance[row["kind"]] for row in rows)
    count = len(rows)
    return {"accuracy": right / count, "right": right, "count": count, "chance": guessed / count}


def format_table(columns: Mapping[str, Result]) -> str:
    """Accuracy in percent by kind, one column for each result, beside chance.

    Args:
        columns: Results of :func:`score` on the same questions, by title.
    """
    first = next(iter(columns.values()))
    rows = [["question kind", "chance", *columns]]
    for kind in (*first["kinds"], "all"):
        cells = [result["overall"] if kind == "all" else result["kinds"][kind] for result in columns.values()]
        rows.append([kind, *(f"{100 * value:.1f}" for value in (cells[0]["chance"], *(c["accuracy"] for c in cells)))])
    *lines, last = _align(rows).splitlines()
    return "\n".join([*lines, lines[1], last])


def _align(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table with a rule below its first row; the first ``left`` columns are text, the others numbers."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def evaluate(
    predictor: Any,
    boxes: str = "proposals",
    limit: int | None = None,
    batch_size: int = 32,
    out: Path | None = None,
    identity: Mapping[str, Any] | None = None,
) -> Result:
    """Let a predictor answer the held-out questions, all benchmarks of the miniature.

    Args:
        predictor: A ``mg_llava.inference.Predictor``.
        boxes: ``proposals`` (what the offline proposal step found), ``exact`` or ``none``.
        limit: Number of pictures; None for all.
        batch_size: Questions at a time.
        out: Folder for replies and scores; None for none that stays.
        identity: What tells the model from others; None for a checksum of its weights.

    Returns:
        What :func:`score` gives, and ``benchmarks``: headline, counts and metrics of each.
    """
    from mg_llava.evaluation.box_source import build_box_source
    from mg_llava.evaluation.runner import Asking, run_benchmark

    with tempfile.TemporaryDirectory() as folder:
        runs = {}
        for benchmark, asked in load_benchmarks(limit):
            file = BOX_FILES[boxes]
            source = build_box_source("detected", GENERATED / file) if file else None
            runs[benchmark.name] = run_benchmark(
                benchmark,
                predictor,
                out or folder,
                source,
                Asking(batch_size, asked, fresh=True),
                model_identity=identity,
                progress=lambda done, total: print(f"{done}/{total}", flush=True),
            )
    questions = load_questions(limit=limit)
    texts = {sample["id"]: sample["text"] for sample in runs[KINDS].samples}
    result = score(questions, [texts.get(question["id"], "") for question in questions], load_chance())
    keep = ("headline", "counts", "boxes", "score", "generation", "seconds")
    return result | {
        "benchmarks": {name: {k: v for k, v in run.to_dict().items() if k in keep} for name, run in runs.items()}
    }


def load_benchmarks(limit: int | None = None) -> list[tuple[Any, int | None]]:
    """The benchmarks, each with the number of questions that ``limit`` pictures have.

    Raises:
        FileNotFoundError: If the data has not been made.
    """
    import benchmark_files
    import benchmarks

    load_questions(limit=1)
    if not benchmark_files.are_there(GENERATED):
        benchmark_files.write_benchmark_files(GENERATED)
    images = GENERATED / "images"
    made = [
        (benchmarks.NanoKinds(GENERATED / "heldout.jsonl", images, KINDS), len(load_questions(limit=limit))),
        (benchmarks.NanoMMBench(GENERATED / benchmark_files.MMBENCH_FILE, images, "mmbench_nano"), limit),
        (benchmarks.NanoPOPE(GENERATED / benchmark_files.POPE_FOLDER, images, "pope_nano"), limit and 2 * limit),
    ]
    return [(benchmark, None if limit is None else asked) for benchmark, asked in made]


def format_benchmarks(columns: Mapping[str, Result]) -> str:
    """Headlines of the benchmarks in public formats, in percent, one column for each result."""
    first = next(iter(columns.values()))
    rows = [["benchmark", "rule, metric", *columns]]
    for name, entry in first["benchmarks"].items():
        if name == KINDS:
            continue
        head = entry["headline"]
        values = [result["benchmarks"][name]["headline"]["value"] for result in columns.values()]
        cells = ["-" if value is None else f"{100 * value:.1f}" for value in values]
        rows.append([name, f"{head['rule']}, {head['metric']}", *cells])
    return _align(rows, left=2)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="config of the training")
    parser.add_argument("--checkpoint", type=Path, required=True, help="what the training wrote")
    parser.add_argument("--boxes", choices=sorted(BOX_FILES), default="proposals", help="default: %(default)s")
    parser.add_argument("--limit", type=int, help="number of held-out pictures (default: all)")
    parser.add_argument("--batch-size", type=int, default=32, help="questions at a time (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="default: %(default)s")
    parser.add_argument("--out", type=Path, help="write the result, with every answer, to this JSON file")
    arguments = parser.parse_args()
    config, checkpoint, out = (
        path and path.resolve() for path in (arguments.config, arguments.checkpoint, arguments.out)
    )
    os.chdir(ROOT)  # the configs' paths are relative to it
    sys.path[:0] = [str(ROOT), str(HERE)]
    from mg_llava.evaluation.identity import hash_checkpoint
    from mg_llava.inference import Predictor

    start = time.monotonic()
    try:
        predictor = Predictor.from_config(config, checkpoint, arguments.device, max_new_tokens=24)
        identity = {"config": config.name, "checkpoint_hash": hash_checkpoint(checkpoint)}
        folder = out and out.with_suffix("")
        result = evaluate(predictor, arguments.boxes, arguments.limit, arguments.batch_size, folder, identity)
    except (OSError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    result |= {
        "config": str(arguments.config),
        "checkpoint": str(arguments.checkpoint),
        "boxes": arguments.boxes,
        "seconds": round(time.monotonic() - start, 1),
    }
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n")
    print(format_table({"accuracy, %": result}))
    print(f"\n{format_benchmarks({'%': result})}")


if __name__ == "__main__":
    main()
