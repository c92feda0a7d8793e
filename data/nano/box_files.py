"""Box files of the held-out pictures with a share of the digits found, or another number of boxes.

The order of the boxes of a picture is drawn once, so a file with a smaller share or number has a part of the boxes of
a larger one. Boxes that are no digit's stay where the share changes; where more boxes are wanted than there are, boxes
at random places are added.

Examples:
    python data/nano/box_files.py --recall 0 50 100 --boxes 1 4 16
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]
import scenes  # noqa: E402

from mg_llava.evaluation.scoring.box_replies import overlap  # noqa: E402

GENERATED = HERE / "generated"
FOUND = 0.5
"""Overlap from which a box has found a digit."""
Record = dict[str, Any]
Ranked = Sequence[tuple[float, list[float]]]
"""Boxes, each after a number between 0 and 1 where it finds a digit, else after -1."""


def rank(found: Mapping[str, Record], exact: Mapping[str, Record], seed: int) -> tuple[dict[str, Ranked], int]:
    """Boxes of each picture, those that find a digit in random order and the others before them; the number of digits.

    Args:
        found: Boxes by picture.
        exact: The true ones by picture; the label of a digit is a number.
        seed: Of the order.
    """
    ranked, digits = {}, 0
    rng = np.random.default_rng(seed)
    for picture, record in found.items():
        true = zip(exact[picture]["boxes"], exact[picture]["labels"], strict=True)
        marks = [box for box, label in true if label.isdigit()]
        digits += len(marks)
        numbers = rng.random(len(record["boxes"])).tolist()
        hits = [max((overlap(box, mark) for mark in marks), default=0) >= FOUND for box in record["boxes"]]
        ranked[picture] = [
            (number if hit else -1.0, box) for number, hit, box in zip(numbers, hits, record["boxes"], strict=True)
        ]
    return ranked, digits


def with_recall(ranked: Mapping[str, Ranked], digits: int, share: float) -> dict[str, list[list[float]]]:
    """As many of the boxes that find a digit that this share of all digits is found, or all of them.

    Args:
        ranked: What ``rank`` gives.
        digits: How many there are.
        share: Of digits to be found, from 0 to 1.
    """
    numbers = sorted(number for boxes in ranked.values() for number, _ in boxes if number >= 0)
    wanted = min(round(share * digits), len(numbers))
    limit = numbers[wanted - 1] if wanted else -1.0
    return {picture: [box for number, box in boxes if number <= limit] for picture, boxes in ranked.items()}


def with_number(found: Mapping[str, Record], number: int, seed: int) -> dict[str, list[list[float]]]:
    """So many boxes for each picture: some of its own, or all of them and others at random places.

    Args:
        found: Boxes by picture.
        number: Of boxes.
        seed: Of the choice and the places.
    """
    chosen = {}
    for index, (picture, record) in enumerate(found.items()):
        rng = np.random.default_rng((seed, index))
        boxes = [record["boxes"][place] for place in rng.permutation(len(record["boxes"]))[:number]]
        for _ in range(number - len(boxes)):
            width, height = rng.uniform(8, 24, 2)
            left, top = rng.uniform(0, scenes.CANVAS - width), rng.uniform(0, scenes.CANVAS - height)
            boxes.append([round(float(side), 2) for side in (left, top, left + width, top + height)])
        chosen[picture] = boxes
    return chosen


def write(path: Path, chosen: Mapping[str, list[list[float]]], records: Sequence[Record]) -> None:
    """Write a box file: for each record the boxes of its picture."""
    lines = []
    for record in records:
        boxes = chosen[picture_of(record["id"])]
        lines.append(
            {"id": record["id"], "boxes": boxes, "scores": [1.0] * len(boxes), "labels": ["mark"] * len(boxes)}
        )
    path.write_text(json.dumps(lines))


def picture_of(identifier: str) -> str:
    """Id of the picture of a record: ``heldout-00003`` of ``heldout-00003-count``."""
    return "-".join(identifier.split("-")[:2])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recall", nargs="*", type=int, default=[], help="percent of digits that are found")
    parser.add_argument("--boxes", nargs="*", type=int, default=[], help="boxes of each picture")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=GENERATED, help="folder with the data (default: %(default)s)")
    arguments = parser.parse_args()
    records = json.loads((arguments.out / "heldout_boxes.json").read_text())
    exact = {one["id"]: one for one in json.loads((arguments.out / "heldout_exact_boxes.json").read_text())}
    found = {record["id"]: record for record in records if picture_of(record["id"]) == record["id"]}
    ranked, digits = rank(found, exact, arguments.seed)
    for percent in arguments.recall:
        chosen = with_recall(ranked, digits, percent / 100)
        write(arguments.out / f"heldout_boxes_recall{percent}.json", chosen, records)
    for number in arguments.boxes:
        chosen = with_number(found, number, arguments.seed)
        write(arguments.out / f"heldout_boxes_number{number}.json", chosen, records)


if __name__ == "__main__":
    main()
