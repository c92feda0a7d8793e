"""Commands as jobs: output to a log, progress on one line, several at a time, all ended together."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
Note = Callable[[str], None]


class RunError(RuntimeError):
    """A step that failed; the message holds the end of its log."""


class Stopped(RuntimeError):
    """A step that was ended because another one failed, or by the user."""


_stopping = threading.Event()


def run_logged(command: Sequence[str | Path], log: Path, threads: int, follow: Callable[[str], None]) -> None:
    """Run a command in the repository's root with its output in a file; ``follow`` gets the file's end each second.

    Raises:
        RunError: If it exits with another status than 0.
        Stopped: If all runs are being ended; the command and what it started is ended first.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=ROOT,
            env=environment(threads),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                if _stopping.wait(1.0):
                    raise Stopped(f"{command[0]} was ended")
                follow(tail(log, 20))
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()
    if process.returncode != 0:
        raise RunError(f"{' '.join(map(str, command))} ended with status {process.returncode}\n{explain(log)}")


def environment(threads: int) -> dict[str, str]:
    """Variables of the commands: this interpreter's folder comes first, because `xtuner` starts `python` from PATH."""
    count = str(threads)
    return os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "NNODES": "1",
        "NPROC_PER_NODE": "1",
    }


def tail(log: Path, lines: int) -> str:
    """The last lines of a file."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 400 * lines))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])


def explain(log: Path) -> str:
    """The end of a log, for messages."""
    return f"The end of {log}:\n" + "\n".join("    " + line for line in tail(log, 25).splitlines())


def run_all(tasks: Mapping[str, Callable[[Note], Any]], jobs: int) -> dict[str, Any]:
    """Run tasks, at most ``jobs`` at a time, and show how far they are.

    Returns:
        What each task returned, by its name.

    Raises:
        RunError: The first failure; the other tasks are ended then. So they are at Ctrl-C or SIGTERM.
    """
    notes: dict[str, str] = {}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    _stopping.clear()
    board = _Board(notes)
    with ThreadPoolExecutor(max(1, jobs)) as pool:
        futures = {
            name: pool.submit(task, lambda text, name=name: notes.__setitem__(name, text))
            for name, task in tasks.items()
        }
        try:
            while not all(future.done() for future in futures.values()):
                for future in futures.values():
                    if future.done():
                        future.result()
                board.show()
                time.sleep(0.5)
            return {name: future.result() for name, future in futures.items()}
        finally:
            _stopping.set()
            pool.shutdown(wait=True, cancel_futures=True)
            board.close()


class _Board:
    """One line of progress: rewritten on a terminal, every 15 seconds a new one elsewhere."""

    def __init__(self, notes: Mapping[str, str]) -> None:
        self.notes = notes
        self.start = time.monotonic()
        self.shown_at = -1e9
        self.live = sys.stdout.isatty()

    def show(self) -> None:
        """Print the line when it is due."""
        now = time.monotonic()
        if self.notes and now - self.shown_at >= (1.0 if self.live else 15.0):
            self.shown_at = now
            self._print()

    def close(self) -> None:
        """Print the line for the last time."""
        if self.notes:
            self._print()
        if self.live:
            print()

    def _print(self) -> None:
        elapsed = int(time.monotonic() - self.start)
        line = f"  [{elapsed // 60:02d}:{elapsed % 60:02d}] " + " | ".join(
            f"{name}: {note}" for name, note in list(self.notes.items())
        )
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            print("\r" + line[:width].ljust(width), end="", flush=True)
        else:
            print(line, flush=True)
