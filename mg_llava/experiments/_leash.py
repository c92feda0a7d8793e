"""Run a command that ends with its starter, however that one ends: ``python _leash.py COMMAND...``. Standard library.

The command has a process group of its own, which is asked to end, and killed where it does not, when this process gets
SIGTERM or finds its parent gone.
"""

import os
import signal
import subprocess
import sys
import time

LOOK, PATIENCE = 0.2, 10.0
"""Seconds between two looks, and those between asking and killing."""


def main() -> int:
    """Exit with the command's status."""
    parent = os.getppid()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        while process.poll() is None:
            if os.getppid() != parent:
                return 1
            time.sleep(LOOK)
        return process.returncode
    finally:
        _end(process)


def _end(process: subprocess.Popen) -> None:
    for kind, seconds in ((signal.SIGTERM, PATIENCE), (signal.SIGKILL, None)):
        if process.poll() is None:
            os.killpg(process.pid, kind)
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                continue


if __name__ == "__main__":
    sys.exit(main())
