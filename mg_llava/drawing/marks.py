"""Boxes with tags on a picture; tags stay inside the picture and off each other as far as there is room."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from mg_llava.drawing.lettering import Font, line_height

Area = tuple[float, float, float, float]
"""xyxy in pixels of the drawing."""

_DASH = 7
_RIM = "#101010"


@dataclass(frozen=True)
class Mark:
    """One box to draw.

    Attributes:
        box: xyxy in pixels of the drawing.
        color: Color of line and tag.
        caption: Text of the tag; none where empty.
        dashed: Whether the line is dashed.
    """

    box: Area
    color: str
    caption: str = ""
    dashed: bool = False


def draw_marks(sheet: Image.Image, marks: Sequence[Mark], line: int, face: Font) -> None:
    """Draw boxes and, above all of them, their tags.

    Lines lie outside the boxes, so that what a box holds stays visible.

    Args:
        sheet: RGB picture to draw on.
        marks: The boxes; the first ones choose the places of their tags first.
        line: Width of the lines in pixels.
        face: Font of the tags.
    """
    draw = ImageDraw.Draw(sheet)
    for mark in marks:
        x1, y1, x2, y2 = mark.box
        outer = (x1 - line, y1 - line, x2 + line, y2 + line)
        # A dark rim, to be seen on any ground.
        draw.rectangle((x1 - line - 1, y1 - line - 1, x2 + line + 1, y2 + line + 1), outline=_RIM)
        if mark.dashed:
            _draw_dashes(draw, outer, mark.color, line)
        else:
            draw.rectangle(outer, outline=mark.color, width=line)
    tagged = [mark for mark in marks if mark.caption]
    for mark, place in zip(tagged, place_tags(tagged, sheet.size, line, face), strict=True):
        draw.rectangle(place, fill=mark.color)
        draw.text((place[0] + 3, place[1] + 1), mark.caption, fill=ink_on(mark.color), font=face)


def place_tags(marks: Sequence[Mark], size: tuple[int, int], line: int, face: Font) -> list[Area]:
    """Where the tag of each mark goes: the first place beside its box that is free, or the one that is freest.

    Args:
        marks: Marks with captions.
        size: Width and height of the drawing.
        line: Width of the boxes' lines.
        face: Font of the tags.
    """
    high = line_height(face)
    taken = np.zeros((0, 4))
    for mark in marks:
        wide = math.ceil(face.getlength(mark.caption)) + 6
        places = np.array(list(_places(mark.box, (wide, high), size, line)))  # (p, 4)
        covered = _shared(places, taken).sum(axis=1)
        taken = np.concatenate([taken, places[int(covered.argmin())][None]])
    return [(x1, y1, x2, y2) for x1, y1, x2, y2 in taken.tolist()]


def ink_on(color: str) -> str:
    """Black or white, whichever reads better on a color."""
    red, green, blue = ImageColor.getrgb(color)[:3]
    return "black" if 0.3 * red + 0.6 * green + 0.1 * blue > 128 else "white"


def _places(box: Area, tag: tuple[int, int], size: tuple[int, int], line: int) -> Iterator[Area]:
    """Possible places of a tag, best first, all inside the drawing."""
    x1, y1, x2, y2 = box
    wide, high = tag
    above, below, gap = y1 - high - line - 1, y2 + line + 1, line + 1
    corners = [
        (x1 - line, above),
        (x1 - line, below),
        (x2 + line - wide, above),
        (x2 + line - wide, below),
        (x2 + gap, y1),
        (x1 - gap - wide, y1),
        (x2 + gap, y2 - high),
        (x1 - gap - wide, y2 - high),
        (x1, y1),
        (x2 - wide, y2 - high),
    ]
    for left, top in corners:
        x = min(max(left, 0), max(0, size[0] - wide))
        y = min(max(top, 0), max(0, size[1] - high))
        yield x, y, x + wide, y + high


def _shared(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(p, t) areas that (p, 4) and (t, 4) boxes have in common."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    return np.maximum(high - low, 0).prod(axis=2)


def _draw_dashes(draw: ImageDraw.ImageDraw, box: Area, color: str, line: int) -> None:
    x1, y1, x2, y2 = box
    for start in np.arange(x1, x2, 2 * _DASH).tolist():
        end = min(start + _DASH, x2)
        draw.rectangle((start, y1, end, y1 + line - 1), fill=color)
        draw.rectangle((start, y2 - line + 1, end, y2), fill=color)
    for start in np.arange(y1, y2, 2 * _DASH).tolist():
        end = min(start + _DASH, y2)
        draw.rectangle((x1, start, x1 + line - 1, end), fill=color)
        draw.rectangle((x2 - line + 1, start, x2, end), fill=color)
