"""Run a command that ends with its starter, however that one ends: ``python _leash.py STARTER COMMAND...``.

``STARTER`` is the number of the starter's process. The command has a process group of its own, which is asked to end,
and killed where it does not, when this process is asked to, finds its starter gone, or the command has ended and left
something. ``python _leash.py --end GROUP`` ends a group in the same way. Standard library alone.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress

LOOK, PATIENCE, LINGER = 0.2, 10.0, 1.0
"""Seconds between two looks, between asking a command and killing it, and for what a command has left."""
_ENDS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]
"""Signals that ask this process to end."""


def main() -> int:
    """Exit with the command's status, 128 more than the number of a signal that ended it; 1 where it had to end."""
    if sys.argv[1] == "--end":
        ask_to_end(int(sys.argv[2]))
        see_to_end(int(sys.argv[2]), lambda: False)
        return 0
    starter = int(sys.argv[1])
    asked: list[bool] = []
    for number in _ENDS:
        # Noted, not raised: an error while the command starts would leave one that nobody knows of.
        signal.signal(number, lambda *_: asked.append(True))
    if os.getppid() != starter:
        return 1
    # The lock that this process holds, so that the command has it as well.
    process = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL, start_new_session=True, close_fds=False)
    while process.poll() is None and not asked and os.getppid() == starter:
        time.sleep(LOOK)
    status = process.returncode
    if status is None:
        ask_to_end(process.pid)
    see_to_end(process.pid, lambda: process.poll() is not None)
    process.wait()
    if status is None:
        return 1
    return status if status >= 0 else 128 - status


def ask_to_end(group: int) -> None:
    """Ask a group of processes, which may be gone."""
    with suppress(ProcessLookupError, PermissionError):  # macOS says the second where all have ended
        os.killpg(group, signal.SIGTERM)


def see_to_end(group: int, has_ended: Callable[[], bool]) -> None:
    """Wait for a command that was asked to end; kill it if it does not, and what it has left if that does not.

    Args:
        group: Number of the group of processes and of its command.
        has_ended: Whether the command has.
    """
    with suppress(ProcessLookupError, PermissionError):
        if _wait(group, has_ended, PATIENCE):
            os.killpg(group, signal.SIGTERM)
            _wait(group, lambda: False, LINGER)
        os.killpg(group, signal.SIGKILL)


def _wait(group: int, is_over: Callable[[], bool], seconds: float) -> bool:
    """Whether something is over in time; raises ProcessLookupError when the group is empty."""
    end = time.monotonic() + seconds
    while not is_over():
        os.killpg(group, 0)
        if time.monotonic() > end:
            return False
        time.sleep(LOOK / 4)
    return True


if __name__ == "__main__":
    sys.exit(main())
