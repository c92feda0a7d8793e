"""Ctrl-C in a command: it ends at once while nothing of ours is open, else with one line; status 130 either way.

Code of other packages must not meet a KeyboardInterrupt while it is imported: modules stay half made, extensions wait
for ever. So the system's own action ends a command that still imports, and one that has files or processes to see to
is interrupted when the import is over. Standard library alone.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130
"""Exit status of a program that was interrupted, as shells have it."""
_RETRY = 0.05
"""Seconds until an interrupt is tried again that came at a bad moment."""
_LEAVING = ("tempfile.mkdtemp", "tempfile.mkstemp", "os.fork", "subprocess.Popen")
"""Events of Python after which there is something that must not be left."""

_process = os.getpid()
_has_cleanup = _is_watching = False


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


def run_main(main: Callable[[], int], after: str = "the same command starts again") -> int:
    """The exit status of a command's ``main``; an interrupted one says ``after``, which is what to do next."""
    try:
        with _interrupted_safely():
            return main()
    except KeyboardInterrupt:
        sys.stderr.write(f"interrupted; {after}\n")
        return INTERRUPTED


@contextmanager
def _interrupted_safely() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        interrupt_safely()
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _watch(event: str, _: tuple[object, ...]) -> None:
    if event in _LEAVING:
        expect_cleanup()


def _interrupt(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _process:
        return  # a forked process, which the one that has the terminal ends
    if _can_be_raised(frame):
        raise KeyboardInterrupt
    if not _has_cleanup:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    # a timer of the system, not a thread: what the signal has stopped may hold the locks of threading
    signal.signal(signal.SIGALRM, _interrupt)
    signal.setitimer(signal.ITIMER_REAL, _RETRY)


def _can_be_raised(frame: FrameType | None) -> bool:
    """False while a module is imported, or in a method whose errors Python drops."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib") or frame.f_code.co_name == "__del__":
            return False
        frame = frame.f_back
    return True
