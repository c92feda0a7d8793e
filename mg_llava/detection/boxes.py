"""Boxes of detectors to boxes in original pixels: the detectors' frames, clipping, NMS and caps.

Detectors give centers and sizes as shares of what they saw; here n is the number of boxes.
"""

from collections.abc import Sequence

import numpy as np

from mg_llava.data.boxes.filter import BoxRules, filter_boxes
from mg_llava.data.records.schema import BoxRecord


def from_padded_square(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Boxes on a picture that was padded to a square at the bottom and the right, as OWLv2's processor does.

    Both axes are shares of the longer side, so that the picture's own width and height would misplace the boxes.

    Args:
        boxes: (n, 4) center x, center y, width, height; shares of the padded square.
        size: Width and height of the picture.

    Returns:
        (n, 4) float64 xyxy in original pixels; may reach into the padding.
    """
    return _corners(boxes) * float(max(size))


def from_shares(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Boxes as shares of a picture's own width and height; arguments and result as ``from_padded_square``."""
    return _corners(boxes) * np.tile(np.array(size, dtype=np.float64), 2)


NO_RULES = BoxRules(nms_iou=None, max_boxes=None, cap="per_image")
"""All boxes stay, best score first."""


def tidy_boxes(record: BoxRecord, size: tuple[int, int], rules: BoxRules = NO_RULES) -> BoxRecord:
    """Clip boxes to the picture, drop those without area, sort by score, and apply class-aware NMS and the cap.

    Args:
        record: Boxes in original pixels.
        size: Width and height of the picture.
        rules: Which boxes stay.
    """
    if not len(record):
        return record
    clipped = np.clip(record.boxes, 0, np.tile(np.array(size, dtype=np.float64), 2))
    inside = np.flatnonzero((clipped[:, 2:] > clipped[:, :2]).all(axis=1))
    labels = [record.labels[i] for i in inside.tolist()]
    kept = filter_boxes(clipped[inside], record.scores[inside], labels, rules).kept
    places = inside[kept]
    return BoxRecord(clipped[places], record.scores[places], tuple(record.labels[i] for i in places.tolist()))


def join_records(records: Sequence[BoxRecord]) -> BoxRecord:
    """The boxes of several records of one picture, one after the other."""
    if len(records) == 1:
        return records[0]
    return BoxRecord(
        np.concatenate([np.zeros((0, 4)), *(record.boxes for record in records)]),
        np.concatenate([np.zeros(0), *(record.scores for record in records)]),
        tuple(label for record in records for label in record.labels),
    )


def _corners(boxes: np.ndarray) -> np.ndarray:
    """(n, 4) centers and sizes to xyxy, float64."""
    centers, halves = boxes[:, :2].astype(np.float64), boxes[:, 2:].astype(np.float64) / 2
    return np.concatenate([centers - halves, centers + halves], axis=1)
