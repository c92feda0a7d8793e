"""Commands on a leash end with what started them, whenever that is, and with all that they have started."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mg_llava.experiments import _leash
from tests.experiments.toys import SLEEP, told, until
from tests.run import is_running

WHILE_IT_STARTS = """
import os, runpy, signal, subprocess, sys
start, moment = subprocess.Popen._execute_child, sys.argv.pop(1)
def asked(*arguments):
    for now in ("before", "after"):
        if now == moment:
            os.kill(os.getpid(), signal.SIGTERM)
        if now == "before":
            start(*arguments)
subprocess.Popen._execute_child = asked
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Asks the leash to end right before or after it has started its command."""


def leash(folder: Path, *ignored: str, starter: int = 0, before: tuple[str, ...] = (), **settings) -> subprocess.Popen:
    """A script on a leash; it writes the numbers of its processes to the file ``told``."""
    (folder / "sleep.py").write_text(SLEEP)
    script = [sys.executable, str(folder / "sleep.py"), str(folder / "told"), *ignored]
    return subprocess.Popen(
        [sys.executable, *before, _leash.__file__, str(starter or os.getpid()), *script], **settings
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("ignored", [[], ["ignored"]])
def test_all_ends_when_it_is_asked(tmp_path: Path, number: int, ignored: list[str]) -> None:
    process = leash(tmp_path, *ignored)
    both = told(tmp_path / "told")
    process.send_signal(number)
    assert process.wait(30) == 1
    until(lambda: not any(map(is_running, both)))


@pytest.mark.parametrize("moment", ["before", "after"])
def test_asked_while_the_command_starts(tmp_path: Path, moment: str) -> None:
    process = leash(tmp_path, before=("-c", WHILE_IT_STARTS, moment), stderr=subprocess.PIPE, text=True)
    _, words = process.communicate(timeout=30)
    assert process.returncode == 1 and not words
    search = subprocess.run(["pgrep", "-f", str(tmp_path / "told")], capture_output=True, text=True)
    assert not search.stdout


def test_the_starter_was_gone_before_it_looked(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert leash(tmp_path, starter=gone.pid).wait(30) == 1
    search = subprocess.run(["pgrep", "-f", str(tmp_path / "told")], capture_output=True, text=True)
    assert not search.stdout


def test_what_is_ignored_stays_so(tmp_path: Path) -> None:
    """As with ``nohup``, whose command outlives its terminal."""

    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = leash(tmp_path, preexec_fn=ignore)
    both = told(tmp_path / "told")
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(4 * _leash.LOOK)
    assert all(map(is_running, both))
    process.terminate()
    assert process.wait(30) == 1


def test_status(tmp_path: Path) -> None:
    command = [sys.executable, _leash.__file__, str(os.getpid()), sys.executable, "-c", "raise SystemExit(3)"]
    assert subprocess.run(command).returncode == 3
