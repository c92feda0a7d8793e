"""How often something happened to samples, in all worker processes of one process."""

import logging

import torch
from mmengine.logging import print_log
from torch.utils.data import get_worker_info

_SLOTS = 64


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
