"""A training ends with the command that started it, and a checkpoint that cannot be resumed is named at once."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mg_llava.engine import command
from mg_llava.models.weights.archive import CheckpointError
from tests.run import is_running

STARTS = "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]])\n"
TRAINS = """
import os, time
from mg_llava.engine.command import end_with_launcher
end_with_launcher()
print(os.getpid(), os.getppid(), flush=True)
time.sleep(120)
"""


def start(folder: Path, between: bool, name: str = "xtuner") -> tuple[subprocess.Popen, list[int]]:
    """A command that waits for its child, as XTuner's does, and the processes below it."""
    paths = {name: STARTS, "torchrun": STARTS, "train.py": TRAINS}
    for file, text in paths.items():
        (folder / file).write_text(text)
    words = [name, *(["torchrun"] if between else []), "train.py"]
    launcher = subprocess.Popen(
        [sys.executable, *(str(folder / word) for word in words)], stdout=subprocess.PIPE, text=True
    )
    assert launcher.stdout is not None
    trainer, parent = map(int, launcher.stdout.readline().split())
    return launcher, [trainer, *([parent] if between else [])]


def wait_until_gone(processes: list[int], seconds: float = 30) -> list[int]:
    """Those that are still there after a while."""
    end = time.monotonic() + seconds
    while (left := [process for process in processes if is_running(process)]) and time.monotonic() < end:
        time.sleep(0.05)
    return left


@pytest.mark.parametrize("between", [False, True], ids=["one process", "torchrun"])
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL, signal.SIGHUP])
def test_training_ends_with_its_command(tmp_path, sent, between):
    launcher, below = start(tmp_path, between)
    launcher.send_signal(sent)
    launcher.wait()
    assert wait_until_gone(below) == []


def test_training_of_several_processes_ends_with_their_parent(tmp_path, monkeypatch):
    """``torchrun`` gives them sessions of their own, so that they must see to it themselves."""
    starts = f"import os; os.environ[{command.LAUNCHER!r}] = str(os.getpid())\n{STARTS}"
    monkeypatch.setitem(globals(), "STARTS", starts)
    launcher, below = start(tmp_path, False, name="mg-llava")
    launcher.kill()
    launcher.wait()
    assert wait_until_gone(below) == []


def test_training_ends_whose_command_was_gone_before(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / "train.py").write_text(TRAINS)
    variables = {**os.environ, command.LAUNCHER: str(gone.pid)}
    ended = subprocess.run([sys.executable, str(tmp_path / "train.py")], env=variables, timeout=60)
    assert ended.returncode == -signal.SIGTERM


def test_other_parents_are_not_watched(tmp_path):
    """A training that a shell or a scheduler started may outlive it, as it always could."""
    launcher, (trainer,) = start(tmp_path, False, name="shell")
    assert command.launcher_chain(trainer) == []
    launcher.kill()
    launcher.wait()
    assert is_running(trainer)
    os.kill(trainer, signal.SIGKILL)


@pytest.fixture
def as_training(monkeypatch):
    """Pretend to be XTuner's script with some arguments."""

    def pretend(*arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", ["/x/xtuner/tools/train.py", "config.py", *map(str, arguments)])
        command.command_line.cache_clear()

    monkeypatch.setattr(command, "end_with_launcher", lambda: None)
    yield pretend
    command.command_line.cache_clear()


def write(path: Path) -> Path:
    torch.save({"state_dict": {"a": torch.ones(3)}, "meta": {"seed": 1}}, path)
    return path


def test_whole_checkpoint_passes(as_training, tmp_path):
    path = write(tmp_path / "iter_2.pth")
    as_training("--resume", path)
    command.prepare_command()
    assert command.command_line().resume == str(path)  # as XTuner reads it


@pytest.mark.parametrize("size", [0, 10, 200, -1])
def test_cut_off_checkpoint_is_named(as_training, tmp_path, size):
    path = write(tmp_path / "iter_2.pth")
    path.write_bytes(path.read_bytes()[:size])
    as_training(f"--resume={path}")
    with pytest.raises(CheckpointError, match=r"iter_2\.pth .*cannot be read as a checkpoint"):
        command.prepare_command()


def test_absent_checkpoint_is_named(as_training, tmp_path):
    write(tmp_path / "iter_2.pth")
    as_training("--resume", tmp_path / "iter_4.pth")
    with pytest.raises(FileNotFoundError, match=r"iter_4.pth does not exist. .* has: iter_2\.pth"):
        command.prepare_command()


def test_work_directory_names_its_newest(as_training, tmp_path):
    newest = write(tmp_path / "iter_2.pth")
    (tmp_path / "last_checkpoint").write_text(str(newest))
    as_training("--resume", tmp_path)
    with pytest.raises(ValueError, match=rf"is a work directory; give its newest checkpoint: --resume {newest}"):
        command.prepare_command()


def test_file_does_not_go_with_deepspeed(as_training, tmp_path):
    as_training("--resume", write(tmp_path / "iter_2.pth"), "--deepspeed", "deepspeed_zero2")
    with pytest.raises(ValueError, match=r"of the kind 'mmengine .pth', .* is given; leave out --deepspeed"):
        command.prepare_command()


@pytest.mark.parametrize("script", ["/x/other/train.py", "tools/plan.py", "/x/xtuner/tools/chat.py"])
def test_other_scripts_are_left_alone(monkeypatch, script):
    monkeypatch.setattr(sys, "argv", [script, "--resume", "nowhere"])
    called = []
    monkeypatch.setattr(command, "end_with_launcher", lambda: called.append(script))
    command.prepare_command()
    assert called == []
