"""Boxes in replies as the published scripts of RefCOCO read them; scores of those scripts depend on every detail.

Neither numpy nor torch.
"""

import re
from typing import TypeAlias

Box: TypeAlias = tuple[float, float, float, float]
"""Four numbers xyxy of a reply, in whatever unit the script compares."""

_NUMBER = r"\s*(\d*\.?\d+)\s*"
_FOUR_NUMBERS = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]")
_FIRST_BRACKET = re.compile(r"\[(.*?)\]")
_ONLY_NUMBERS = re.compile(r"[\d\s,.]*")
_SIGNED = r"\s*(-?\d+(?:\.\d+)?)"
_LMMS_EVAL = re.compile(rf"\[{_SIGNED},{_SIGNED},{_SIGNED},{_SIGNED}\s*\]")
_MAX_DIGITS = 4000  # Python refuses to read longer integers


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
