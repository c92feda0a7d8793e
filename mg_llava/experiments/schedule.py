"""Run the steps of a grid, several at a time, each as a process with a log; a failed step ends its own run alone."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mg_llava.experiments import _leash
from mg_llava.experiments.steps import GridStep, Run, tail
from mg_llava.experiments.warm import WarmProcess, can_copy, is_python
from mg_llava.work.lock import FolderInUseError, folder_lock

Say = Callable[[str], None]
_LOOK, _SHOW = 0.2, 15.0
"""Seconds between two looks at the processes, and between two lines of progress."""
_FREED = 3 * _leash.LOOK + _leash.PATIENCE
"""Seconds after which the processes of a killed run have ended."""
_KEPT = str(4 << 30)
"""Bytes of freed memory that a process keeps; glibc reads it, others do not."""


class Schedule:
    """Steps to do.

    Args:
        runs: The runs; steps that are shared are done once, finished ones not at all.
        jobs: Processes at a time.
        threads: CPU threads of each.
        say: Takes lines of progress.
        warm: Start them as copies of a process that has imported what they need, where that is possible.
    """

    def __init__(self, runs: Sequence[Run], jobs: int, threads: int, say: Say, warm: bool = False) -> None:
        self._steps = {step.folder: step for run in runs for step in run.steps}
        self._waiting = list({step.folder: step for run in runs for step in run.todo}.values())
        self._running: dict[Path, tuple[subprocess.Popen | WarmProcess, float]] = {}
        self._warm = warm and can_copy()
        self._jobs, self._environment, self._say = max(1, jobs), environment(threads), say
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
        processes = [process for process, _ in self._running.values()]
        for process in processes:
            process.terminate()
        try:
            for process in processes:
                process.wait()
        finally:  # interrupted again
            for process in processes:
                if isinstance(process, WarmProcess):  # the others end with this one
                    process.kill()

    def _start(self, held: int) -> None:
        """Start steps that can be started."""
        for step in self._in_order():
            if step.before is not None and step.before.folder in self.failures:
                self.failures[step.folder] = f"{step.title}: not started, as what it needs failed"
                self._waiting.remove(step)
            elif len(self._running) < self._jobs and (step.before is None or step.before.done):
                self._waiting.remove(step)
                if step.finish(0.0):  # it was killed after its last file
                    continue
                step.folder.mkdir(parents=True, exist_ok=True)
                self._running[step.folder] = self._process(step, held), time.monotonic()

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
        if self._warm and is_python(command):
            try:
                return WarmProcess(command, self._environment, step.log, held)
            except (EOFError, OSError) as error:  # it ended while it imported, or was ended
                self._warm = False
                self._say(f"the process with imports is gone ({error!r}); steps start without it")
        leashed, devnull = [sys.executable, _leash.__file__, *command], subprocess.DEVNULL
        with step.log.open("ab") as log:
            return subprocess.Popen(
                leashed, env=self._environment, stdout=log, stderr=log, stdin=devnull, pass_fds=[held]
            )

    def _look_at(self, step: GridStep) -> None:
        process, begin = self._running[step.folder]
        if process.poll() is None:
            return
        del self._running[step.folder]
        if process.returncode == 0 and step.finish(time.monotonic() - begin):
            return
        ended = f"ended with status {process.returncode}" if process.returncode else "ended without its result"
        self.failures[step.folder] = f"{step.title}: {' '.join(step.command())} {ended}\n{explain(step.log)}"
        self._say(self.failures[step.folder])

    def _show(self) -> None:
        now = time.monotonic()
        if self._running and now - self._shown >= _SHOW:
            self._shown = now
            now_at = " | ".join(
                f"{self._steps[path].title} {self._steps[path].progress()[1]}" for path in self._running
            )
            left = self.remaining()
            ready = sum(bool(step.done) for step in self._steps.values())
            known = "" if left is None else f", about {_clock(left)} to go"
            self._say(f"[{_clock(now - self._begin)}{known}] {ready} of {len(self._steps)} steps | {now_at}")

    def remaining(self) -> float | None:
        """Seconds to go, by what steps of each kind took or are about to take; None while nothing is known."""
        seconds: dict[str, list[float]] = {}
        passed = {path: time.monotonic() - begin for path, (_, begin) in self._running.items()}
        for path, step in self._steps.items():
            share = step.progress()[0] if path in passed else 0.0
            took = step.done.get("seconds", 0.0) or (passed[path] / share if share else 0.0)
            if took:
                seconds.setdefault(step.kind, []).append(took)
        if not seconds:
            return None
        means = {kind: sum(values) / len(values) for kind, values in seconds.items()}
        other = sum(means.values()) / len(means)
        todo = [*self._waiting, *(self._steps[path] for path in self._running)]
        return sum(max(0.0, means.get(s.kind, other) - passed.get(s.folder, 0.0)) for s in todo) / self._jobs


def prepare_data(command: Sequence[str], folder: Path, say: Say, threads: int = 1) -> None:
    """Run the command that makes the data, in so many threads; its log is in ``folder``.

    Raises:
        RuntimeError: It failed.
    """
    if not command:
        return
    log = folder / "prepare.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    say(f"data: {' '.join(command)}")
    with log.open("wb") as out:
        leashed = [sys.executable, _leash.__file__, *command]
        process = subprocess.Popen(leashed, env=environment(threads), stdout=out, stderr=out)
        try:
            status = process.wait()
        finally:
            process.terminate()  # so that the command ends as well, which a killed leash would leave
            process.wait()
    if status:
        raise RuntimeError(f"{' '.join(command)} ended with status {status}\n{explain(log)}")
    say(tail(log, 2).strip())


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
