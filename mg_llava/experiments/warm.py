"""Start commands of Python as copies of a process that has imported what they need, which takes seconds of each.

A copy has a session and a log of its own, and ends with the process that asked for it, as with ``_leash``. A GPU
cannot be used in a copy once a library has looked for it, so they are for the CPU alone.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, reduction, resource_tracker
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from mg_llava.experiments import _leash
from mg_llava.work.interrupts import uninterrupted
from mg_llava.work.lock import process_fields

MODULES = (
    *("xtuner.tools.train", "timm", "open_clip", "peft", "transformers.models.auto.modeling_auto"),
    *("transformers.models.clip.modeling_clip", "transformers.models.llama.modeling_llama"),
)
"""What is imported once. None of this package: some of ours acts when it is imported, by the command that it is in."""
_GPUS = ("/dev/nvidiactl", "/dev/nvmap", "/dev/dxg", "/dev/kfd", "/dev/davinci_manager")
_CONTEXT = multiprocessing.get_context("forkserver")
_ready: set[int] = set()
"""Numbers of the processes whose imports are done."""
_LOST = 255
"""Exit status that is said of all copies when the process with the imports is gone."""


def can_copy() -> bool:
    """Whether this is Linux without a GPU."""
    return sys.platform == "linux" and not any(Path(name).exists() for name in _GPUS)


def is_python(command: Sequence[str]) -> bool:
    """Whether a command is a script or module for this Python."""
    if command[0] not in ("python", sys.executable) or len(command) < 2:
        return False
    return len(command) > 2 if command[1] == "-m" else not command[1].startswith("-")


class WarmProcess:
    """A copy that runs a command; of the interface of ``subprocess.Popen`` what a schedule needs.

    Args:
        command: Python, and a file or ``-m`` and a module, and their arguments.
        environment: Variables; those that libraries read when they are loaded are as in the first call of a process.
        log: Gets what it prints.
        held: Descriptor of a lock that lasts as long as the command.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path, held: int) -> None:
        _start_imports(environment, log)
        arguments = (list(command[1:]), dict(environment), str(log), _Held(held))
        self._process = _CONTEXT.Process(target=_run, args=arguments)
        self._process.start()
        assert self._process.pid is not None
        self._pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        status = self._process.exitcode
        return None if status == _LOST and self._is_there() else status

    def poll(self) -> int | None:
        """The same."""
        return self.returncode

    def terminate(self) -> None:
        """Ask the command and what it has started to end."""
        self._signal(signal.SIGTERM)

    def wait(self) -> None:
        """Wait for the end of what was asked to end, not for ever."""
        _leash.see_to_end(self._pid, lambda: self.returncode is not None)
        self.kill()
        self._process.join()

    def kill(self) -> None:
        """End the command and what it has started."""
        self._signal(signal.SIGKILL)

    def _is_there(self) -> bool:
        """Whether it runs; one that nobody waits for when it has ended does not."""
        fields = process_fields(self._pid)
        return bool(fields) and fields[0] not in "ZX"

    def _signal(self, number: int) -> None:
        if self.returncode is None:
            with suppress(ProcessLookupError):  # it has just ended
                own = os.getpgid(self._pid) == self._pid  # else it is about to have a group
                (os.killpg if own else os.kill)(self._pid, number)


def import_first(environment: Mapping[str, str], log: Path) -> bool:
    """Wait for the imports, as the start of the first copy would; but this can be interrupted.

    Args:
        environment: Variables, see :class:`WarmProcess`.
        log: Gets what is said meanwhile.

    Returns:
        Whether they went well.
    """
    _start_imports(environment, log)
    server: Any = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    if server not in _ready:
        thread = threading.Thread(target=_copy_nothing, args=(server,), daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(_leash.LOOK)
    return server in _ready


def _copy_nothing(server: int) -> None:
    with suppress(EOFError, OSError):  # the process has ended while it imported
        process = _CONTEXT.Process(target=int)
        process.start()
        process.join()
        _ready.add(server)


@uninterrupted
def _start_imports(environment: Mapping[str, str], log: Path) -> None:
    """Start the process with the imports, unless it runs."""
    _CONTEXT.set_forkserver_preload(list(MODULES))
    resource_tracker.ensure_running()  # it would let Ctrl-C through again
    with _variables(environment), _without_interrupts(), _said_in(log):
        forkserver.ensure_running()


class _Held:
    """A descriptor that a copy gets as well."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __reduce__(self) -> tuple:
        return _hold, (reduction.DupFd(self.descriptor),)


def _hold(given: Any) -> int:
    return given.detach()


@contextmanager
def _variables(environment: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Without Ctrl-C, also for what is started: a terminal sends it to all, and imports must not see it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _said_in(log: Path) -> Iterator[None]:
    """With the words of what is started in a log: libraries say much when they are imported."""
    sys.stdout.flush()
    sys.stderr.flush()
    before = [(number, os.dup(number)) for number in (1, 2)]
    out = _open(log)
    try:
        for number, _ in before:
            os.dup2(out, number)
        yield
    finally:
        for number, kept in before:
            os.dup2(kept, number)
            os.close(kept)
        os.close(out)


def _open(log: str | Path) -> int:
    return os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)


def _run(arguments: list[str], environment: dict[str, str], log: str, held: int) -> None:
    """Be the command."""
    os.setsid()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.set_inheritable(held, True)  # what it starts holds the lock as well
    out = _open(log)
    os.dup2(out, 1)
    os.dup2(out, 2)
    threading.Thread(target=_end_with_starter, daemon=True).start()
    tracker: Any = resource_tracker._resource_tracker  # type: ignore[attr-defined]
    tracker._fd = tracker._pid = None  # it starts one of its own, whose words about what was left are in the log
    os.environ.clear()
    os.environ.update(environment)
    threads = environment.get("OMP_NUM_THREADS", "")
    if threads.isdecimal() and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(threads))
    try:
        if arguments[0] == "-m":
            sys.argv = arguments[1:]
            sys.path[0] = os.getcwd()
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = arguments
            sys.path[0] = str(Path(arguments[0]).resolve().parent)
            runpy.run_path(str(Path(arguments[0]).absolute()), run_name="__main__")
    finally:
        atexit._run_exitfuncs()


def _end_with_starter() -> None:
    starter = multiprocessing.parent_process()
    assert starter is not None
    wait([starter.sentinel])
    try:  # another process sees to those that do not end, as this one does now; it holds the lock so long
        command = [sys.executable, _leash.__file__, "--end", str(os.getpgid(0))]
        subprocess.Popen(command, start_new_session=True, close_fds=False)
    finally:
        os.killpg(0, signal.SIGTERM)
