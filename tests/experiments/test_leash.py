"""Commands on a leash end with what started them, whenever that is, and with all that they have started."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mg_llava.experiments import _leash
from mg_llava.work.lock import folder_lock
from tests.experiments.toys import SLEEP, told
from tests.run import is_running, until

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


def processes_with(word: Path) -> list[str]:
    """Numbers of the processes whose command has a word."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it ended just now
            if str(word).encode() in file.read_bytes().split(b"\0"):
                found.append(file.parent.name)
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("ignored", [[], ["ignored"]])
def test_all_ends_when_it_is_asked(tmp_path: Path, number: int, ignored: list[str]) -> None:
    process = leash(tmp_path, *ignored)
    both = told(tmp_path / "told")
    process.send_signal(number)
    assert process.wait(90) == 1
    until(lambda: not any(map(is_running, both)))


@pytest.mark.parametrize("moment", ["before", "after"])
def test_asked_while_the_command_starts(tmp_path: Path, moment: str) -> None:
    process = leash(tmp_path, before=("-c", WHILE_IT_STARTS, moment), stderr=subprocess.PIPE, text=True)
    _, words = process.communicate(timeout=90)
    assert process.returncode == 1 and not words
    assert not processes_with(tmp_path / "told")


def test_the_starter_was_gone_before_it_looked(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert leash(tmp_path, starter=gone.pid).wait(90) == 1
    assert not processes_with(tmp_path / "told")


@pytest.mark.parametrize("ignored", [[], ["ignored"]])
def test_what_a_command_has_left_ends(tmp_path: Path, ignored: list[str]) -> None:
    process = leash(tmp_path, *ignored)
    command, child = told(tmp_path / "told")
    os.kill(command, signal.SIGKILL)
    assert process.wait(90) == 128 + signal.SIGKILL
    until(lambda: not is_running(child))


@pytest.mark.parametrize("ignored", [[], ["ignored"]])
def test_group_can_be_ended_by_another(tmp_path: Path, ignored: list[str]) -> None:
    (tmp_path / "sleep.py").write_text(SLEEP)
    script = [sys.executable, str(tmp_path / "sleep.py"), str(tmp_path / "told"), *ignored]
    process = subprocess.Popen(script, start_new_session=True)
    both = told(tmp_path / "told")
    with subprocess.Popen([sys.executable, _leash.__file__, "--end", str(process.pid)]):
        assert process.wait(90) == -signal.SIGTERM
    until(lambda: not any(map(is_running, both)))


def test_the_command_has_the_lock_as_well(tmp_path: Path) -> None:
    """So that nobody repeats beside it what it does, should all that watch it be killed."""
    with folder_lock(tmp_path / "work", "run") as held:
        process = leash(tmp_path, pass_fds=[held])
        command = told(tmp_path / "told")[0]
        opened = {os.readlink(file) for file in Path(f"/proc/{command}/fd").iterdir()}
        assert str(tmp_path / "work" / ".lock") in opened
        process.terminate()
        process.wait()


@pytest.mark.parametrize(("code", "status"), [("raise SystemExit(3)", 3), ("", 0)])
def test_status(code: str, status: int) -> None:
    command = [sys.executable, _leash.__file__, str(os.getpid()), sys.executable, "-c", code]
    assert subprocess.run(command).returncode == status
