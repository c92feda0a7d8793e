"""Faults of samples, counted across the worker processes of one training process.

Samples that training cannot use are skipped or refused as the policies say; boxes outside of their pictures, whose
tokens would show nothing, are reported; so is whatever else is worth a count.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from mmengine.logging import print_log
from torch.utils.data import get_worker_info

from mg_llava.data.pictures.files import PictureError
from mg_llava.data.records.schema import BoxRecord
from mg_llava.data.text.budget import BudgetError
from mg_llava.data.text.conversation import NoLabelError

BadSample = Literal["error", "skip"]

FAULTS: dict[str, type[ValueError]] = {"bad_image": PictureError, "no_label": NoLabelError, "over_budget": BudgetError}
"""Errors of a sample, by the name of their policy."""

_SLOTS = 64
_SKIPS_LOGGED = 20
_SKIPS_LOGGED_EVERY = 100
_STRAYS_LOGGED = 5


class Tally:
    """A number that workers add to; the first time in each of them is logged."""

    def __init__(self) -> None:
        self._warned = False
        # A slot per worker, so that none writes where another does; shared by the processes.
        self._counts = torch.zeros(_SLOTS, dtype=torch.int64).share_memory_()

    @property
    def total(self) -> int:
        """What all workers added so far."""
        return int(self._counts.sum())

    def add(self, message: str) -> None:
        """Count one; ``message`` is the warning of the first."""
        worker = get_worker_info()
        self._counts[0 if worker is None else 1 + worker.id % (_SLOTS - 1)] += 1
        if not self._warned:
            self._warned = True
            print_log(message, logger="current", level=logging.WARNING)


class _Numbers:
    """A number for each of some records, 0 for those of no interest; shared by the worker processes of a process."""

    def __init__(self, count: int, dtype: torch.dtype) -> None:
        self._numbers = torch.zeros(count, dtype=dtype).share_memory_()

    def __len__(self) -> int:
        return int(torch.count_nonzero(self._numbers))

    def first(self, count: int) -> list[int]:
        """Places of the first ``count`` records of interest so far."""
        return self._numbers.nonzero().flatten()[:count].tolist()


class SkippedSamples(_Numbers):
    """Which of ``count`` records were found bad, and why; shared by the worker processes of one training process.

    ``policies`` has ``error`` or ``skip`` for each name of ``FAULTS``; when more than ``limit`` different records are
    skipped, the run stops.
    """

    def __init__(self, count: int, policies: Mapping[str, BadSample], limit: int, source: str) -> None:
        self.policies, self.limit, self.source = dict(policies), limit, source
        super().__init__(count, torch.uint8)  # 0 for good, else 1 + the number of the fault

    def __contains__(self, position: int) -> bool:
        return bool(self._numbers[position])

    def counts(self) -> dict[str, int]:
        """Number of records skipped so far, for each kind of fault."""
        found = torch.bincount(self._numbers.long(), minlength=len(FAULTS) + 1).tolist()
        return dict(zip(FAULTS, found[1:], strict=True))

    def add(self, position: int, error: ValueError) -> None:
        """Note a bad record.

        Raises:
            ValueError: ``error`` itself, where the policy is ``error``.
            RuntimeError: More records than the limit are bad.
        """
        number, name = next((n, name) for n, (name, kind) in enumerate(FAULTS.items(), 1) if isinstance(error, kind))
        if self.policies[name] == "error":
            raise error
        self._numbers[position] = number
        count = len(self)
        message = f"skipped {count} samples so far, now: {error}"
        if count > self.limit:
            raise RuntimeError(
                f"{self.source}: more than max_bad_samples={self.limit}; {message}; find them all with "
                "tools/check_data.py, or raise max_bad_samples"
            ) from error
        if count <= _SKIPS_LOGGED or count % _SKIPS_LOGGED_EVERY == 0:
            print_log(f"{self.source}: {message}", logger="current", level=logging.WARNING)


class StrayBoxes(_Numbers):
    """How many boxes of each record lie outside of its pictures; shared by the worker processes of one process.

    ``positions`` is (M,) int64, the place of each sample's record among those that are used.
    """

    def __init__(self, positions: np.ndarray, source: str) -> None:
        self.source = source
        self._positions = positions
        super().__init__(int(positions.max(initial=-1)) + 1, torch.int32)

    def note(
        self, index: int, keys: Sequence[str], records: Sequence[BoxRecord], frames: Sequence[tuple[int, int]]
    ) -> None:
        """Count the boxes of sample ``index`` that have no part of their picture; the first such records are logged.

        ``keys`` are the box ids of its pictures, ``records`` their boxes in original pixels, ``frames`` their sizes.
        """
        outside = [_outside(record.boxes, frame) for record, frame in zip(records, frames, strict=True)]
        position = int(self._positions[index])
        count = sum(int(found.sum()) for found in outside)
        if not count or self._numbers[position]:
            return
        self._numbers[position] = count
        if len(self) > _STRAYS_LOGGED:
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

    @property
    def boxes(self) -> int:
        """Number of such boxes so far, each counted once."""
        return int(self._numbers.sum())


def _outside(boxes: np.ndarray, frame: tuple[int, int]) -> np.ndarray:
    """(n,) bool: which of (n, 4) boxes in original pixels have no part of a picture of this width and height."""
    outside = np.concatenate([boxes[:, 2:] <= 0, boxes[:, :2] >= np.asarray(frame)], axis=1)  # (n, 4)
    return np.logical_or.reduce(outside, axis=1)
