"""Saving: how long training stands still for a checkpoint, with mmengine's own way beside it."""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from mg_llava.profiling._measure import print_table, rounded, run_child

HELP = "saving: seconds that training waits for a checkpoint, and peak memory, with mmengine's way beside it"

_HERE = "mg_llava.profiling.checkpoint"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command line."""
    parser.add_argument("--size", type=int, default=1000, help="MB of weights and optimizer (default: %(default)s)")
    parser.add_argument("--step", type=float, default=3.9, help="seconds of a training step (default: %(default)s)")
    parser.add_argument("--interval", type=int, default=500, help="steps between two saves (default: %(default)s)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, and print a table.

    Returns:
        ``speedup`` of the wait, ``memory_ratio`` of the peaks (mmengine's to ours), and for each way ``waits_s``,
        ``written_s``, ``peak_mb`` and ``share``, the wait's part of a run with such steps.
    """
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as folder:
        found = {way: run_child(f"{_HERE}.measure_save", way, args.size, folder) for way in ("mmengine", "background")}
    for usage in found.values():
        usage["share"] = usage["waits_s"] / (usage["waits_s"] + args.step * args.interval)
    columns = ("waits_s", "written_s", "peak_mb", "share")
    print_table([("way", *columns), *((way, *(usage[name] for name in columns)) for way, usage in found.items())])
    theirs, ours = found["mmengine"], found["background"]
    return {
        "speedup": round(theirs["waits_s"] / ours["waits_s"], 2),
        "memory_ratio": round(theirs["peak_mb"] / ours["peak_mb"], 2),
        "size_mb": args.size,
        **rounded(found),
    }


def measure_save(way: str, size: int, folder: str) -> dict[str, float]:
    """One save of ``size`` MB; for ``run_child``."""
    import torch
    from mmengine.runner.checkpoint import save_checkpoint

    from mg_llava.engine.saving import Writing, set_aside, write_files
    from mg_llava.profiling._measure import peak_memory

    content = {"state_dict": {str(index): torch.rand(2_500_000) for index in range(max(size // 10, 1))}}
    path = Path(folder) / f"{way}.pth"
    start = time.perf_counter()
    if way == "mmengine":
        save_checkpoint(content, str(path))
        waited = time.perf_counter() - start
    else:
        writings = [Writing(content, path)]
        if not set_aside(writings):
            raise MemoryError(f"no room for a copy of {size} MB; choose a smaller --size")
        waited = time.perf_counter() - start
        write_files(writings)
    written = time.perf_counter() - start
    path.unlink()
    return {"waits_s": waited, "written_s": written, "peak_mb": peak_memory()}
