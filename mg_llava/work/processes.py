"""Several processes that share one evaluation, started by ``torchrun``; they meet over gloo, on CPU and GPU alike."""

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

PATIENCE = timedelta(days=7)
"""How long a process waits for the others: as long as the slowest share of a large benchmark takes."""


class Processes:
    """The processes of a run; one where ``torchrun`` was not used.

    Attributes:
        rank: Number of this process.
        size: How many there are.
    """

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", 0))
        self.size = int(os.environ.get("WORLD_SIZE", 1))
        self._group: Any = None
        if self.size > 1:
            if not dist.is_initialized():
                dist.init_process_group("gloo", timeout=PATIENCE)
            # a group of our own: the one that exists may be for a GPU, and less patient
            self._group = dist.new_group(backend="gloo", timeout=PATIENCE)
        elif dist.is_initialized():
            self.rank, self.size = dist.get_rank(), dist.get_world_size()

    @property
    def is_main(self) -> bool:
        """Whether this is the process that scores and writes results."""
        return self.rank == 0

    def gather(self, value: Any = None) -> list[Any]:
        """What each process gives, in the order of the processes; also waits for all of them."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._group)
        return values


def local_device() -> str:
    """The device of this process: its own GPU where there are any, else the CPU."""
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
