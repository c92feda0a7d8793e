"""Which boxes of a picture become tokens, and in which order: class-aware NMS and caps, one function for all uses.

Equal scores are ordered as in the box file, everywhere, so that results depend on the boxes alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from mg_llava.data.choices import wrong_choice, wrong_count

Cap = Literal["per_category", "per_image"]
Reason = Literal["kept", "nms", "cap", "outside", "too small"]
"""What became of a box: a token, or why it did not (``outside`` and ``too small`` come from its place)."""

_PER_LABEL = 20
_PER_LABEL_SMALL = 5
_SMALL_LIMIT = 50
_LONG_TEXT_PER_LABEL = 1
_LONG_TEXT_PER_IMAGE = 20


@dataclass(frozen=True)
class BoxRules:
    """Which boxes of a picture may become tokens: overlap of ``nms`` (None sorts by score only), and ``cap_boxes``.

    Raises:
        ValueError: A number is out of its range.
    """

    nms_iou: float | None = 0.2
    max_boxes: int | None = 100
    cap: Cap = "per_category"

    def __post_init__(self) -> None:
        if self.nms_iou is not None and not 0 <= self.nms_iou <= 1:
            raise ValueError(f"nms_iou is {self.nms_iou}, must lie in 0..1 or be None")
        for wrong in wrong_count("max_boxes", self.max_boxes, none="no limit"):
            raise ValueError(wrong)


@dataclass(frozen=True)
class BoxLimits:
    """What a sample's text leaves for the boxes of a picture.

    Where it nearly fills the context, rules are stricter; no more than ``room`` boxes stay, whatever the rules.
    """

    text_is_long: bool = False
    room: int | None = None


NO_LIMITS = BoxLimits()


@dataclass(frozen=True)
class Filtered:
    """What each step of the filter left of ``count`` boxes.

    ``survivors`` are (m,) int64 indices of the boxes that NMS left, best score first; ``kept`` (k,) int64 indices of
    those that the cap left of them, in the order of their tokens.
    """

    count: int
    survivors: np.ndarray
    kept: np.ndarray

    def reasons(self) -> list[Reason]:
        """What became of each of the n boxes: ``kept``, ``nms`` or ``cap``."""
        reasons: list[Reason] = ["nms"] * self.count
        for index in self.survivors.tolist():
            reasons[index] = "cap"
        for index in self.kept.tolist():
            reasons[index] = "kept"
        return reasons


def nms(boxes: np.ndarray, scores: np.ndarray, labels: Sequence[str], iou: float) -> np.ndarray:
    """Class-aware non-maximum suppression: (k,) int64 indices of the boxes kept, best score first over all labels.

    On boxes in whole pixels the same as torchvision's ``batched_nms``, which moves the boxes of each label to a place
    of their own: that loses digits of fractions, and boxes with negative coordinates can still meet other labels.

    Args:
        boxes: (n, 4) xyxy in any one frame.
        scores: (n,).
        labels: n label strings; boxes of different labels never suppress each other.
        iou: Boxes that overlap a better one of their label by more than this are removed.
    """
    from torchvision.ops import nms as suppress

    order = _by_score(scores)
    numbers: dict[str, int] = {}
    groups = np.array([numbers.setdefault(labels[index], len(numbers)) for index in order.tolist()], dtype=np.int64)
    by_label = np.argsort(groups, kind="stable")  # places in `order`, one label after the other
    ends = np.bincount(groups).cumsum().tolist()
    # float32 as in the reference: an overlap of exactly `iou` may fall to either side.
    sorted_boxes = torch.from_numpy(np.asarray(boxes, dtype=np.float32)[order[by_label]])
    ranks = torch.arange(len(order), 0, -1, dtype=torch.float32)  # in place of scores, so that none are equal
    kept = np.ones(len(order), dtype=bool)
    for start, end in zip([0, *ends], ends, strict=False):
        if end - start > 1:
            left = suppress(sorted_boxes[start:end], ranks[start:end], iou)
            kept[by_label[start:end]] = False
            kept[by_label[start:end][left.numpy()]] = True
    return order[kept]


def cap_boxes(
    labels: Sequence[str], max_boxes: int | None, cap: Cap = "per_category", text_is_long: bool = False
) -> np.ndarray:
    """Limit the number of boxes of one picture, whose labels come best score first.

    ``per_category`` is the reference's rule: up to ``max_boxes`` boxes all stay; of more, the best 20 of each label
    (5 where ``max_boxes`` is below 50) stay, grouped by label in the order of the labels' best boxes. The sum over
    labels is not limited. ``per_image`` keeps the best ``max_boxes`` boxes. Where the text nearly fills the context,
    the best box of each label (``per_category``) or the best 20 (``per_image``) stay, with ``max_boxes=None`` too.
    Boxes without a label are no class of their own: of them as many stay as ``per_image`` would keep.

    Returns:
        (k,) int64 indices of the boxes kept, in their new order.

    Raises:
        ValueError: ``cap`` is unknown.
    """
    count = len(labels)
    of_picture = min(count, count if max_boxes is None else max_boxes, _LONG_TEXT_PER_IMAGE if text_is_long else count)
    for wrong in wrong_choice("cap", cap, Cap):
        raise ValueError(wrong)
    if cap == "per_image":
        return np.arange(of_picture)
    if text_is_long:
        return _best_per_label(labels, _LONG_TEXT_PER_LABEL, of_picture)
    if max_boxes is None or count <= max_boxes:
        return np.arange(count)
    return _best_per_label(labels, _PER_LABEL_SMALL if max_boxes < _SMALL_LIMIT else _PER_LABEL, of_picture)


def filter_boxes(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: Sequence[str],
    rules: BoxRules = BoxRules(),
    limits: BoxLimits = NO_LIMITS,
) -> Filtered:
    """NMS and cap in one go; see ``nms`` and ``cap_boxes``. Index boxes, scores and labels alike with ``kept``."""
    survivors = _by_score(scores) if rules.nms_iou is None else nms(boxes, scores, labels, rules.nms_iou)
    chosen = cap_boxes([labels[i] for i in survivors], rules.max_boxes, rules.cap, limits.text_is_long)
    if limits.room is not None and len(chosen) > limits.room:
        # Places among the survivors are ranks: the best stay, in their order.
        chosen = chosen[np.isin(chosen, np.sort(chosen)[: limits.room])]
    return Filtered(len(labels), survivors, survivors[chosen])


def _by_score(scores: np.ndarray) -> np.ndarray:
    """(n,) int64 indices, best score first; scores that are equal in float32, as the reference has them, in order."""
    return np.argsort(-np.asarray(scores, dtype=np.float32), kind="stable")


def _best_per_label(labels: Sequence[str], count: int, unlabelled: int) -> np.ndarray:
    """Indices of the first ``count`` boxes of each label, grouped by label in order of first appearance.

    Of boxes without a label the first ``unlabelled``.
    """
    groups: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        group = groups.setdefault(label, [])
        if len(group) < (count if label else unlabelled):
            group.append(index)
    return np.array([index for group in groups.values() for index in group], dtype=np.int64)
