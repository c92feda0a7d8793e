"""Several processes of one run, started by ``torchrun`` or ``srun``; they meet over gloo, on CPU and GPU alike."""

import atexit
import os
import pickle
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

_PATIENCE = timedelta(days=7)
"""How long a process waits for the others: as long as the slowest share of a large benchmark takes."""

_KEPT = 32
"""Meetings whose tensors are kept."""
_LEAVING = 0.1
"""Seconds for threads of gloo to put away what they have done."""

_Value = TypeVar("_Value")


def free_port() -> int:
    """A port of this machine at which nobody listens now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Processes:
    """The processes of a run; one where no launcher was used.

    Attributes:
        rank: Number of this process.
        size: How many there are.
    """

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", 0))
        self.size = int(os.environ.get("WORLD_SIZE", 1))
        self._group: Any = None
        self._kept: deque[list[Any]] = deque(maxlen=_KEPT)
        if self.size == 1:
            used: Any = sys.modules.get("torch.distributed")  # not imported for the question
            if used is not None and used.is_available() and used.is_initialized():
                self.rank, self.size = used.get_rank(), used.get_world_size()
            return
        import torch.distributed as dist

        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=_PATIENCE)
            atexit.register(self._leave)
        # a group of our own: the one that exists may be for a GPU, and less patient
        self._group = dist.new_group(backend="gloo", timeout=_PATIENCE)

    @classmethod
    def of_slurm(cls, folder: str | Path) -> "Processes":
        """The tasks of a job step that ``srun`` started.

        Args:
            folder: Seen by all of them; they find each other through a file there.

        Raises:
            ValueError: ``srun`` did not start this process.
        """
        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_JOB_ID")
        absent = [name for name in names if name not in os.environ]
        if absent:
            raise ValueError(f"{', '.join(absent)} are not set; start the tasks with srun, or use another engine")
        rank, size, job = (os.environ[name] for name in names)
        local = os.environ.get("SLURM_LOCALID", os.environ.get("LOCAL_RANK", "0"))
        os.environ.update(RANK=rank, WORLD_SIZE=size, LOCAL_RANK=local)
        if int(size) > 1:
            import torch.distributed as dist

            step, attempt = (os.environ.get(f"SLURM_{name}", "0") for name in ("STEP_ID", "RESTART_COUNT"))
            place = Path(folder).resolve() / f"meeting-{job}-{step}-{attempt}"
            place.parent.mkdir(parents=True, exist_ok=True)
            dist.init_process_group("gloo", f"file://{place}", _PATIENCE, int(size), int(rank))
        processes = cls()
        atexit.register(processes._leave)
        return processes

    def _leave(self) -> None:
        """End the meetings while Python still runs: their threads must not outlive it."""
        if self._group is not None:
            import torch.distributed as dist

            self._group = None
            time.sleep(_LEAVING)
            dist.destroy_process_group()

    @property
    def is_main(self) -> bool:
        """True in the process that scores and writes results."""
        return self.rank == 0

    def gather(self, value: Any = None) -> list[Any]:
        """The values of all processes, in the order of the processes; also waits for all of them."""
        if self.size == 1:
            return [value]
        import torch

        # The tensors are kept: a thread of gloo that has the last reference to one of Python's waits for Python, which
        # waits for the thread where it leaves right after. One that is behind by many meetings has time in `_leave`.
        own = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
        length = torch.tensor([len(own)])
        lengths = [length, *self._all(length)]
        padded = torch.nn.functional.pad(own, (0, int(max(lengths)) - len(own)))
        found = self._all(padded)
        self._kept.append([*lengths, padded, *found])
        return [pickle.loads(part[:count].numpy().tobytes()) for part, count in zip(found, lengths[1:], strict=True)]

    def _all(self, tensor: Any) -> list[Any]:
        """That tensor of all processes."""
        import torch.distributed as dist

        found = [tensor.new_empty(tensor.shape) for _ in range(self.size)]
        dist.all_gather(found, tensor, group=self._group)
        return found

    def on_main(self, work: Callable[[], _Value]) -> _Value:
        """Do something in the main process alone; all processes get its result, or its error."""
        return self.together(work if self.is_main else None)[0]

    def together(self, work: Callable[[], _Value] | None) -> list[Any]:
        """Do something in all processes and wait for all; each gives None where it has nothing to do.

        Raises:
            Exception: The first one of any process, in all of them, so that none waits for one that gave up.
        """
        try:
            own: tuple[Any, Exception | None] = None if work is None else work(), None
        except Exception as error:
            own = None, error
        results = self.gather(own)
        for failed in (found for _, found in results if found is not None):
            raise failed
        return [result for result, _ in results]
