"""Proof of coordinates: boxes to the canvas and back in numbers, and a drawn box to the canvas in pixels."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mg_llava.data.boxes.filter import NO_LIMITS, BoxLimits
from mg_llava.data.pictures.frames import Canvas
from mg_llava.data.records.schema import BoxRecord, make_box_record

BOUNDS = {"exact": 1e-3, "reference": 1.5}
"""Largest error on the canvas, in canvas pixels: ``reference`` rounds, and moves boxes by a pixel for some sizes."""

_PIXEL_BOUND = 1.5
"""Blur of resampling at an edge that is found at half its height, canvas pixels."""

_LEAST_DRAWN = 4.0
_MIDDLE = 127
_MOST_PIXELS = 25_000_000


class Mapped(NamedTuple):
    """One picture's boxes on the canvas and back.

    Attributes:
        size: Width and height of the picture.
        tokens: Number of box tokens, a stand-in for "no box" included.
        compared: Number of boxes that lie inside of the picture and became tokens.
        canvas_error: Largest distance on the canvas to where they belong, canvas pixels.
        original_error: Largest distance of what comes back from the canvas, original pixels.
        example: The largest box among those compared, original pixels; None without any.
    """

    size: tuple[int, int]
    tokens: int
    compared: int = 0
    canvas_error: float = 0.0
    original_error: float = 0.0
    example: tuple[float, ...] | None = None


def bound_of(processor: Any) -> float:
    """Largest error on the canvas that a picture processor may make, canvas pixels."""
    return BOUNDS.get(getattr(processor, "mode", "reference"), max(BOUNDS.values()))


def map_and_return(processor: Any, record: BoxRecord, size: tuple[int, int], limits: BoxLimits = NO_LIMITS) -> Mapped:
    """Place boxes of a picture of this size as training does within ``limits``, map them back and compare."""
    canvas: Canvas = processor.canvas_of(size)
    placed, index = processor.place(record, canvas, limits)
    tokens = len(index) or processor.stand_in_tokens(record)
    boxes = record.boxes[index]
    # What hangs over is cut on purpose, in the picture or, where it is cropped, on the canvas.
    target = canvas.to_canvas(boxes)
    whole = (boxes >= 0).all(axis=1) & (boxes[:, 2:] <= size).all(axis=1)
    whole &= (target >= 0).all(axis=1) & (target <= canvas.size).all(axis=1)
    if not whole.any():
        return Mapped(size, tokens)
    boxes, placed, target = boxes[whole], placed[whole], target[whole]
    returned = canvas.to_original(placed)
    areas = (target[:, 2] - target[:, 0]) * (target[:, 3] - target[:, 1])
    errors = float(np.abs(placed - target).max()), float(np.abs(returned - boxes).max())
    return Mapped(size, tokens, len(boxes), *errors, tuple(boxes[int(areas.argmax())].tolist()))


def draw_and_find(processor: Any, size: tuple[int, int], box: Sequence[float]) -> float | None:
    """Draw a box into a blank picture, process both, and compare where the pixels and where the box ended up.

    Returns:
        Largest distance of an edge, canvas pixels; None where the box is too small to be seen or drawn.
    """
    edges = [round(value) for value in box]
    if size[0] * size[1] > _MOST_PIXELS or edges[2] <= edges[0] or edges[3] <= edges[1]:
        return None
    # The box stands out from the padding as well, which may lie right beside it.
    is_light = min(getattr(processor, "pad_color", (0, 0, 0))) > _MIDDLE
    picture = Image.new("RGB", size, "white" if is_light else "black")
    picture.paste("black" if is_light else "white", tuple(edges))  # type: ignore[arg-type]
    processed = processor(picture, make_box_record([edges]))
    if not len(processed.boxes) or processed.is_empty:
        return None
    placed = processed.boxes[0].numpy().astype(np.float64)
    if min(placed[2] - placed[0], placed[3] - placed[1]) < _LEAST_DRAWN:
        return None
    pixels = processed.pixels.numpy()
    # (3, S, S) -> (S, S)
    drawn = pixels.max(axis=0) <= _MIDDLE if is_light else pixels.min(axis=0) > _MIDDLE
    center_x, center_y = int(placed[[0, 2]].mean()), int(placed[[1, 3]].mean())
    left, right = _run(drawn[center_y], center_x)
    top, bottom = _run(drawn[:, center_x], center_y)
    return float(np.abs(np.array([left, top, right, bottom]) - placed).max())


def pixel_bound(processor: Any) -> float:
    """Largest distance that ``draw_and_find`` may give."""
    return bound_of(processor) + _PIXEL_BOUND


def _run(line: np.ndarray, place: int) -> tuple[int, int]:
    """The run of true values around ``place``: its start and end; far off where there is none."""
    if not line[place]:
        return -len(line), -len(line)
    dark = np.flatnonzero(~line)
    before, after = dark[dark < place], dark[dark > place]
    return int(before[-1]) + 1 if len(before) else 0, int(after[0]) if len(after) else len(line)
