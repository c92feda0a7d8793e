"""Boxes of detectors to boxes in original pixels: the detectors' frames, clipping, NMS and caps.

Detectors give centers and sizes as shares of their input; here n is the number of boxes.
"""

from collections.abc import Sequence

import numpy as np

from mg_llava.data.boxes.filter import BoxRules, filter_boxes
from mg_llava.data.records.schema import BoxRecord

NO_RULES = BoxRules(nms_iou=None, max_boxes=None, cap="per_image")
"""All boxes stay, best score first."""


def centers_to_pixels(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(n, 4) center x, center y, width, height as shares of a picture's width and height to float64 xyxy in pixels."""
    centers, halves = boxes[:, :2].astype(np.float64), boxes[:, 2:].astype(np.float64) / 2
    return np.concatenate([centers - halves, centers + halves], axis=1) * np.tile(np.array(size, dtype=np.float64), 2)


def from_padded_square(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The same of a picture that was padded to a square at the bottom and the right, as OWLv2's processor does.

    Both axes are shares of the longer side; the picture's own width and height would misplace the boxes. They may
    reach into the padding.
    """
    return centers_to_pixels(boxes, (max(size), max(size)))


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
    places = inside[filter_boxes(clipped[inside], record.scores[inside], labels, rules).kept]
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
