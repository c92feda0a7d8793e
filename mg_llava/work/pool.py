"""Jobs over processes, with a progress bar; what all jobs need is handed over once."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import torch
from tqdm import tqdm

Job = TypeVar("Job")
Result = TypeVar("Result")

_shared: Any = None


def run_jobs(
    function: Callable[[Any, Job], Result],
    jobs: Sequence[Job],
    sizes: Sequence[int],
    shared: Any,
    workers: int,
    title: str,
    show_progress: bool = True,
) -> Iterator[Result]:
    """Call ``function(shared, job)`` for every job; results in the order of the jobs.

    Args:
        function: A function of a module.
        jobs: Its second arguments.
        sizes: Number of items of each job, for the progress bar.
        shared: Its first argument. Where processes are forked, it is not copied.
        workers: Number of processes; 1 for this one alone.
        title: Of the progress bar.
        show_progress: Whether there is one, on stderr.

    Raises:
        RuntimeError: A process was killed.
    """
    with tqdm(total=sum(sizes), desc=title, unit="", unit_scale=True, disable=not show_progress) as bar:
        results = _in_pool(function, jobs, shared, workers) if workers > 1 else _here(function, jobs, shared)
        for size, result in zip(sizes, results, strict=True):
            yield result
            bar.update(size)


def split(count: int, size: int) -> list[tuple[int, int]]:
    """Ranges (start, stop) of at most ``size`` that cover ``count``."""
    return [(start, min(start + size, count)) for start in range(0, count, size)]


def available_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _here(function: Callable[[Any, Job], Result], jobs: Sequence[Job], shared: Any) -> Iterator[Result]:
    for job in jobs:
        yield function(shared, job)


def _in_pool(
    function: Callable[[Any, Job], Result], jobs: Sequence[Job], shared: Any, workers: int
) -> Iterator[Result]:
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    context = multiprocessing.get_context(method)
    pool = ProcessPoolExecutor(min(workers, max(1, len(jobs))), context, _start_worker, (shared,))
    try:
        yield from pool.map(_call, [function] * len(jobs), jobs)
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker process was killed, perhaps for its memory; run again with --workers 1 and it goes on from here"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(shared: Any) -> None:
    global _shared
    _shared = shared
    # Ctrl-C is for the process that collects the results.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Threads of a forked process would wait for those that its parent had, in torch and in the tokenizers.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)


def _call(function: Callable[[Any, Job], Result], job: Job) -> Result:
    return function(_shared, job)
