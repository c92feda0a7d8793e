"""Which boxes of a picture become tokens, and in which order: class-aware NMS and caps, one function for all uses."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

Cap = Literal["per_category", "per_image"]

_PER_LABEL = 20
_PER_LABEL_SMALL = 5
_SMALL_LIMIT = 50
_LONG_TEXT_PER_LABEL = 1
_LONG_TEXT_PER_IMAGE = 20


def nms(boxes: np.ndarray, scores: np.ndarray, labels: Sequence[str], iou: float) -> np.ndarray:
    """Class-aware non-maximum suppression.

    Args:
        boxes: (n, 4) xyxy in any one frame.
        scores: (n,).
        labels: n label strings; boxes of different labels never suppress each other.
        iou: Boxes that overlap a better one of their label by more than this are removed.

    Returns:
        (k,) int64 indices of the boxes kept, best score first over all labels.
    """
    from torchvision.ops import batched_nms

    if len(boxes) == 0:
        return np.zeros(0, dtype=np.int64)
    # Sorted, so that nothing depends on the hash seed.
    label_ids = np.unique(np.asarray(labels, dtype=object).astype(str), return_inverse=True)[1].reshape(-1)
    keep = batched_nms(
        torch.as_tensor(boxes, dtype=torch.float32),
        torch.as_tensor(scores, dtype=torch.float32),
        torch.as_tensor(label_ids, dtype=torch.int64),
        iou,
    )
    return keep.numpy()


def cap_boxes(
    labels: Sequence[str], max_boxes: int | None, cap: Cap = "per_category", text_is_long: bool = False
) -> np.ndarray:
    """Limit the number of boxes of one picture.

    ``per_category`` is the reference's rule: up to ``max_boxes`` boxes all stay; of more, the best 20 of each label
    (5 where ``max_boxes`` is below 50) stay, grouped by label in the order of the labels' best boxes. The sum over
    labels is not limited. ``per_image`` keeps the best ``max_boxes`` boxes. Where the text nearly fills the context,
    the best box of each label (``per_category``) or the best 20 (``per_image``) stay, with ``max_boxes=None`` too.

    Args:
        labels: Labels of the boxes, best score first.
        max_boxes: The limit; None for no limit.
        cap: The rule.
        text_is_long: Whether the text nearly fills the context.

    Returns:
        (k,) int64 indices of the boxes kept, in their new order.

    Raises:
        ValueError: ``cap`` is unknown.
    """
    count = len(labels)
    if cap == "per_image":
        limit = count if max_boxes is None else max_boxes
        return np.arange(min(count, limit, _LONG_TEXT_PER_IMAGE if text_is_long else count))
    if cap != "per_category":
        raise ValueError(f"cap is {cap!r}; allowed: 'per_category', 'per_image'")
    if text_is_long:
        return _best_per_label(labels, _LONG_TEXT_PER_LABEL)
    if max_boxes is None or count <= max_boxes:
        return np.arange(count)
    return _best_per_label(labels, _PER_LABEL_SMALL if max_boxes < _SMALL_LIMIT else _PER_LABEL)


def filter_boxes(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: Sequence[str],
    nms_iou: float | None = 0.2,
    max_boxes: int | None = 100,
    cap: Cap = "per_category",
    text_is_long: bool = False,
) -> np.ndarray:
    """NMS and cap in one go; see ``nms`` and ``cap_boxes``. Index boxes, scores and labels alike with the result.

    Args:
        boxes: (n, 4) xyxy in any one frame.
        scores: (n,).
        labels: n label strings.
        nms_iou: Overlap above which NMS removes a box; None sorts by score only.
        max_boxes: Limit of ``cap_boxes``; None for no limit.
        cap: Rule of ``cap_boxes``.
        text_is_long: Whether the text nearly fills the context.

    Returns:
        (k,) int64 indices of the boxes kept, in the order of their tokens.
    """
    if nms_iou is None:
        order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
    else:
        order = nms(boxes, scores, labels, nms_iou)
    return order[cap_boxes([labels[i] for i in order], max_boxes, cap, text_is_long)]


def _best_per_label(labels: Sequence[str], count: int) -> np.ndarray:
    """Indices of the first ``count`` boxes of each label, grouped by label in order of first appearance."""
    groups: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        group = groups.setdefault(label, [])
        if len(group) < count:
            group.append(index)
    return np.array([index for group in groups.values() for index in group], dtype=np.int64)
