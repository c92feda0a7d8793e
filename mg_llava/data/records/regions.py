"""Regions of pictures that a record names: ``"objects"``, and the placeholders that stand for them in its text."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mg_llava.data.records.turns import Turn
from mg_llava.tokens import BOX_PLACEHOLDER, OBJECT_PLACEHOLDER


@dataclass(frozen=True)
class Region:
    """A region of one of the pictures of a conversation; ``box`` is xyxy in original pixels."""

    box: tuple[float, float, float, float]
    label: str = ""
    picture: int = 0


def parse_regions(value: Any, pictures: int) -> tuple[Region, ...]:
    """Check ``"objects"``: a list of ``{"box": [x1, y1, x2, y2], "label" (optional), "picture" (optional)}``.

    Args:
        value: What a record has; a region may be its box alone.
        pictures: Number of pictures, of which ``picture`` is one, from 0 on.

    Raises:
        ValueError: It is something else; the message says what and how to mend it.
    """
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(f"objects is a {type(value).__name__}; it is a list of {{'box': [x1, y1, x2, y2], 'label'}}")
    return tuple(_parse_region(one, number, pictures) for number, one in enumerate(value))


def regions_of(turns: Sequence[Turn], value: Any, pictures: int) -> tuple[Region, ...]:
    """The regions of a record whose text names some; of others ``"objects"`` is metadata.

    Raises:
        ValueError: ``"objects"`` is malformed, or a placeholder stands for none of them.
    """
    if not value or not names_regions(turns):
        return ()
    regions = parse_regions(value, pictures)
    if problem := region_problem(turns, len(regions)):
        raise ValueError(problem)
    return regions


def _parse_region(value: Any, number: int, pictures: int) -> Region:
    if isinstance(value, Region):
        value = vars(value)
    given = value if isinstance(value, Mapping) else {"box": value}
    box, label, picture = given.get("box"), given.get("label", ""), given.get("picture", 0)
    try:
        x1, y1, x2, y2 = map(float, box)  # type: ignore[arg-type]
        is_box = all(map(math.isfinite, (x1, y1, x2, y2))) and x1 <= x2 and y1 <= y2
    except (TypeError, ValueError):
        is_box = False
    if not is_box:
        raise ValueError(
            f"object {number} has box {str(box)[:80]}; a box is [x1, y1, x2, y2] in pixels of the original picture, "
            "with x1 <= x2 and y1 <= y2"
        )
    if not isinstance(label, str):
        raise ValueError(f"object {number} has label {str(label)[:80]!r}; a label is text")
    if isinstance(picture, bool) or not isinstance(picture, int) or not 0 <= picture < pictures:
        raise ValueError(f"object {number} is in picture {str(picture)[:80]!r}; there are {pictures}, from 0 on")
    return Region((x1, y1, x2, y2), label, picture)


def names_regions(turns: Sequence[Turn]) -> bool:
    """Whether a placeholder of a region stands in a turn."""
    return any(_may_name(turn.text) for turn in turns)


def region_problem(turns: Sequence[Turn], regions: int) -> str | None:
    """Why placeholders of regions cannot be resolved, with the fix; None where they can."""
    for turn in turns:
        if not _may_name(turn.text):
            continue
        if turn.role == "gpt" and (mark := OBJECT_PLACEHOLDER.search(turn.text)):
            return f"{mark[0]} stands in an answer; object images are shown in questions alone"
        for pattern in (BOX_PLACEHOLDER, OBJECT_PLACEHOLDER):
            mark = next((mark for mark in pattern.finditer(turn.text) if int(mark[1]) >= regions), None)
            if mark:
                return (
                    f"{mark[0]} stands in the text, but there are {regions} regions, from 0 on; give 'objects', or "
                    "boxes of the pictures"
                )
    return None


def count_named(turns: Sequence[Turn]) -> int:
    """Number of regions that placeholders need: one more than the largest number in them."""
    patterns = (BOX_PLACEHOLDER, OBJECT_PLACEHOLDER)
    marks = (int(mark) for turn in turns for pattern in patterns for mark in pattern.findall(turn.text))
    return max(marks, default=-1) + 1


def count_regions(turns: Sequence[Turn]) -> tuple[int, int]:
    """Numbers of object images and of boxes that stand in questions."""
    questions = [turn.text for turn in turns if turn.role == "human" and _may_name(turn.text)]
    crops, boxes = (
        sum(len(pattern.findall(text)) for text in questions) for pattern in (OBJECT_PLACEHOLDER, BOX_PLACEHOLDER)
    )
    return crops, boxes


def _may_name(text: str) -> bool:
    return "<box:" in text or "<object:" in text
