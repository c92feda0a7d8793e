"""Ctrl-C in the middle of a command: nothing goes on, nothing is left, and the terminal is as it was."""

import contextlib
import fcntl
import json
import os
import pty
import random
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests import forked, toy
from tests.detection.held import hold_at, write_pipeline
from tests.end_to_end.conftest import Project
from tests.run import ROOT
from tests.tools.test_evaluate import write_mmbench

pytestmark = pytest.mark.slow
LONG = 120.0
ENDLESS = Path(__file__).with_name("endless.py")


class Terminal:
    """A command at a terminal of its own, with a folder of its own for temporary files.

    Args:
        folder: Where that folder is made.
        arguments: The command line.
        imports: Whether an interpreter starts, which imports what the command needs; else a process that has most.
        program: What starts the command, in the latter.
    """

    def __init__(
        self, folder: Path, *arguments: object, imports: bool = False, program: str | Path = "mg_llava"
    ) -> None:
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
        self.before = termios.tcgetattr(self.slave)
        variables = {"TMPDIR": str(self.temporary), "TERM": "xterm"}
        self.process: subprocess.Popen | ForkServerProcess
        if imports:
            command = [sys.executable, "-m", "mg_llava", *map(str, arguments)]
            streams: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), self.slave)
            own = {"start_new_session": True, "preexec_fn": lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)}
            self.process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **variables}, **streams, **own)
        else:
            self.process = forked.start(program, *arguments, terminal=os.ttyname(self.slave), **variables)
        os.set_blocking(self.master, False)
        self.said = ""

    @property
    def status(self) -> int | None:
        """The exit status; None while it runs."""
        return self.process.poll() if isinstance(self.process, subprocess.Popen) else self.process.exitcode

    def wait_for(self, text: str) -> None:
        """Until it has said this, or anything."""
        until = time.monotonic() + LONG
        while (
            (not self.said or text not in self.said)
            and time.monotonic() < until
            and (self._read() or self.status is None)
        ):
            time.sleep(0.01)
        assert self.said and text in self.said, self.said

    def type(self, text: str) -> None:
        self.said = ""
        os.write(self.master, text.encode())

    def interrupt_after(self, seconds: float) -> None:
        """Ctrl-C so long after Python has begun with the program; what comes before, no program has a say in."""
        was_caught = False
        while self.status is None:
            is_caught = catches_interrupts(self.process.pid)
            if was_caught and not is_caught:
                break
            was_caught = is_caught
            time.sleep(0.001)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._read()
            time.sleep(0.005)
        os.write(self.master, b"\x03")

    def end(self) -> int | None:
        """The exit status, with nothing left."""
        until = time.monotonic() + LONG
        while self.status is None and time.monotonic() < until:
            self._read()
            time.sleep(0.01)
        while self._read():  # a terminal gives 4 kB at a time
            pass
        assert termios.tcgetattr(self.slave) == self.before, "the terminal is as it was"
        assert session_of(self.process.pid) == [], "no process goes on"
        assert [path.name for path in self.temporary.rglob("*") if path.is_file()] == []
        return self.status

    def _read(self) -> bool:
        with contextlib.suppress(BlockingIOError, OSError):
            self.said += os.read(self.master, 1 << 16).decode(errors="replace")
            return True
        return False

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait() if isinstance(self.process, subprocess.Popen) else self.process.join()
        os.close(self.master)
        os.close(self.slave)


def catches_interrupts(process: int) -> bool:
    """Whether a process has a handler of its own for Ctrl-C."""
    with contextlib.suppress(OSError):
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
        return bool(int(lines["SigCgt"], 16) >> (signal.SIGINT - 1) & 1)
    return False


def session_of(leader: int) -> list[int]:
    """Processes of a session that still live; those that have ended take a moment to go."""
    for _ in range(200):
        found = []
        for entry in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = entry.read_text().rpartition(")")[2].split()
                found += [int(entry.parent.name)] if int(fields[3]) == leader and fields[0] != "Z" else []
        if not found:
            break
        time.sleep(0.05)
    return found


@contextlib.contextmanager
def at_terminal(folder: Path, *arguments: object, **options: Any) -> Iterator[Terminal]:
    terminal = Terminal(folder, *arguments, **options)
    try:
        yield terminal
    finally:
        terminal.close()


def test_chat_goes_on_after_an_answer_was_stopped(files: dict[str, str], tmp_path: Path) -> None:
    asked = [files["config"], "--checkpoint", files["checkpoint"], "--image", files["image"]]
    with at_terminal(tmp_path, "chat", *asked, "--temperature", 1.5, program=ENDLESS) as chat:
        chat.wait_for("> ")
        chat.type("what is there?\r")
        chat.wait_for("?\r\n")
        chat.said = ""
        chat.wait_for("")  # the answer has begun
        chat.type("\x03")
        chat.wait_for("stopped; the question is forgotten")
        chat.wait_for("> ")
        chat.type("/quit\r")
        assert chat.end() == 0


def test_chat_ends_at_its_prompt(files: dict[str, str], tmp_path: Path) -> None:
    with at_terminal(tmp_path, "chat", files["config"], "--checkpoint", files["checkpoint"]) as chat:
        chat.wait_for("> ")
        chat.type("\x03")
        assert chat.end() == 0


def test_an_evaluation_ends(files: dict[str, str], tmp_path: Path) -> None:
    table = write_mmbench(tmp_path / "mmbench.tsv", rows=20)
    asked = [files["config"], "--checkpoint", files["checkpoint"], "--data", table, "--out", tmp_path / "out"]
    with at_terminal(tmp_path, "evaluate-mmbench", *asked, "--batch-size", 2, program=ENDLESS) as run:
        run.wait_for("questions/s")
        run.type("\x03")
        assert run.end() == 130 and "the same command continues" in run.said and "Traceback" not in run.said


def write_records(folder: Path, count: int) -> Path:
    """Records of pictures that differ."""
    for number in range(count):
        Image.new("RGB", (20, 10), (number % 256, number // 256, 0)).save(folder / f"{number}.bmp")
    (folder / "records.json").write_text(json.dumps([{"id": n, "image": f"{n}.bmp"} for n in range(count)]))
    return folder / "records.json"


def test_a_box_run_of_several_processes_ends(tmp_path: Path) -> None:
    """Workers stand still until the interrupt has come; they finish what they are at and no more."""
    options = ["--out", tmp_path / "out", "--detector", write_pipeline(tmp_path), "--processes", 2]
    hold = hold_at(tmp_path, tmp_path / "out", 0)
    with at_terminal(tmp_path, "boxes", write_records(tmp_path, 2000), *options) as run:
        run.wait_for("detect: ")
        run.type("\x03")
        run.wait_for("^C")  # which the terminal says when it has sent the signal
        hold.unlink()
        assert run.end() == 130 and "Traceback" not in run.said


SECONDS = {"score": 3, "convert": 10, "predict": 12, "boxes": 14, "train": 20}
"""Within which commands are interrupted, by far more than they take on a quiet machine."""


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", SECONDS)
def test_a_command_ends_at_any_moment(
    name: str, seed: int, files: dict[str, str], toy_paths: dict[str, str], tmp_path: Path
) -> None:
    given = command_line(name, files, toy_paths, tmp_path)
    moment = random.Random(f"{name} {seed}").uniform(0, 1) ** 2 * SECONDS[name]  # more of them while it imports
    with at_terminal(tmp_path, *given, imports=True) as run:
        run.interrupt_after(moment)
        status = run.end()
    assert status in (0, 130, -signal.SIGINT), (moment, run.said)
    assert "Traceback" not in run.said, (moment, run.said)
    assert not [path for path in tmp_path.rglob(".*") if path.name == ".lock" or path.suffix in (".part", ".old")], (
        moment
    )


def command_line(name: str, files: dict[str, str], toy_paths: dict[str, str], folder: Path) -> list[object]:
    """A command that takes some time, and writes into the folder ``out`` what it writes."""
    out = folder / "out"
    out.mkdir()
    trained = [files["config"], "--checkpoint", files["checkpoint"]]
    if name == "score":
        table, said = write_mmbench(folder / "mmbench.tsv", rows=400), folder / "said.jsonl"
        said.write_text("".join(f'{{"index": {number}, "prediction": "A"}}\n' for number in range(400)))
        return [name, "mmbench", "--data", table, "--predictions", said, "--out", out / "scored.json"]
    if name == "convert":
        return [name, files["checkpoint"], out / "folder", "--to", "hf", "--config", files["config"]]
    if name == "predict":
        return [name, *trained, "--question", "?", "--image", files["image"], "--out", out / "answer.png"]
    if name == "boxes":
        return [name, write_records(folder, 500), "--out", out, "--detector", "proposals", "--processes", 2]
    shutil.copytree(ROOT / "configs" / "_base_", folder / "configs" / "_base_")
    config = Project(folder, toy_paths, toy.write_data(folder / "data")).config("cut", "pretrain", batch_size=1)
    return [name, config, "--work-dir", out, "--seed", 0]
