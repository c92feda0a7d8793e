"""Training augmentation of boxes and object images, so that a model bears others than those it was trained with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from mg_llava.data.records.schema import NO_BOXES, BoxRecord
from mg_llava.registry import TRANSFORMS

Augmentation = Callable[[BoxRecord, tuple[int, int], np.random.Generator], BoxRecord]
"""Changes boxes in original pixels of a picture of a width and height; random numbers come from the generator."""

_PROBABILITIES = ("drop_all", "dropout", "cap_probability", "jitter_probability")
_MAX_JITTER = 0.5


@TRANSFORMS.register_module()
@dataclass(frozen=True)
class BoxAugmentation:
    """Drops and moves boxes of one picture before they are filtered; boxes, scores and labels stay parallel.

    In this order: all boxes are dropped; each box is dropped; the best few stay; each box is moved. What happens
    depends on the generator alone, and changing one setting leaves the draws of the others as they are.

    Args:
        drop_all: Probability that a picture loses all its boxes.
        dropout: Probability that a box is dropped.
        cap_probability: Probability that only the boxes with the best scores stay.
        cap_range: Least and largest number of boxes that stay then; each number is equally likely.
        jitter: Each edge of a box moves by at most this share of the box's width or height, evenly distributed. Below
            0.5, so that edges never pass each other.
        jitter_probability: Probability that a box is moved.

    Raises:
        ValueError: An argument is out of range; all wrong arguments are named in one message.
    """

    drop_all: float = 0.0
    dropout: float = 0.0
    cap_probability: float = 0.0
    cap_range: tuple[int, int] = (1, 100)
    jitter: float = 0.0
    jitter_probability: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "cap_range", tuple(self.cap_range))
        wrong = [
            f"{name} is {getattr(self, name)!r}, must lie in 0..1"
            for name in _PROBABILITIES
            if not 0 <= getattr(self, name) <= 1
        ]
        if not 0 <= self.jitter < _MAX_JITTER:
            wrong.append(f"jitter is {self.jitter!r}, must be at least 0 and below {_MAX_JITTER}")
        if len(self.cap_range) != 2 or not 0 <= self.cap_range[0] <= self.cap_range[1]:
            wrong.append(f"cap_range is {self.cap_range!r}, must be (least, largest) with 0 <= least <= largest")
        if wrong:
            raise ValueError(f"{type(self).__name__}: {'; '.join(wrong)}")

    def __call__(self, record: BoxRecord, size: tuple[int, int], rng: np.random.Generator) -> BoxRecord:
        """Augment the boxes of one picture of a width and height; ``rng`` is where all randomness comes from.

        Returns:
            The boxes left, in their order, original pixels; ``record`` itself where nothing happened. A box that is
            moved is clipped to the picture and has an area.
        """
        count = len(record)
        # All draws first and always, so that each setting has draws of its own.
        draw_all, draw_cap = rng.random(2)
        limit = int(rng.integers(self.cap_range[0], self.cap_range[1], endpoint=True))
        draws = rng.random((count, 2))
        shifts = rng.uniform(-1, 1, (count, 4))
        if draw_all < self.drop_all:
            return NO_BOXES
        kept = np.flatnonzero(draws[:, 0] >= self.dropout)
        if draw_cap < self.cap_probability:
            kept = _best(record.scores, kept, limit)
        moved = draws[:, 1] < self.jitter_probability
        return _select(_move(record, size, shifts * self.jitter * moved[:, None]), kept)


def _best(scores: np.ndarray, kept: np.ndarray, limit: int) -> np.ndarray:
    """Those of the boxes ``kept`` with the ``limit`` best scores, in their order."""
    order = np.argsort(-scores[kept], kind="stable")
    return kept[np.sort(order[:limit])]


def _move(record: BoxRecord, size: tuple[int, int], shifts: np.ndarray) -> BoxRecord:
    """Move the edges of boxes by (n, 4) ``shifts``, in widths and heights of the box, clipped to the picture.

    Boxes without an area in the picture stay where they are, before and after: they are the filter's to drop.
    """
    sides = np.tile(record.boxes[:, 2:] - record.boxes[:, :2], 2)  # (n, 2) -> (n, 4)
    bounds = np.tile(np.array(size, dtype=np.float64), 2)
    clipped = np.clip(record.boxes + shifts * sides, 0, bounds)
    visible = np.clip(record.boxes, 0, bounds)
    movable = (shifts != 0).any(axis=1) & _has_area(visible) & _has_area(clipped)
    if not movable.any():
        return record
    return replace(record, boxes=np.where(movable[:, None], clipped, record.boxes))


def _has_area(boxes: np.ndarray) -> np.ndarray:
    """(n,) bool for (n, 4) boxes in any frame."""
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def _select(record: BoxRecord, kept: np.ndarray) -> BoxRecord:
    if len(kept) == len(record):
        return record
    labels = tuple(record.labels[i] for i in kept.tolist())
    return replace(record, boxes=record.boxes[kept], scores=record.scores[kept], labels=labels)


@TRANSFORMS.register_module()
@dataclass(frozen=True)
class CropAugmentation:
    """Widens, moves and brightens object images, by amounts that are evenly distributed.

    Args:
        context: Most by which a region is wider on each side, as a share of its width and height.
        shift: Most by which it is moved along each axis, as a share of them.
        brightness: Most by which the factor of its pixels differs from 1.

    Raises:
        ValueError: An argument is out of range.
    """

    context: float = 0.5
    shift: float = 0.1
    brightness: float = 0.2

    def __post_init__(self) -> None:
        wrong = [name for name in ("context", "shift", "brightness") if not 0 <= getattr(self, name) <= 1]
        if wrong:
            raise ValueError(f"{type(self).__name__}: {', '.join(wrong)} must lie in 0..1, found {self}")

    def move(self, box: Sequence[float], rng: np.random.Generator) -> tuple[float, float, float, float]:
        """Another box xyxy around a region, in the frame of the given one."""
        corners = np.asarray(box, dtype=np.float64).reshape(2, 2)
        sides = corners[1] - corners[0]
        more, away = rng.uniform(0, self.context), rng.uniform(-self.shift, self.shift, 2)
        (x1, y1), (x2, y2) = (corners + away * sides + np.array([[-more], [more]]) * sides).tolist()
        return x1, y1, x2, y2

    def brighten(self, pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Pixels (3, S, S) uint8, brighter or darker."""
        factor = rng.uniform(1 - self.brightness, 1 + self.brightness)
        return (pixels.float() * factor).round().clamp(0, 255).to(torch.uint8)
