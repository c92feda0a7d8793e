"""Boxes of replies against true boxes, as one rule for all benchmarks that ask for places.

Boxes are shares of the original picture, xyxy, clamped to it; the overlap of two boxes is the same in shares and in
pixels. A reply without a box counts as wrong; of several boxes the first one counts.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from mg_llava.data.pictures.frames import from_shares
from mg_llava.data.synthesis.scenes import box_overlap
from mg_llava.data.text.coordinates import BoxText
from mg_llava.evaluation.scoring.figures import mean, mean_score
from mg_llava.evaluation.scoring.joining import Rule
from mg_llava.evaluation.statistics import bootstrap_mean

THRESHOLDS = (0.25, 0.5, 0.75)
Protocol = Literal["merged_boxes", "any_box"]
"""Against the box around all true boxes, or against the one that fits best."""


class FoundBoxesInReply(NamedTuple):
    """(n, 4) float64 boxes of a reply, and how many things in it look like boxes and are none."""

    boxes: np.ndarray
    failures: int


def read_reply(text: str, size: tuple[int, int] | None, writing: BoxText) -> FoundBoxesInReply:
    """The boxes of a reply as shares of the original picture.

    Args:
        text: The reply.
        size: Width and height of the picture; None where it is not known, then shares of the frame are given.
        writing: How boxes are written.
    """
    found = writing.find(text)
    boxes = found.boxes
    if size is not None and writing.frame != "original":
        boxes = from_shares(boxes, size, writing.frame) / np.tile(size, 2)
    return FoundBoxesInReply(np.clip(boxes, 0, 1), found.failures)


def compare_boxes(
    found: FoundBoxesInReply, targets: np.ndarray, protocol: Protocol = "merged_boxes"
) -> dict[str, Any]:
    """The facts of one reply: ``iou``, ``score`` (1 from an overlap of 0.5 on), ``center_inside``, boxes.

    Args:
        found: Of the reply.
        targets: (n, 4) true boxes, n > 0, in the unit of the reply's.
        protocol: What several true boxes mean.
    """
    if protocol == "merged_boxes":
        targets = np.concatenate([targets[:, :2].min(axis=0), targets[:, 2:].max(axis=0)])[None]
    facts: dict[str, Any] = {"score": 0.0, "iou": 0.0, "center_inside": False, "parsed": None}
    best = 0
    if len(found.boxes):
        box = found.boxes[0]
        ious = [box_overlap(box.tolist(), target) for target in targets.tolist()]
        best, center = int(np.argmax(ious)), (box[:2] + box[2:]) / 2
        inside = ((targets[:, :2] <= center) & (center <= targets[:, 2:])).all(axis=1)
        facts["iou"] = ious[best]
        facts |= {"score": float(facts["iou"] >= 0.5), "center_inside": bool(inside.any()), "parsed": box.tolist()}
    return {**facts, "answer": targets[best].tolist(), "n_boxes": len(found.boxes), "n_failures": found.failures}


def grounding_rule(samples: Sequence[Mapping[str, Any]], pictures: Sequence[Hashable]) -> Rule:
    """Metrics of samples of :func:`compare_boxes` with ``id``.

    ``accuracy`` is that at an overlap of 0.5, ``low`` and ``high`` its bootstrap interval over pictures, since
    sentences about one picture are not independent.

    Args:
        samples: n facts.
        pictures: n names of pictures.
    """
    entries = [dict(sample) for sample in samples]
    metrics: dict[str, Any] = {"accuracy": mean_score(entries)}
    for least in THRESHOLDS:
        metrics[f"ACC@{least}"] = mean(entry["iou"] >= least for entry in entries)
    metrics["IoU"] = mean(entry["iou"] for entry in entries)
    metrics["Center_ACC"] = mean(entry["center_inside"] for entry in entries)
    metrics["no_box"] = mean(entry["parsed"] is None for entry in entries)
    metrics["several_boxes"] = mean(entry["n_boxes"] > 1 for entry in entries)
    metrics["n_malformed"] = sum(entry["n_failures"] for entry in entries)
    if entries:
        interval = bootstrap_mean([entry["score"] for entry in entries], list(pictures))
        metrics |= {"low": interval.low, "high": interval.high}
    metrics["n_pictures"] = len(set(pictures))
    return metrics, entries
