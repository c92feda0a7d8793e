"""GPUs that the steps of a grid share: which there are, and those that a running step has for itself."""

import itertools
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from mg_llava.work.processes import free_port

DRIVERS = ("/proc/driver/nvidia/gpus", "/dev/nvidiactl")
"""What there is on Linux where a driver of NVIDIA is loaded."""
_NAME = re.compile(r"\d+|(GPU|MIG)-\S+")


def find_gpus() -> list[str]:
    """The GPUs as ``CUDA_VISIBLE_DEVICES`` names them: those that it has, else all."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        names = itertools.takewhile(_NAME.fullmatch, map(str.strip, given.split(",")))  # CUDA stops at -1, too
        return list(dict.fromkeys(names))
    if not any(Path(place).exists() for place in DRIVERS) and shutil.which("nvidia-smi") is None:
        return []
    import torch  # takes seconds, which machines without a driver are spared

    return [str(number) for number in range(torch.cuda.device_count())]


def processes_of(each: int | None) -> str:
    """How many processes share a training: as many as it has GPUs, else what NPROC_PER_NODE says."""
    return str(each) if each is not None else os.environ.get("NPROC_PER_NODE") or "1"


def share_gpus(each: int | None) -> "GpuSlots | None":
    """The GPUs of this machine to be shared, None without any.

    Args:
        each: How many a step has; NPROC_PER_NODE by default, else one.

    Raises:
        ValueError: There are not so many.
    """
    names, wanted = find_gpus(), processes_of(each)
    asks = f"NPROC_PER_NODE is {wanted}" if each is None else f"--gpus-per-run is {each}"
    if not names and each is None:
        return None
    if not wanted.isdecimal() or not 0 < int(wanted) <= len(names):
        there = f"there are {len(names)} GPUs: {', '.join(names)}" if names else "there is no GPU"
        raise ValueError(f"{asks}, and {there}; give a number from 1 to that of the GPUs, or none on the CPU")
    return GpuSlots(names, int(wanted))


class GpuSlots:
    """GPUs of which steps hold their own while they run, and a port each for the processes of a step to meet at.

    Args:
        names: All of them.
        each: How many a step holds.
    """

    def __init__(self, names: Sequence[str], each: int) -> None:
        self.names, self.each = tuple(names), each
        self._held: dict[Path, tuple[tuple[str, ...], int]] = {}

    @property
    def steps(self) -> int:
        """How many steps can hold some at a time."""
        return len(self.names) // self.each

    def take(self, holder: Path) -> dict[str, str]:
        """Give a step what is free; the variables that tell its command.

        Raises:
            RuntimeError: Too little is free.
        """
        taken = {name for names, _ in self._held.values() for name in names}
        free = [name for name in self.names if name not in taken]
        if len(free) < self.each:
            raise RuntimeError(f"{self.each} GPUs are needed for {holder.name}, of {len(self.names)} are free: {free}")
        ports = {port for _, port in self._held.values()}
        port = next(port for port in iter(free_port, None) if port not in ports)
        self._held[holder] = tuple(free[: self.each]), port
        return {
            "CUDA_VISIBLE_DEVICES": ",".join(free[: self.each]),
            "NPROC_PER_NODE": str(self.each),
            "PORT": str(port),
            "MASTER_PORT": str(port),
        }

    def give_back(self, holder: Path) -> None:
        """Free what a step has held."""
        self._held.pop(holder, None)
