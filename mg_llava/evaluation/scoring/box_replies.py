"""Boxes in replies as the published scripts read them, and their overlap as those compute it; all boxes are xyxy."""

from __future__ import annotations

import re
from collections.abc import Sequence

Box = tuple[float, float, float, float]
_NUMBER = r"\s*(\d*\.?\d+)\s*"
_FOUR_NUMBERS = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]")
_FIRST_BRACKET = re.compile(r"\[(.*?)\]")
_ONLY_NUMBERS = re.compile(r"[\d\s,.]*")
_SIGNED = r"\s*(-?\d+(?:\.\d+)?)"
_LMMS_EVAL = re.compile(rf"\[{_SIGNED},{_SIGNED},{_SIGNED},{_SIGNED}\s*\]")
_MAX_DIGITS = 4000  # Python refuses to read longer integers
_SCALE = 1000.0


def is_in_brackets(text: str) -> bool:
    """Whether a reply has four numbers in brackets, LLaVA's form."""
    return bool(_LMMS_EVAL.search(text) or _FOUR_NUMBERS.search(text))


def parse_xtuner(text: str) -> tuple[int, ...] | None:
    """The numbers of a reply, if they are exactly four; signs and everything else are ignored."""
    numbers = re.findall(r"\d+", text)
    if len(numbers) != 4 or max(map(len, numbers)) > _MAX_DIGITS:
        return None
    return tuple(int(number) for number in numbers)


def parse_llava_hr(text: str) -> Box | None:
    """The first bracket of a reply, if it holds four unsigned numbers."""
    bracket = _FIRST_BRACKET.search(text) if _FOUR_NUMBERS.search(text) else None
    if bracket is None or not _ONLY_NUMBERS.fullmatch(bracket.group(1)):
        return None
    parts = [part.strip() for part in bracket.group(1).split(",")]
    if parts[-1] == "":
        parts.pop()  # a comma behind the last number is legal
    try:
        x1, y1, x2, y2 = map(float, parts)
    except ValueError:
        return None
    return x1, y1, x2, y2


def parse_lmms_eval(text: str) -> Box | None:
    """The first four numbers in brackets, signs allowed, no space before commas."""
    match = _LMMS_EVAL.search(text)
    if match is None:
        return None
    x1, y1, x2, y2 = map(float, match.groups())
    return x1, y1, x2, y2


def overlap(first: Sequence[float], second: Sequence[float], border: float = 0) -> float:
    """Intersection over union of xyxy boxes; ``border`` is added to each side's length. 0 where there is no area."""
    width = min(first[2], second[2]) - max(first[0], second[0]) + border
    height = min(first[3], second[3]) - max(first[1], second[1]) + border
    intersection = max(0, width) * max(0, height)
    areas = [(box[2] - box[0] + border) * (box[3] - box[1] + border) for box in (first, second)]
    union = areas[0] + areas[1] - intersection
    try:
        return float(intersection / union) if union else 0.0
    except OverflowError:
        return 0.0


def overlap_single_precision(first: Box, second: Box) -> float:
    """``overlap`` of boxes times 1000 in float32, as the script has it: decides replies right at the threshold."""
    import numpy as np  # other benchmarks are scored without it

    with np.errstate(all="ignore"):
        one, two = (np.array(box).astype(np.float32) * np.float32(_SCALE) for box in (first, second))
        sides = np.fmax(np.minimum(one[2:], two[2:]) - np.maximum(one[:2], two[:2]), 0)
        intersection = sides[0] * sides[1]
        areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, two)]
        union = areas[0] + areas[1] - intersection
        return float(intersection / union) if union and union == union else 0.0
