"""Overlap of boxes in replies as the published scripts compute it; all boxes are xyxy."""

from collections.abc import Sequence

from mg_llava.data.text.published_boxes import Box

_SCALE = 1000.0


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
