"""All benchmarks, one after the other in processes of their own; the whole of them writes the performance page."""

import argparse
import contextlib
import json
import os
import platform
import re
import resource
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from mg_llava.profiling._measure import ROOT, child_environment, print_table
from mg_llava.work.atomic import write_between_marks

HELP = "all benchmarks: every table, with machine, versions and date; the whole of them into the performance page"

EVERYTHING = (
    "train --boxes 100",
    "train --vision nano --stage 2 --batch-size 8 --boxes 20 --text 120 --steps 3 --threads 1 --checkpointing off "
    "--alone",
    "compare",
    "boxes",
    "packing",
    "launches --boxes 0 100",
    "scaling --axes boxes pictures --steps 2",
    "processes",
    "feature-cache --vision paper --boxes 100 --batch-size 1 --steps 3 --warmup 1",
    "data",
    "boxstore --records 300000",
    "records --records 100000 10000000",
    "boxes-pipeline",
    "eval",
    "serve --threads 1 --questions 48 --rounds 1",
    "checkpoint",
    "startup --rounds 1",
)
"""Every benchmark at a size that speaks for larger ones, in 20 minutes on two cores."""
QUICK = (
    "train --vision nano --boxes 20 --batch-size 2 --text 60",
    "compare --text 20 --steps 1 --boxes 0 10 --shapes lora",
    "boxes --canvas 384 --rounds 1",
    "packing --samples 5000 --steps 1 --batch-size 4",
    "launches --batch-size 4 --boxes 0 100",
    "scaling --axes boxes --boxes-values 0 20 100 --batch-size 1 --text 60 --steps 1",
    "feature-cache --steps 1 --warmup 1 --dtypes int8",
    "data --pictures 18 --rounds 1",
    "boxstore --records 20000",
    "records --records 20000",
    "boxes-pipeline --pictures 8 --rounds 1",
    "eval --pictures 6 --rounds 1 --batch-size 16",
    "serve --questions 6 --clients 3 --rounds 1",
    "checkpoint --size 100",
    "startup --rounds 1",
    "processes --steps 1 --rounds 1 --batch-size 2 --text 60",
)
"""Every benchmark, as small as it says something."""

_MAIN = "import sys; from mg_llava.commands.benchmark import main; sys.exit(main())"
_PACKAGES = ("torch", "torchvision", "transformers", "xtuner", "mmengine", "timm", "deepspeed", "numpy", "pillow")


# DeepSpeed's and mmengine's loggers write to standard output: "[2026-11-30 ...] [INFO]", "11/30 ... - mmengine - INFO"
_LOGGED = re.compile(r"\[\d{4}-\d\d-\d\d [^]]*\] \[[A-Z]+\]|\d\d/\d\d \d\d:\d\d:\d\d - \w+ - [A-Z]+ - ")


class Measured(NamedTuple):
    """One benchmark."""

    command: str
    table: str
    result: dict[str, Any] | None
    """None where it failed; the table is its error then."""
    seconds: float
    cpu_seconds: float
    """Of all its processes: what a busy machine does not change much."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command line."""
    parser.add_argument("--quick", action="store_true", help="every benchmark at its smallest, minutes in all")
    parser.add_argument("--only", nargs="+", default=[], metavar="BENCHMARK", help="these alone (default: all)")
    parser.add_argument("--page", type=Path, help="file whose tables are written (whole runs: PERFORMANCE.md)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, print every table, and write the page.

    Returns:
        ``results`` by command, ``machine``, ``versions``, ``date`` and ``seconds``.

    Raises:
        ValueError: ``--only`` names no benchmark.
        RuntimeError: A benchmark failed; the others were measured and printed.
    """
    commands = [one for one in (QUICK if args.quick else EVERYTHING) if not args.only or one.split()[0] in args.only]
    known = {one.split()[0] for one in EVERYTHING}
    if unknown := sorted(set(args.only) - known):
        raise ValueError(f"there is no benchmark {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    page = args.page or (None if args.quick or args.only else ROOT / "PERFORMANCE.md")
    about = describe_setup()
    found = [_measure(command) for command in commands]
    print()
    rows = [(one.command, one.seconds, one.cpu_seconds, _gain(one)) for one in found]
    print_table([("benchmark", "seconds", "CPU s", "times faster"), *rows])
    if page is not None:
        write_between_marks(page, describe_tables(about, found), "benchmarks")
    if failed := [one.command for one in found if one.result is None]:
        raise RuntimeError(f"these failed: {'; '.join(failed)}")
    results = {one.command: one.result for one in found}
    return {**about, "results": results, "seconds": round(sum(one.seconds for one in found), 1), "quick": args.quick}


def describe_setup() -> dict[str, Any]:
    """``machine``, ``versions`` of what counts, and ``date``."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    cpu, memory = platform.machine(), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo") as file:
        cpu = next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    machine = f"{len(os.sched_getaffinity(0))} cores of {cpu}, {memory:.0f} GiB, {_gpu()}"
    return {"machine": machine, "versions": versions, "date": time.strftime("%Y-%m-%d")}


def describe_tables(about: dict[str, Any], found: list[Measured]) -> str:
    """Markdown of all tables."""
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    blocks = [f"Measured on {about['date']}: {about['machine']}; {versions}."]
    blocks += [f"`python tools/benchmark.py {one.command}`\n\n```\n{one.table}\n```" for one in found]
    return "\n\n".join(blocks)


def _measure(command: str) -> Measured:
    """Run one benchmark, and print what it prints."""
    print(f"\n== {command}", flush=True)
    start, before = time.perf_counter(), _processor_seconds()
    line = [sys.executable, "-c", _MAIN, *command.split()]
    done = subprocess.run(line, capture_output=True, text=True, env=child_environment())
    seconds, cpu_seconds = time.perf_counter() - start, _processor_seconds() - before
    table, _, last = done.stdout.strip().rpartition("\n")
    result = None
    if done.returncode == 0:
        with contextlib.suppress(ValueError):  # it ended without a result
            result = json.loads(last)
    if result is None:
        end = f"{done.stdout.strip()}\n{done.stderr.strip()}".strip()
        table = f"exit status {done.returncode}\n{end[-2000:]}"
    table = _tidy(table)
    print(table, flush=True)
    return Measured(command, table, result, seconds, cpu_seconds)


def _tidy(text: str) -> str:
    """What a benchmark printed without lines of loggers, and with paths of this checkout as one types them."""
    lines = [line for line in text.replace(f"{ROOT}/", "").splitlines() if not _LOGGED.match(line)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _processor_seconds() -> float:
    """Of all processes that have ended below this one."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _gain(one: Measured) -> str:
    """What a benchmark says of both ways in one number."""
    if one.result is None:
        return "failed"
    return f"{one.result['speedup']:.3g}" if one.result.get("speedup") else "-"


def _gpu() -> str:
    import torch  # not for those who only read tables

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
