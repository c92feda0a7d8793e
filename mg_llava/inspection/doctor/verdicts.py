"""The boxes of a whole source: swapped, shares, made for another size, squeezed."""

from collections.abc import Iterator, Sequence

import numpy as np

from mg_llava.inspection.doctor.boxes import BoxStatistics
from mg_llava.inspection.doctor.findings import Found

_FEW = 3
_SOME = 10
_BOXES = 20
_HALF = 0.6
_MANY = 50
_MOSTLY = 0.5
_OFTEN = 0.2
_LONG = 1.25
_NEVER_FAR = 0.7
_TOUCH = 0.9
_ROUNDING = 1.02


def judge_source(statistics: Sequence[BoxStatistics]) -> Iterator[Found]:
    """Findings about all P pictures of a source; few pictures give none but the plainest."""
    table = np.array(statistics, dtype=np.float64).reshape(-1, len(BoxStatistics._fields))
    columns = dict(zip(BoxStatistics._fields, table.T, strict=True))
    count = len(table)
    shares, swapped, as_is, other = (
        int(columns[name].sum()) for name in ("is_share", "fits_only_swapped", "fits_only_as_is", "is_other_size")
    )
    if count >= _FEW and shares > _MOSTLY * count:
        yield Found("source_boxes_normalized", detail=f"in {shares} of {count} pictures with boxes")
        return
    if swapped >= _FEW and swapped > as_is:
        detail = f"{swapped} pictures fit only with swapped axes, {as_is} only as they are, of {count}"
        yield Found("source_boxes_swapped", detail=detail)
        return
    reach_x, reach_y = columns["reach_x"] / columns["width"], columns["reach_y"] / columns["height"]
    boxes = int(columns["boxes"].sum())
    for convention in ("xywh", "cxcywh"):
        # Corners in the right or lower half do not fit so, and of many boxes some are there; unless all are too small.
        fits = columns[f"as_{convention}"].sum() == boxes and max([*reach_x, *reach_y], default=0) > _HALF
        if fits and count >= _FEW and boxes >= _BOXES:
            yield Found("source_boxes_convention", detail=f"all {boxes} boxes in {count} pictures fit as {convention}")
            return
    if (count >= _SOME and other > _OFTEN * count) or (count >= _FEW and other > _MOSTLY * count):
        found = columns["is_other_size"] > 0
        times = f"{np.median(reach_x[found]):.2f} times the width, {np.median(reach_y[found]):.2f} times the height"
        detail = f"in {other} of {count} pictures with boxes; there they reach {times}"
        yield Found("source_boxes_other_size", detail=detail)
    elif count >= _MANY:
        yield from _judge_reach(reach_x, reach_y, columns["width"], columns["height"])


def _judge_reach(reach_x: np.ndarray, reach_y: np.ndarray, width: np.ndarray, height: np.ndarray) -> Iterator[Found]:
    """Boxes that never reach where those of many pictures should; (P,) largest x2, y2 as shares, and sizes."""
    sides = np.minimum(width, height)
    # Numbers of a fixed range, such as 0..100, reach the end of small pictures alone.
    for which, pictures in (("", sides > 0), ("larger ", sides >= np.median(sides))):
        far_x, far_y = np.percentile(reach_x[pictures], 99), np.percentile(reach_y[pictures], 99)
        if pictures.sum() >= _MANY and max(far_x, far_y) < _NEVER_FAR:
            reach = f"{far_x:.2f} of the width and {far_y:.2f} of the height"
            detail = f"of {pictures.sum()} {which}pictures, 99 % have no box beyond {reach}"
            yield Found("source_boxes_small", detail=detail)
            return
    for name, along, across, long, short in (
        ("landscape", reach_x, reach_y, width, height),
        ("portrait", reach_y, reach_x, height, width),
    ):
        chosen = long >= _LONG * short
        if chosen.sum() < _MANY:
            continue
        # Scaled by the shorter side instead of the square's, nothing lies beyond short / long of it.
        squeezed = np.percentile(across[chosen] / (short[chosen] / long[chosen]), 99)
        if squeezed <= _ROUNDING and np.percentile(along[chosen], 95) > _TOUCH:
            found = f"in {int(chosen.sum())} {name} pictures no box reaches beyond"
            yield Found("source_boxes_squeezed", detail=f"{found} the share that the padded square leaves")
