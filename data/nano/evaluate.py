"""Evaluate a checkpoint on the held-out questions of the miniature: by kind, and in MMBench's and POPE's formats.

The same as ``tools/evaluate.py``, with the miniature's benchmarks, boxes and pictures.

Examples:
    python data/nano/evaluate.py configs/mg_llava_nano_instruct.py --checkpoint work_dirs/.../iter_250.pth --out result
    python data/nano/evaluate.py configs/mg_llava_nano_instruct.py --checkpoint ... --boxes none,detected,oracle
    python data/nano/evaluate.py configs/mg_llava_nano_instruct.py --checkpoint ... --benchmarks nano
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]
import benchmarks  # noqa: E402
import language  # noqa: E402

from mg_llava.evaluation import command  # noqa: E402

CHANCE = {**language.CHANCE, "all": sum(language.CHANCE.values()) / len(language.CHANCE)}
"""Accuracy of guessing, by kind; every kind is asked equally often."""


def format_table(columns: Mapping[str, Mapping[str, Any]]) -> str:
    """Accuracy in percent by kind of question, one column for each result, beside chance.

    Args:
        columns: The ``benchmarks`` of ``results.json``, by title.
    """
    found = {title: _kinds(result) for title, result in columns.items()}
    kinds = list(next(iter(found.values())))
    rows = [[kind, *(f"{100 * each[kind]:.1f}" for each in (CHANCE, *found.values()))] for kind in kinds]
    return _align([["question kind", "chance", *columns], *rows], 1, last=True)


def format_benchmarks(columns: Mapping[str, Mapping[str, Any]]) -> str:
    """Headlines of the benchmarks in public formats, in percent, one column for each result."""
    rows = [["benchmark", "rule, metric", *columns]]
    for name in benchmarks.NAMES[1:]:
        heads = [result[name]["headline"] for result in columns.values()]
        cells = ["-" if head["value"] is None else f"{100 * head['value']:.1f}" for head in heads]
        rows.append([name, f"{heads[0]['rule']}, {heads[0]['metric']}", *cells])
    return _align(rows, 2)


def _kinds(result: Mapping[str, Any]) -> dict[str, float]:
    """Accuracy by kind and of all; of all alone where only a part of the questions was asked."""
    metrics = result["nano"]["score"]["rules"]["exact"]["metrics"]
    overall = metrics["accuracy"] if "accuracy" in metrics else metrics["mean_score"]
    return {**metrics.get("kinds", {}), "all": overall}


def _align(rows: Sequence[Sequence[str]], left: int, last: bool = False) -> str:
    """A table with a rule below its first row, and above its last; the first ``left`` columns are text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [_line(row, widths, left) for row in rows]
    lines.insert(1, "-" * len(lines[0]))
    if last:
        lines.insert(-1, lines[1])
    return "\n".join(lines)


def _line(row: Iterable[str], widths: Iterable[int], left: int) -> str:
    cells = zip(row, widths, strict=True)
    return "  ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(cells))


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="config", help="config of the training")
    names = list(benchmarks.NAMES)
    parser.add_argument("--benchmarks", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    command.add_arguments(parser)
    boxes = benchmarks.GENERATED / "heldout_boxes.json"
    parser.set_defaults(
        data=benchmarks.GENERATED, box_file=boxes, oracle_boxes=boxes.with_name("heldout_exact_boxes.json")
    )
    arguments = parser.parse_args()
    if not arguments.checkpoint:
        parser.error("--checkpoint is needed")
    status = command.run(arguments, arguments.benchmarks)
    results = arguments.out / "results.json" if arguments.out else None
    if status == 0 and results is not None and names[0] in arguments.benchmarks:
        print(f"\n{format_table({'accuracy, %': json.loads(results.read_text())['benchmarks']})}")
    return status


if __name__ == "__main__":
    sys.exit(main())
