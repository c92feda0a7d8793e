"""Run a command that ends with its starter, however that one ends: ``python _leash.py STARTER COMMAND...``.

``STARTER`` is the number of the starter's process. The command has a process group of its own, which is asked to end,
and killed where it does not, when this process is asked to end or finds its starter gone. Standard library alone.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress

LOOK, PATIENCE, LINGER = 0.2, 10.0, 1.0
"""Seconds between two looks, between asking a command and killing it, and then for what it has started."""
_ENDS = ("SIGTERM", "SIGINT", "SIGHUP")
"""What asks this process to end; a terminal sends the last two to all that it has started."""

_asked: list[int] = []


def main() -> int:
    """Exit with the command's status."""
    starter = int(sys.argv[1])
    for number in (getattr(signal, name) for name in _ENDS if hasattr(signal, name)):
        if signal.getsignal(number) is not signal.SIG_IGN:
            # Noted, not raised: an error while the command starts would leave one that nobody knows of.
            signal.signal(number, lambda number, _: _asked.append(number))
    process = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None:
        if _asked or os.getppid() != starter:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            see_to_end(process.pid, lambda: process.poll() is not None)
            process.wait()
            return 1
        time.sleep(LOOK)
    return process.returncode


def see_to_end(group: int, has_ended: Callable[[], bool]) -> None:
    """Wait for the end of a group of processes that was asked to end, and kill what is left.

    Args:
        group: Number of the group and of its command.
        has_ended: Whether the command has.
    """
    with suppress(ProcessLookupError, PermissionError):  # none is left; macOS says the second where all have ended
        for seconds, is_over in ((PATIENCE, has_ended), (LINGER, lambda: False)):
            end = time.monotonic() + seconds
            while not is_over() and time.monotonic() < end:
                os.killpg(group, 0)
                time.sleep(LOOK / 4)
        os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
