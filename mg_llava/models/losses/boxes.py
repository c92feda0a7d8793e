"""The set criterion of the DETR family on refined objects, as transformers has it.

Shapes: N canvases, K objects, n_i annotated objects of canvas i, B rows, L their length.
"""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from mg_llava.batch import Layout, send
from mg_llava.models.interfaces import Detected, LLMInputs, Loss, Seeing
from mg_llava.models.losses.language import last_hidden
from mg_llava.registry import MODELS
from mg_llava.tokens import IGNORE_INDEX


@MODELS.register_module()
class RefinementLoss(Loss):
    """Loss of the objects that a system refines, over the pictures whose objects are annotated.

    ``batch["extra"]["objects"]`` has the annotated objects of each canvas, ``{"boxes": (n_i, 4) xyxy canvas pixels,
    "labels": n_i names}``, or None where nobody annotated them.

    Args:
        weight: Of the whole loss, beside others.
        class_cost: Of classes, in the Hungarian matching.
        l1: Of the L1 distance of boxes, in matching and loss.
        giou: Of their generalized IoU, in both.
    """

    def __init__(self, weight: float = 1.0, class_cost: float = 1.0, l1: float = 5.0, giou: float = 2.0) -> None:
        self.weight = weight
        self._costs = {"class_cost": class_cost, "bbox_cost": l1, "giou_cost": giou}
        self._weights = {"bbox_loss_coefficient": l1, "giou_loss_coefficient": giou}

    def count(self, batch: Mapping[str, Any]) -> int:
        """Annotated objects; see :meth:`Loss.count`."""
        return sum(len(one["labels"]) for one in _annotated(batch) if one is not None)

    def __call__(
        self, system: Any, batch: Mapping[str, Any], seeing: Seeing, read: LLMInputs | None
    ) -> dict[str, Tensor]:
        """See :meth:`Loss.__call__`; gives ``loss_refine``."""
        states = None if read is None or not system.reads_language else last_hidden(system.llm, read)
        mask = None if read is None else before_answers(read.layout)
        found = system.refine_objects(seeing, states, mask, () if read is None else read.layout.placeholders)
        zero = 0.0 * (found.logits.sum() + found.boxes.sum())
        known = _annotated(batch)
        places = [place for place, one in enumerate(known) if one is not None]
        if not places:
            return {"loss_refine": zero}
        side, names = batch["canvas"].shape[-1], system.detector.spec.classes
        targets = [_target(known[place], names, side, found.boxes.device) for place in places]
        chosen = Detected(*(values[places] for values in found))
        return {"loss_refine": zero + self.weight * self.criterion(chosen, targets, len(names))}

    def criterion(self, found: Detected, targets: Sequence[Mapping[str, Tensor]], classes: int) -> Tensor:
        """The loss of objects against ``class_labels`` (n_i,) and ``boxes`` (n_i, 4) cxcywh shares of each canvas."""
        from transformers.loss.loss_deformable_detr import DeformableDetrForObjectDetectionLoss
        from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss

        has_rest = found.logits.shape[-1] > classes
        settings = dict(num_labels=classes, auxiliary_loss=False, focal_alpha=0.25, eos_coefficient=0.1)
        config = SimpleNamespace(**settings, **self._costs, **self._weights)
        compute = ForObjectDetectionLoss if has_rest else DeformableDetrForObjectDetectionLoss
        boxes, logits = found.boxes.float(), found.logits.float()
        with torch.autocast(boxes.device.type, enabled=False):
            loss, _, _ = compute(logits, list(targets), boxes.device, boxes, config)
        return loss


def before_answers(layout: Layout) -> Tensor:
    """``(B, L)`` bool: the positions of each row before its first answer, which a question alone has too."""
    answered = (layout.labels != IGNORE_INDEX).cumsum(1) > 0
    return layout.attention_mask & ~answered


def _annotated(batch: Mapping[str, Any]) -> Sequence[Any]:
    return (batch.get("extra") or {}).get("objects") or ()


def _target(one: Mapping[str, Any], names: Sequence[str], side: int, device: torch.device) -> dict[str, Tensor]:
    unknown = sorted(set(one["labels"]) - set(names))
    if unknown:
        raise ValueError(
            f"objects are annotated as {', '.join(unknown)}, which the detector does not know; its classes are "
            f"{', '.join(names)}"
        )
    numbers = torch.tensor([names.index(label) for label in one["labels"]], dtype=torch.int64)
    corners = one["boxes"].to(device, torch.float32).reshape(-1, 4) / side
    centers = torch.cat([corners[:, :2] + corners[:, 2:], 2 * (corners[:, 2:] - corners[:, :2])], dim=1) / 2
    return {"class_labels": send(numbers, device), "boxes": centers}
