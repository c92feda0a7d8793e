"""Regions of pictures that a record names: ``"objects"``, and the placeholders that stand for them in its text."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mg_llava.data.records.turns import Turn
from mg_llava.tokens import BOX_PLACEHOLDER, OBJECT_PLACEHOLDER

_FAR = 1.25
"""Boxes that reach this many times the picture's side are no overhang."""
_ROUNDING = 1e-3


@dataclass(frozen=True)
class Region:
    """A region of one of the pictures of a conversation; ``box`` is xyxy in original pixels.

    With ``of``, 1 or 1000, its numbers are shares of the picture's sides of which so many are the whole.
    """

    box: tuple[float, float, float, float]
    label: str = ""
    picture: int = 0
    of: int = 0

    def in_pixels(self, size: tuple[int, int]) -> "Region":
        """The region in pixels of its picture, whose width and height are given.

        Raises:
            ValueError: Its numbers are those of another convention, or of another picture.
        """
        box = self.box
        if self.of:
            (width, height), whole = size, self.of
            box = (box[0] * width / whole, box[1] * height / whole, box[2] * width / whole, box[3] * height / whole)
        elif box[2] > _FAR * size[0] + 1 or box[3] > _FAR * size[1] + 1 or min(box[2:]) < 0:
            is_other = max(box) > 1000 or min(box) < 0
            advice = "it is of another picture or size" if is_other else "its numbers look like thousandths"
            raise ValueError(f"box {list(box)} is in pixels, the picture is {size[0]} x {size[1]}; {advice}")
        return Region(box, self.label, self.picture)


def parse_regions(value: Any, pictures: int) -> tuple[Region, ...]:
    """Check ``"objects"``: a list of ``{"box": [x1, y1, x2, y2], "label" (optional), "picture" (optional)}``.

    ``"of"``, 1 or 1000, beside a box tells that its numbers are such shares of the picture's sides.

    Args:
        value: What a record has; a region may be its box alone, and all of them an array of (n, 4) numbers.
        pictures: Number of pictures, of which ``picture`` is one, from 0 on.

    Raises:
        ValueError: It is something else; the message says what and how to mend it.
    """
    if value is None:
        return ()
    value = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(f"objects is a {type(value).__name__}; it is a list of {{'box': [x1, y1, x2, y2], 'label'}}")
    regions = tuple(_parse_region(one, number, pictures) for number, one in enumerate(value))
    if problem := _convention_problem(regions):
        raise ValueError(problem)
    return regions


def regions_of(turns: Sequence[Turn], value: Any, pictures: int) -> tuple[Region, ...]:
    """The regions of a record whose text names some; of others ``"objects"`` is metadata.

    Raises:
        ValueError: ``"objects"`` is malformed, or a placeholder stands for none of them.
    """
    if not names_regions(turns):
        return ()
    if not pictures:
        raise ValueError("the text names regions, and there is no picture that they could be in")
    if not value:
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
    except (TypeError, ValueError, OverflowError):
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
    of = given.get("of", 0)
    if of not in (0, 1, 1000) or isinstance(of, bool):
        raise ValueError(f"object {number} has numbers of {str(of)[:80]!r}; shares are of 1 or of 1000")
    return Region((x1, y1, x2, y2), label, picture, of)


def _convention_problem(regions: Sequence[Region]) -> str | None:
    """Why numbers cannot be of the convention that they are said to be of; sizes of pictures are not needed."""
    for region in regions:
        least, most, slack = min(region.box), max(region.box), _ROUNDING * region.of
        if region.of and not -slack <= least <= most <= region.of + slack:
            return f"box {list(region.box)} is said to be shares of {region.of}; it looks like pixels or other shares"
    numbers = [number for region in regions for number in region.box]
    if regions and regions[0].of != 1 and max(numbers) <= 1 and any(number % 1 for number in numbers):
        said = f"shares of {regions[0].of}" if regions[0].of else "pixels"
        return f"boxes such as {list(regions[0].box)} are said to be {said}; they look like shares of 1"
    return None


def names_regions(turns: Sequence[Turn]) -> bool:
    """Whether a placeholder of a region stands in a turn."""
    return any(_may_name(turn.text) for turn in turns if not turn.is_said)


def region_problem(turns: Sequence[Turn], regions: int) -> str | None:
    """Why placeholders of regions cannot be resolved, with the fix; None where they can."""
    for turn in turns:
        if turn.is_said or not _may_name(turn.text):
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
