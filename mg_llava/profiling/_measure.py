"""What all benchmarks share: work in processes of its own, ways that take turns, comparisons, tables."""

import contextlib
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
NANO = ROOT / "data" / "nano"
MB = 1e6


def take_turns(
    ways: Mapping[str, Callable[[], Any]], count: int, rounds: int
) -> tuple[dict[str, Any], dict[str, float]]:
    """What each way gives, and its best rate; ways take turns, so that a busy machine slows all of them.

    Args:
        ways: Ways of the same work, by name.
        count: Pieces of work that a way does.
        rounds: How often each is done.

    Returns:
        Results of the last round, and pieces a second of the best one, by name.
    """
    results, rates = {}, dict.fromkeys(ways, 0.0)
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            results[name] = way()
            rates[name] = max(rates[name], count / (time.perf_counter() - start))
    return results, rates


def measure_ways(function: str, ways: Mapping[str, Any], *arguments: Any) -> dict[str, Any]:
    """What a function gives for each way, in processes of their own; arguments as for :func:`run_child`."""
    found = {}
    for name, way in ways.items():
        print(f"measuring: {name}", file=sys.stderr, flush=True)
        found[name] = run_child(function, asdict(way) if is_dataclass(way) else way, *arguments)  # type: ignore[arg-type]
    return found


def compare_costs(ours: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, float]:
    """``speedup``, ``speedup_cpu`` and ``memory_ratio`` of our way, and the largest relative differences."""
    found = {
        "speedup": other["seconds"] / ours["seconds"],
        "speedup_cpu": other["cpu_seconds"] / max(ours["cpu_seconds"], 1e-6),
        "memory_ratio": other["peak_mb"] / ours["peak_mb"],
    }
    for key, name in (("losses", "error"), ("gradient_norms", "gradient_error")):
        if key in ours:
            found[name] = difference(ours[key], other[key])
    return rounded(found)


def difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Largest relative difference."""
    return max(abs(a - b) / max(abs(b), 1e-12) for a, b in zip(ours, theirs, strict=True))


def rounded(value: Any, digits: int = 4) -> Any:
    """Nested values with numbers of so many decimals, or digits where they are small."""
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item, digits) for item in value]
    if isinstance(value, float):
        return round(value, digits) if abs(value) >= 1 else float(f"{value:.{digits}g}")
    return value


def print_table(rows: Sequence[Sequence[Any]]) -> None:
    """Columns, the first one to the left; numbers with four digits."""
    texts = [[_text(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    for head, *cells in texts:
        line = "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
        print(f"{head:<{widths[0]}}{line}")


def _text(cell: Any) -> str:
    if not isinstance(cell, float):
        return str(cell)
    return f"{cell:.0f}" if abs(cell) >= 1000 else f"{cell:.4g}"


def make_miniature(folder: Path, **sizes: int) -> None:
    """Data of the miniature; ``sizes`` are arguments of data/nano/make_data.py.

    Raises:
        RuntimeError: It cannot be made.
    """
    options = [f"--{part}={sizes.get(part, 0)}" for part in ("stage1", "stage2", "heldout")]
    command = [sys.executable, str(NANO / "make_data.py"), "--out", str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"data/nano/make_data.py failed: {done.stderr[-2000:]}")


def run_child(function: str, *arguments: Any) -> Any:
    """Call a function in a new interpreter.

    Args:
        function: Dotted name; it returns plain values.
        *arguments: Plain values.

    Raises:
        RuntimeError: The function failed.
    """
    module, name = function.rsplit(".", 1)
    code = f"import json, sys, {module} as m; print(json.dumps(m.{name}(*json.loads(sys.argv[1]))))"
    command = [sys.executable, "-c", code, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=child_environment())
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


def child_environment() -> dict[str, str]:
    """Environment of processes that import what this process imports."""
    # threads that wait for each other sleep: on a busy machine spinning takes the time of the one waited for
    return {
        "OMP_WAIT_POLICY": "PASSIVE",
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
