"""Ctrl-C in a command: it ends at once while nothing of ours is open, else with one line; status 130 either way.

Code of other packages must not meet a KeyboardInterrupt while it is imported: modules stay half made, extensions wait
for ever. So the system's own action ends a command that still imports, and one that has files or processes to see to
is interrupted when the import is over.

Nor may code of others lose one: Python drops the errors of some callbacks, and a bare ``except`` goes on. What is
raised here knows where it ends, and is raised again unless that is in this package or in the program itself. Another
error in its place, such as that of a file which could not be closed, ends the command as the interrupt does. Standard
library alone.
"""

import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType, FunctionType
from typing import Any, TypeVar

INTERRUPTED = 130
"""Exit status of a program that was interrupted, as shells have it."""
_RETRY = 0.05
"""Seconds until an interrupt is tried again that came at a bad moment."""
_LEAVING = ("tempfile.mkdtemp", "tempfile.mkstemp", "os.fork", "subprocess.Popen")
"""Events of Python after which there is something that must not be left."""

_TERMINATIONS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]

_OURS = ("mg_llava", "__main__")
_WHOLE = {
    ("threading.py", "start"),
    ("thread.py", "submit"),
    ("process.py", "start"),
    ("process.py", "submit"),
    ("subprocess.py", "_execute_child"),
}
"""Functions of Python that are done or not: a thread or a process that nobody knows of is waited for, or goes on."""
_marked: set[CodeType] = set()
"""Code of functions of this package that are done or not."""
_Function = TypeVar("_Function", bound=Callable[..., object])

_process = os.getpid()
_has_cleanup = _is_watching = False
_is_command = False
"""Whether :func:`run_main` is there to catch what is raised."""
_last: int | None = None
"""Number of the interrupt that came and that none of our code has caught yet."""
_numbers = itertools.count()


def end_at_once() -> None:
    """Let Ctrl-C end this process by the system's own action, from here until a command works and after it.

    One that is ignored, as in a shell's background, stays so.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def expect_cleanup() -> None:
    """Say that this process has something that must not be left: a file or a lock; others and folders are seen."""
    global _has_cleanup
    _has_cleanup = True


def interrupt_safely() -> None:
    """Raise KeyboardInterrupt at Ctrl-C where that is safe; in the main thread, unless the signal is ignored."""
    global _process, _is_watching
    if signal.getsignal(signal.SIGINT) not in (signal.SIG_DFL, signal.default_int_handler):
        return
    _process = os.getpid()
    if not _is_watching:  # a hook cannot be removed
        _is_watching = True
        sys.addaudithook(_watch)
    signal.signal(signal.SIGINT, _interrupt)


def interrupt_at_termination() -> None:
    """Let SIGTERM and a terminal that closes interrupt as Ctrl-C does, for a command that has to end what it started.

    What is ignored, as with ``nohup``, stays so.
    """
    interrupt_safely()
    for number in _TERMINATIONS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def uninterrupted(function: _Function) -> _Function:
    """Mark a function that is done or not, as it starts something: the interrupts of this module wait for its end."""
    assert isinstance(function, FunctionType)
    _marked.add(function.__code__)
    return function


def run_main(main: Callable[[], int], after: str = "the same command starts again") -> int:
    """The exit status of a command's ``main``; an interrupted one says ``after``, which is what to do next."""
    try:
        with _interrupted_safely():
            status = main()
            if not status or _last is None:
                return status
    except BaseException as error:
        if not _is_interrupted(error):
            raise
    sys.stderr.write(f"interrupted; {after}\n")
    return INTERRUPTED


def _is_interrupted(error: BaseException) -> bool:
    """Whether an error is an interrupt, came while one was handled, or comes from code that has lost one."""
    if isinstance(error, SystemExit) and not error.code:
        return False
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        if isinstance(found, KeyboardInterrupt) or getattr(found, "sigval", None) == signal.SIGINT:  # torchrun's own
            return True
        seen.add(id(found))
        found = found.__context__
    return _last is not None


@contextmanager
def _interrupted_safely() -> Iterator[None]:
    global _is_command, _last
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [(number, signal.getsignal(number)) for number in (signal.SIGINT, *_TERMINATIONS)]
    hook, outer = sys.unraisablehook, _is_command

    def drop(error: Any) -> None:
        _try_again() if isinstance(error.exc_value, _Interrupt) else hook(error)

    _is_command, _last = True, None
    try:
        interrupt_safely()
        sys.unraisablehook = drop
        yield
    finally:
        for number, handler in before:
            if handler is not None:  # one that is not Python's
                signal.signal(number, handler)
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook, _is_command = hook, outer


def _watch(event: str, _: tuple[object, ...]) -> None:
    if event in _LEAVING:
        expect_cleanup()


class _Interrupt(KeyboardInterrupt):
    """An interrupt that is raised again if its end comes in code of others; see the top of the file."""

    def __init__(self) -> None:
        global _last
        self.number = _last = next(_numbers)

    def __del__(self) -> None:
        """Where an error is caught is the outermost place of its traceback."""
        global _last
        if self.number != _last or not _is_command:
            return
        place = self.__traceback__.tb_frame.f_globals.get("__name__", "") if self.__traceback__ else ""
        if place.partition(".")[0] in _OURS:
            _last = None
        else:
            _try_again()


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _last
    if os.getpid() != _process:  # a forked process, which the one that has the terminal ends
        if number in _TERMINATIONS:
            _end_by(number)
        return
    if _can_be_raised(frame):
        signal.setitimer(signal.ITIMER_REAL, 0)
        if not _is_command:
            raise KeyboardInterrupt  # Python itself looks for this one
        raise _Interrupt
    if not _has_cleanup and _process != 1:  # the system spares the first process
        _end_by(number if number in _TERMINATIONS else signal.SIGINT)
    _last = next(_numbers)
    _try_again()


def _end_by(number: int) -> None:
    """End as by a signal that nobody handles."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _try_again() -> None:
    """By a timer of the system, not a thread: what the signal has stopped may hold the locks of threading."""
    if os.getpid() == _process:
        signal.signal(signal.SIGALRM, _interrupt)
        signal.setitimer(signal.ITIMER_REAL, _RETRY)


def _can_be_raised(frame: FrameType | None) -> bool:
    """False while a module is imported or something started, or in a method whose errors Python drops."""
    while frame is not None:
        file, name = frame.f_code.co_filename, frame.f_code.co_name
        if file.startswith("<frozen importlib") or name == "__del__":
            return False
        if frame.f_code in _marked or (os.path.basename(file), name) in _WHOLE:
            return False
        frame = frame.f_back
    return True
