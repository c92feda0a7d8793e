"""Jobs over the processes of one machine; what all jobs need is handed over once."""

import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")

_AHEAD = 2
"""Jobs that wait or are done for each worker; results of more would pile up where their taker is slow."""
_LOOK = 1.0
"""Seconds between two looks of a worker at its parent."""

_shared: Any = None


class Pool:
    """Worker processes, which are started by the first job.

    Args:
        shared: First argument of all functions; not copied where processes are forked. What a function changes in it
            stays in its process.
        workers: Number of processes; 1 or 0 for this one alone. Without ``torchrun`` each is the local rank of its
            own number, so that ``pick_device`` gives each its GPU.
    """

    def __init__(self, shared: Any, workers: int) -> None:
        self._shared, self._workers = shared, workers
        self._pool: ProcessPoolExecutor | None = None
        if workers > 1:
            method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
            context = multiprocessing.get_context(method)
            # forked processes end without the steps that remove temporary files of theirs, such as torch's
            self._folder = tempfile.TemporaryDirectory(prefix="workers-")
            about = shared, context.Value("i", 0), os.getpid(), self._folder.name
            self._pool = ProcessPoolExecutor(workers, context, _start_worker, about)

    def run(self, function: Callable[[Any, _Job], _Result], jobs: Iterable[_Job]) -> Iterator[_Result]:
        """Call ``function(shared, job)``, a function of a module, for every job; results in the order of the jobs.

        The next jobs are asked for as workers become free.

        Raises:
            RuntimeError: A process was killed.
        """
        if self._pool is None:
            for job in jobs:
                yield function(self._shared, job)
            return
        waiting: deque[Future[_Result]] = deque()
        try:
            for job in jobs:
                waiting.append(self._pool.submit(_call, function, job))
                if len(waiting) > _AHEAD * self._workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a worker process was killed, perhaps for its memory; run again with fewer workers; what is done is "
                "kept"
            ) from error
        finally:
            for future in waiting:
                future.cancel()

    def close(self) -> None:
        """Let the processes go; waits for the jobs that they are at."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._folder.cleanup()

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def run_jobs(
    function: Callable[[Any, _Job], _Result], jobs: Iterable[_Job], shared: Any, workers: int
) -> Iterator[_Result]:
    """The results of one function from a :class:`Pool` of its own."""
    with Pool(shared, workers) as pool:
        yield from pool.run(function, jobs)


def run_batches(
    function: Callable[[Any, Sequence[_Job]], _Result],
    shared: Any,
    items: Sequence[_Job],
    size: int,
    workers: int,
    progress: Callable[[int], object] | None = None,
) -> Iterator[_Result]:
    """The results of one function of batches of items; ``progress`` gets the size of each that was taken."""
    batches = [items[start:stop] for start, stop in split(len(items), size)]
    for batch, result in zip(batches, run_jobs(function, batches, shared, workers), strict=True):
        yield result
        if progress is not None:
            progress(len(batch))


def split(count: int, size: int) -> list[tuple[int, int]]:
    """Ranges (start, stop) of at most ``size`` that cover ``count``."""
    return [(start, min(start + size, count)) for start in range(0, count, size)]


def available_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_worker(shared: Any, started: Any, parent: int, folder: str) -> None:
    global _shared
    _shared = shared
    tempfile.tempdir = os.environ["TMPDIR"] = folder
    with started.get_lock():
        os.environ.setdefault("LOCAL_RANK", str(started.value))
        started.value += 1
    threading.Thread(target=_leave_with, args=(parent, folder), daemon=True).start()
    # Ctrl-C is for the process that collects the results.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Threads of a forked process would wait for those that its parent had, in torch and in the tokenizers.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def _leave_with(parent: int, folder: str) -> None:
    """End this worker when its parent is gone, whoever killed it."""
    while os.getppid() == parent:
        time.sleep(_LOOK)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _call(function: Callable[[Any, _Job], _Result], job: _Job) -> _Result:
    return function(_shared, job)
