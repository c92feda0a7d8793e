"""Run the steps of a grid, several at a time, each as a process with a log; a failed step ends its own run alone."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mg_llava.experiments import _leash
from mg_llava.experiments.gpus import GpuSlots
from mg_llava.experiments.steps import GridStep, Run, tail
from mg_llava.experiments.warm import WarmProcess, can_copy, import_first, is_python
from mg_llava.work.interrupts import uninterrupted
from mg_llava.work.lock import FolderInUseError, folder_lock

Say = Callable[[str], None]
_LOOK, _SHOW = 0.2, 15.0
"""Seconds between two looks at the processes, and between two lines of progress."""
_FREED = _leash.PATIENCE + _leash.LINGER + 5.0
"""Seconds after which the processes of a killed run have ended; some are for those that see to it."""
_KEPT = str(4 << 30)
"""Bytes of freed memory that a process keeps; glibc reads it, others do not."""


class _Started(NamedTuple):
    """A step that runs.

    Attributes:
        process: Its command.
        time: When that began.
        spent: Seconds of earlier starts.
        share: What these had done.
        log: Bytes of their log.
    """

    process: subprocess.Popen | WarmProcess
    time: float
    spent: float
    share: float
    log: int

    @property
    def passed(self) -> float:
        """Seconds of this start."""
        return time.monotonic() - self.time

    @property
    def seconds(self) -> float:
        """Those of all starts."""
        return self.spent + self.passed


class Schedule:
    """Steps to do.

    Args:
        runs: The runs; steps that are shared are done once, finished ones not at all.
        jobs: Processes at a time.
        threads: CPU threads of each.
        say: Takes lines of progress.
        warm: Start them as copies of a process that has imported what they need, where that is possible.
        gpus: Those of which each process has its own, so that there are no more of them than these allow.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        jobs: int,
        threads: int,
        say: Say,
        warm: bool = False,
        gpus: GpuSlots | None = None,
    ) -> None:
        self._steps = {step.folder: step for run in runs for step in run.steps}
        self._waiting = list({step.folder: step for run in runs for step in run.todo}.values())
        self._running: dict[Path, _Started] = {}
        self._warm, self._gpus = warm and can_copy(), gpus
        self._jobs = max(1, min(jobs, gpus.steps) if gpus else jobs)
        self._environment, self._say = environment(threads), say
        self._begin, self._shown = time.monotonic(), time.monotonic()
        self.failures: dict[Path, str] = {}

    def run(self, held: int) -> list[str]:
        """Do all steps; the processes end with this call, however it ends.

        Args:
            held: Descriptor of the folder's lock, which lasts as long as they do.

        Returns:
            Messages about steps that failed.
        """
        try:
            while self._waiting or self._running:
                for path in list(self._running):
                    self._look_at(self._steps[path])
                self._start(held)
                self._show()
                time.sleep(_LOOK)
        finally:
            self._end()
        return list(self.failures.values())

    def _end(self) -> None:
        processes = [started.process for started in self._running.values()]
        try:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait()
        finally:  # interrupted again
            for process in processes:
                if isinstance(process, WarmProcess):  # a leash sees that this one is gone
                    process.kill()
            self._note()

    def _note(self) -> None:
        """Keep what steps took that have not ended, for their next start."""
        for path, started in self._running.items():
            self._steps[path].note(started.seconds)

    def _start(self, held: int) -> None:
        """Start steps that can be started."""
        for step in self._in_order():
            if step.before is not None and step.before.folder in self.failures:
                self.failures[step.folder] = f"{step.title}: not started, as what it needs failed"
                self._waiting.remove(step)
            elif len(self._running) < self._jobs and (step.before is None or step.before.done):
                self._waiting.remove(step)
                if step.finish(step.spent, ended=False):  # it was killed after its last file
                    continue
                step.folder.mkdir(parents=True, exist_ok=True)
                if self._warm and is_python(step.command()):
                    self._warm = import_first(self._environment, step.log)
                    if not self._warm:
                        self._say(f"the process with imports has ended, see {step.log}; steps start without it")
                self._begin_step(step, held)

    @uninterrupted
    def _begin_step(self, step: GridStep, held: int) -> None:
        """Start a step and note it, so that it ends with this process in any case."""
        log = step.log.stat().st_size if step.log.is_file() else 0
        spent, share = step.spent, step.begun()
        self._running[step.folder] = _Started(self._process(step, held), time.monotonic(), spent, share, log)

    def _in_order(self) -> list[GridStep]:
        """Steps that wait. The last runs are begun before others go on, so that none of them is left to run alone."""
        after: dict[Path, int] = {}
        for step in reversed(self._waiting):
            if step.before is not None:
                after[step.before.folder] = max(after.get(step.before.folder, 0), 1 + after.get(step.folder, 0))
        counts = [after.get(step.folder, 0) for step in self._waiting]
        if counts.count(max(counts, default=0)) > self._jobs:
            return list(self._waiting)
        return sorted(self._waiting, key=lambda step: -after.get(step.folder, 0))

    def _process(self, step: GridStep, held: int) -> subprocess.Popen | WarmProcess:
        """The started command of a step."""
        command = step.command()
        own = {**self._environment, **(self._gpus.take(step.folder) if self._gpus else {})}
        if self._warm and is_python(command):
            try:
                return WarmProcess(command, own, step.log, held)
            except (EOFError, OSError) as error:  # it ended while it imported, or was ended
                self._warm = False
                self._say(f"the process with imports is gone ({error!r}); steps start without it")
        with step.log.open("ab") as log:
            return _leashed(command, env=own, stdout=log, stderr=log, stdin=subprocess.DEVNULL, pass_fds=[held])

    def _look_at(self, step: GridStep) -> None:
        started = self._running[step.folder]
        process = started.process
        if process.poll() is None:
            return
        process.wait()  # for what it has left
        del self._running[step.folder]
        if self._gpus:
            self._gpus.give_back(step.folder)
        if process.returncode == 0 and step.finish(started.seconds, ended=True):
            return
        step.note(started.seconds)
        ended = f"ended with status {process.returncode}" if process.returncode else "ended without its result"
        self.failures[step.folder] = f"{step.title}: {' '.join(step.command())} {ended}\n{explain(step.log)}"
        self._say(self.failures[step.folder])

    def _show(self) -> None:
        now = time.monotonic()
        if self._running and now - self._shown >= _SHOW:
            self._shown = now
            self._note()  # should this process be killed
            now_at = " | ".join(
                f"{self._steps[path].title} {self._steps[path].progress(started.log)[1]}"
                for path, started in self._running.items()
            )
            left = self.remaining()
            ready = sum(bool(step.done) for step in self._steps.values())
            known = "" if left is None else f", about {_clock(left)} to go"
            self._say(f"[{_clock(now - self._begin)}{known}] {ready} of {len(self._steps)} steps | {now_at}")

    def remaining(self) -> float | None:
        """Seconds to go, by what steps of each kind took or are about to take; None while nothing is known.

        As many steps as may run share the work, but those of a run come one after another.
        """
        took: dict[str, list[float]] = {}
        left: dict[Path, float] = {}
        for path, step in self._steps.items():
            started, seconds = self._running.get(path), step.done.get("seconds", 0.0)
            if started is not None:
                share = min(1.0, step.progress(started.log)[0])
                if share > started.share:  # by what this start has done
                    seconds = started.passed / (share - started.share)
                    left[path] = seconds * (1 - share)
            if seconds:
                took.setdefault(step.kind, []).append(seconds)
        if not took:
            return None
        means = {kind: sum(values) / len(values) for kind, values in took.items()}
        other = sum(means.values()) / len(means)
        todo = {step.folder: step for step in self._waiting} | {path: self._steps[path] for path in self._running}
        for path, step in todo.items():
            started = self._running.get(path)
            done, passed = (started.share, started.passed) if started else (step.begun(), 0.0)
            left.setdefault(path, max(0.0, means.get(step.kind, other) * (1 - done) - passed))
        chains = [sum(left[one.folder] for one in _chain(step) if one.folder in todo) for step in todo.values()]
        return max(sum(left[path] for path in todo) / self._jobs, *chains, 0.0)


def _chain(step: GridStep) -> Iterator[GridStep]:
    """A step and those that it needs, the last ones first."""
    yield step
    if step.before is not None:
        yield from _chain(step.before)


def prepare_data(command: Sequence[str], folder: Path, say: Say, threads: int, held: int) -> None:
    """Run the command that makes the data; its log is in ``folder``.

    Args:
        command: The command; nothing is done without one.
        folder: Of the runs.
        say: Takes lines of progress.
        threads: CPU threads it may use.
        held: Descriptor of the folder's lock, which lasts as long as the command.

    Raises:
        RuntimeError: It failed.
    """
    if not command:
        return
    log = folder / "prepare.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    say(f"data: {' '.join(command)}")
    started: list[subprocess.Popen] = []
    with log.open("wb") as out:
        try:
            _start_leashed(started, command, env=environment(threads), stdout=out, stderr=out, pass_fds=[held])
            status = started[0].wait()
        finally:
            for process in started:
                process.terminate()  # so that the command ends as well, which a killed leash would leave
                process.wait()
    if status:
        raise RuntimeError(f"{' '.join(command)} ended with status {status}\n{explain(log)}")
    say(tail(log, 2).strip())


def _leashed(command: Sequence[str], **settings: Any) -> subprocess.Popen:
    """The process of a started command that ends with this one; what is sent to all of a group does not meet it."""
    words = [sys.executable, _leash.__file__, str(os.getpid()), *command]
    return subprocess.Popen(words, start_new_session=True, **settings)


@uninterrupted
def _start_leashed(started: list[subprocess.Popen], command: Sequence[str], **settings: Any) -> None:
    """The same, noted before an interrupt can come."""
    started.append(_leashed(command, **settings))


def environment(threads: int) -> dict[str, str]:
    """Variables of the commands: this interpreter's folder comes first, as ``xtuner`` starts ``python`` from PATH."""
    count, folder = str(threads), str(Path(sys.executable).parent)
    own = {name: count for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")} if threads else {}
    return {
        **os.environ,
        **own,
        "PATH": os.pathsep.join([folder, os.environ.get("PATH", os.defpath)]),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONUNBUFFERED": "1",
        "MALLOC_MMAP_THRESHOLD_": _KEPT,  # what a step of a training gives back serves the next one
        "MALLOC_TRIM_THRESHOLD_": _KEPT,
        "TOKENIZERS_PARALLELISM": "false",
    }


def check_command(command: Sequence[str]) -> None:
    """See that a command exists, before anything is run.

    Raises:
        FileNotFoundError: It does not.
    """
    if shutil.which(command[0], path=environment(0)["PATH"]) is None:
        raise FileNotFoundError(f"the command {command[0]} is neither beside {sys.executable} nor in PATH; install it")


def explain(log: Path) -> str:
    """The end of a log, for messages."""
    return f"The end of {log}:\n" + "\n".join("    " + line for line in tail(log, 25).splitlines())


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[int]:
    """Lock a folder, which processes of a killed run may hold for some seconds more; gives the lock's descriptor.

    Raises:
        FolderInUseError: Another process runs steps in the folder.
    """
    end = time.monotonic() + _FREED
    with contextlib.ExitStack() as stack:
        while True:
            try:
                held = stack.enter_context(folder_lock(folder, "run of experiments"))
                break
            except FolderInUseError:
                if time.monotonic() > end:
                    raise
                time.sleep(_LOOK)
        yield held


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes:02d}:{rest:02d}"
