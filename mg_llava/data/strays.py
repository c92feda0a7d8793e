"""Boxes that lie outside of their pictures: their tokens would show nothing, so that they are counted and reported."""

import logging
from collections.abc import Sequence

import numpy as np
import torch
from mmengine.logging import print_log

from mg_llava.data.records.schema import BoxRecord

_LOGGED = 5


class StrayBoxes:
    """How many boxes of each record lie outside of its pictures; shared by the worker processes of one process.

    Args:
        positions: (M,) int64, the place of each sample's record among those that are used.
        source: Name of the box file, for messages.
    """

    def __init__(self, positions: np.ndarray, source: str) -> None:
        self.source = source
        self._positions = positions
        self._counts = torch.zeros(int(positions.max(initial=-1)) + 1, dtype=torch.int32).share_memory_()

    def note(
        self, index: int, keys: Sequence[str], records: Sequence[BoxRecord], frames: Sequence[tuple[int, int]]
    ) -> None:
        """Count the boxes of sample ``index`` that have no part of their picture; the first such records are logged.

        Args:
            index: Of the sample.
            keys: Box id of each of its pictures.
            records: Boxes of each, original pixels.
            frames: Width and height of each.
        """
        outside = [_outside(record.boxes, frame) for record, frame in zip(records, frames, strict=True)]
        position = int(self._positions[index])
        count = sum(int(found.sum()) for found in outside)
        if not count or self._counts[position]:
            return
        self._counts[position] = count
        if self.records > _LOGGED:
            return
        number = next(i for i, found in enumerate(outside) if found.any())
        stray = records[number].boxes[outside[number]]
        width, height = frames[number]
        message = (
            f"{self.source}: {len(stray)} of {len(records[number])} boxes of id {keys[number]!r} lie outside of the "
            f"picture of {width} x {height} pixels, such as {stray[0].tolist()}; boxes are in pixels of the original "
            "picture. All such boxes are counted"
        )
        print_log(message, logger="current", level=logging.WARNING)

    def first(self, count: int) -> list[int]:
        """Places of the first ``count`` records with such boxes so far."""
        return self._counts.nonzero().flatten()[:count].tolist()

    @property
    def records(self) -> int:
        """Number of different records with such boxes so far."""
        return int(torch.count_nonzero(self._counts))

    @property
    def boxes(self) -> int:
        """Number of such boxes so far, each counted once."""
        return int(self._counts.sum())


def _outside(boxes: np.ndarray, frame: tuple[int, int]) -> np.ndarray:
    """(n,) bool: which of (n, 4) boxes in original pixels have no part of a picture of this width and height."""
    outside = np.concatenate([boxes[:, 2:] <= 0, boxes[:, :2] >= np.asarray(frame)], axis=1)  # (n, 4)
    return np.logical_or.reduce(outside, axis=1)
