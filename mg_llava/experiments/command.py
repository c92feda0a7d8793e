"""The command line of experiments."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mg_llava.experiments.entries import load_entries, merge_entries, read_runs
from mg_llava.experiments.gpus import processes_of, share_gpus
from mg_llava.experiments.grid import Grid, read_grid
from mg_llava.experiments.report import GridReport
from mg_llava.experiments.schedule import Schedule, check_command, hold, prepare_data
from mg_llava.experiments.steps import Run, plan_runs
from mg_llava.work.atomic import write_json
from mg_llava.work.interrupts import interrupt_at_termination
from mg_llava.work.numbers import whole

HELP = """Train and evaluate a grid of configs and seeds, several at a time; table, plot and JSON of what they reach.

Finished steps are not repeated while config, data and weights stay the same; after a kill the same command goes on.

Examples:
    python tools/run_experiments.py data/nano/grid.py
    python tools/run_experiments.py data/nano/grid.py --rows low_only full --seeds 0 --jobs 1
    python tools/run_experiments.py data/nano/grid.py --quick          # a few steps of each row, for a look at the way
    python tools/run_experiments.py data/nano/grid.py --report-only

With GPUs each step has its own: --gpus-per-run of those in CUDA_VISIBLE_DEVICES, or of all.

Exit status: 0 all runs are done, 1 a step failed or something does not fit, 2 wrong arguments, 130 stopped.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of :func:`run`."""
    add = parser.add_argument
    add("grid", type=Path, help=".json or .py file; see mg_llava/experiments/grid.py")
    add("--rows", nargs="+", default=[], metavar="NAME", help="default: all")
    add("--seeds", nargs="+", type=whole(0), default=[], help="default: the grid's")
    add("--jobs", type=whole(), default=2, help="steps at a time (default: %(default)s)")
    add("--threads", type=whole(0), default=1, help="CPU threads of each, 0 for all (default: %(default)s)")
    add("--gpus-per-run", type=whole(), metavar="N", help="GPUs of each step (default: NPROC_PER_NODE, or 1)")
    add("--quick", action="store_true", help="the smaller grid of its key 'quick'")
    add("--report-only", action="store_true", help="write the report of what is there, run nothing")
    add("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="for all rows; results stay apart")
    add("--work-dir", type=Path, help="folder of the runs (default: work_dirs/experiments/NAME)")


def run(arguments: argparse.Namespace, say: Callable[[str], None] = print) -> int:
    """Do what is not done yet, and report; gives the exit status."""
    interrupt_at_termination()
    try:
        whole, each = read_grid(arguments.grid), arguments.gpus_per_run
        whole = whole.as_quick() if arguments.quick else whole
        if arguments.cfg_options:
            whole = whole.with_options(arguments.cfg_options)
            whole = replace(whole, name=f"{whole.name}-changed", results=None, report=None)
        folder = arguments.work_dir or Path("work_dirs", "experiments", whole.name)
        chosen = whole.only(arguments.rows, arguments.seeds)
        load_entries(results_of(whole, folder))  # damaged ones are named before anything runs
        failures: list[str] = []
        if not arguments.report_only:
            failures = run_grid(chosen, folder, arguments.jobs, arguments.threads, say, each)[1]
        command = f"python tools/run_experiments.py {arguments.grid}"
        faults = report(whole, chosen, folder, command, say, processes_of(each))
    except (OSError, ValueError, RuntimeError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on where this one ended\n")
        return 130
    for fault in faults:
        sys.stderr.write(f"error: {fault}\n")
    return 1 if failures or faults else 0


def run_grid(
    grid: Grid, folder: Path, jobs: int, threads: int, say: Callable[[str], None], each: int | None = None
) -> tuple[list[Run], list[str]]:
    """Do all steps of a grid that are not done.

    Args:
        grid: The grid.
        folder: Of its runs.
        jobs: Steps at a time; fewer where the GPUs are not enough.
        threads: CPU threads of each.
        say: Takes lines of progress.
        each: GPUs of each, where there are some.

    Returns:
        The runs, and messages about steps that failed.

    Raises:
        FolderInUseError: Another process works in the folder.
        RuntimeError: The data could not be made.
        ValueError: There are not so many GPUs.
    """
    gpus = share_gpus(each)
    for command in (grid.prepare, grid.train, grid.evaluate, *(row.evaluate for row in grid.rows)):
        if command:
            check_command(command)
    seeds = dict.fromkeys(str(seed) for _, seed in grid.runs())
    prepare = [word for part in grid.prepare for word in (seeds if part == "{seeds}" else [part])]
    with hold(folder) as held:
        prepare_data(prepare, folder, say, jobs * threads, held)  # nothing else runs meanwhile
        runs = plan_runs(grid, folder, processes_of(each))
        say(f"{sum(not run.is_done for run in runs)} of {len(runs)} runs to do; logs in {folder}")
        if gpus is not None:
            say(f"each step has {gpus.each} of the GPUs {', '.join(gpus.names)}; {gpus.steps} at a time at most")
        warm = grid.train == Grid.train  # others may need other imports
        return runs, Schedule(runs, jobs, threads, say, warm, gpus).run(held)


def results_of(grid: Grid, folder: Path) -> Path:
    """The file of a grid's results."""
    return Path(grid.results) if grid.results else folder / "results.json"


def report(
    whole: Grid, chosen: Grid, folder: Path, command: str, say: Callable[[str], None], processes: str = "1"
) -> list[str]:
    """Store the results of finished runs, and write the table and the plot of all that is stored.

    Args:
        whole: The grid.
        chosen: The part of it that was run.
        folder: Of its runs.
        command: How to measure anew.
        say: Takes the table.
        processes: How many of them share a training.

    Returns:
        Messages about metrics that finished runs lack.
    """
    path = results_of(whole, folder)
    done, faults = read_runs(_plan_known(chosen, folder, processes)[0], whole)
    entries = merge_entries(load_entries(path), done, whole)
    write_json(path, entries)
    seeds = sorted({entry["seed"] for entry in entries})
    runs, unknown = _plan_known(whole.only((), seeds), folder, processes)
    for message in unknown:
        say(message)
    found = GridReport(whole, entries, runs, command)
    files = found.write(folder)
    say(f"{found.markdown()}\n\nwrote {path}, {', '.join(map(str, files))}")
    return faults


def _plan_known(grid: Grid, folder: Path, processes: str) -> tuple[list[Run], list[str]]:
    """The runs of the rows whose leaves can be read, and words about the others."""
    runs: list[Run] = []
    unknown: list[str] = []
    for row in grid.rows:
        try:
            runs += plan_runs(replace(grid, rows=(row,)), folder, processes)
        except (OSError, ValueError) as error:
            unknown.append(f"row {row.name} cannot be planned, and what is stored of it counts as older: {error}")
    return runs, unknown
