"""Time and memory of work in processes of its own, so that one measurement does not disturb the next."""

import contextlib
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

MB = 1e6


def run_child(function: str, *arguments: Any) -> dict[str, Any]:
    """Call a function in a new interpreter.

    Args:
        function: Dotted name; it returns a dict of plain values.
        *arguments: Plain values.

    Raises:
        RuntimeError: The function failed.
    """
    module, name = function.rsplit(".", 1)
    code = f"import json, sys, {module} as m; print(json.dumps(m.{name}(*json.loads(sys.argv[1]))))"
    command = [sys.executable, "-c", code, json.dumps(arguments)]
    # threads that wait for each other sleep: on a busy machine spinning takes the time of the one waited for
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONPATH": _search_path()}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{function} failed with status {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def peak_memory() -> float:
    """Largest resident memory of this process so far, MB; mapped files are part of it."""
    return _status("VmHWM")


def memory_of(processes: Iterable[int]) -> dict[str, float]:
    """Memory that processes hold together, MB, pages that they share counted once.

    Returns:
        ``own``, which cannot be given back; and ``mapped``, parts of files, which the system drops when it needs room.
    """
    own = mapped = 0
    for process in processes:
        with open(f"/proc/{process}/smaps_rollup") as file:
            sizes = {line.split(":")[0]: int(line.split()[1]) for line in file if line.endswith("kB\n")}
        own += sizes["Pss_Anon"] + sizes["Pss_Shmem"]
        mapped += sizes["Pss_File"]
    return {"own": own * 1024 / MB, "mapped": mapped * 1024 / MB}


@dataclass(frozen=True)
class Usage:
    """Time and memory that work took.

    Attributes:
        seconds: Wall clock.
        cpu_seconds: Of the processor, all threads together; hardly changes when others use the machine too.
        extra_mb: Largest memory meanwhile, above what was held before.
        peak_mb: Largest memory meanwhile: resident on a CPU, allocated on a GPU.
    """

    seconds: float
    cpu_seconds: float
    extra_mb: float
    peak_mb: float


def use(work: Callable[[], Any], device: str = "cpu") -> tuple[Any, Usage]:
    """Run ``work``; returns what it gives, and what it took.

    On a CPU memory is that of the process: measure one thing per process, because what was freed before may be
    taken again without being seen.
    """
    import torch  # not for those who measure without it

    cuda = torch.device(device).type == "cuda"
    gc.collect()
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / MB
    else:
        _reset_peak()
        before = _status("VmRSS")
    start, start_cpu = time.perf_counter(), time.process_time()
    result = work()
    if cuda:
        torch.cuda.synchronize()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    peak = torch.cuda.max_memory_allocated() / MB if cuda else peak_memory()
    return result, Usage(seconds, cpu_seconds, max(0.0, peak - before), peak)


def _reset_peak() -> None:
    """Forget the largest resident memory so far, where the system lets us."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def _status(key: str) -> float:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key)) * 1024 / MB


def _search_path() -> str:
    """The children import what this process imports."""
    return os.pathsep.join(path for path in sys.path if path)
