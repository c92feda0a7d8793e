"""Commands as copies of a process that has imports: what they are given, how they end, and with whom."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path

import pytest

from mg_llava.experiments import warm
from mg_llava.experiments.grid import read_grid
from mg_llava.experiments.schedule import Schedule, hold
from mg_llava.experiments.steps import plan_runs
from mg_llava.experiments.warm import WarmProcess, import_first
from mg_llava.work import interrupts
from mg_llava.work.interrupts import run_main
from mg_llava.work.lock import FolderInUseError, folder_lock
from tests.experiments.toys import SLEEP, told, write_grid
from tests.run import environment, is_running, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="copies are for Linux alone")

TELL = """
import atexit, json, os, sys
atexit.register(print, "bye")
own = os.getpgid(0) == os.getpid() and os.path.isabs(__file__) and sys.stdin.read() == os.read(0, 1).decode() == ""
print(json.dumps([sys.argv[1:], os.environ.get("OWN"), "GONE" in os.environ, __name__, own]))
print("to the other one", file=sys.stderr)
import beside
sys.exit(int(sys.argv[1]))
"""
STARTER = """
import os, sys, time
from pathlib import Path
from mg_llava.experiments import warm
from mg_llava.work.lock import folder_lock
if __name__ == "__main__":
    warm.MODULES = ()
    script, told, folder = sys.argv[1:]
    with folder_lock(Path(folder), "run") as held:
        process = warm.WarmProcess([sys.executable, script, told], dict(os.environ), Path(folder, "log"), held)
        time.sleep(600)
"""


@pytest.fixture(autouse=True, scope="module")
def _others_have_their_imports() -> Iterator[None]:
    """The process that copies are made of is one for all tests, and this module's has imported nothing."""
    yield
    forkserver._forkserver._stop()


@pytest.fixture(autouse=True)
def _nothing_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "MODULES", ())


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., WarmProcess]:
    """Start a command whose log is ``log`` in the folder of the test."""
    lock = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)

    def started(*command: str, **variables: str) -> WarmProcess:
        kept = {name: value for name, value in os.environ.items() if name != "GONE"}
        return WarmProcess([sys.executable, *command], {**kept, **variables}, tmp_path / "log", lock)

    return started


@pytest.mark.parametrize("status", [0, 3])
def test_script_is_run_as_python_does(tmp_path: Path, start: Callable, monkeypatch: pytest.MonkeyPatch, status: int):
    monkeypatch.setenv("GONE", "1")
    (tmp_path / "tell.py").write_text(TELL)
    (tmp_path / "beside.py").write_text("print('found')")
    (tmp_path / "log").write_text("before\n")
    process = start(str(tmp_path / "tell.py"), str(status), "a b", OWN="mine", OMP_NUM_THREADS="2,1")
    until(lambda: process.poll() is not None)
    assert process.returncode == status
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[0] == "before"
    assert json.loads(next(line for line in lines if line[0] == "[")) == (
        [[str(status), "a b"], "mine", False, "__main__", True]
    )
    assert {"to the other one", "found", "bye"} <= set(lines)
    assert "GONE" in os.environ
    assert "OWN" not in os.environ


def test_module(tmp_path: Path, start: Callable) -> None:
    (tmp_path / "one.json").write_text('{"a":1}')
    process = start("-m", "json.tool", "--compact", str(tmp_path / "one.json"))
    until(lambda: process.poll() is not None)
    assert process.returncode == 0
    assert (tmp_path / "log").read_text() == '{"a":1}\n'


def test_error_is_in_the_log(tmp_path: Path, start: Callable) -> None:
    (tmp_path / "fail.py").write_text("raise ValueError('the reason')")
    process = start(str(tmp_path / "fail.py"))
    until(lambda: process.poll() is not None)
    assert process.returncode == 1
    assert "ValueError: the reason" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("ignored", [[], ["ignored"]])
def test_what_it_started_ends_with_it(tmp_path: Path, start: Callable, ignored: list[str]) -> None:
    (tmp_path / "sleep.py").write_text(SLEEP)
    process = start(str(tmp_path / "sleep.py"), str(tmp_path / "told"), *ignored)
    both = told(tmp_path / "told")
    process.terminate()
    process.wait()
    assert process.returncode == -signal.SIGTERM
    until(lambda: not any(map(is_running, both)))


def test_process_with_imports_may_be_lost(tmp_path: Path, start: Callable) -> None:
    """What runs goes on and can be ended; the next command has a new one."""
    (tmp_path / "sleep.py").write_text(SLEEP)
    process = start(str(tmp_path / "sleep.py"), str(tmp_path / "told"))
    both = told(tmp_path / "told")
    server = int(Path(f"/proc/{both[0]}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(server, signal.SIGKILL)
    until(lambda: not is_running(server))
    assert process.poll() is None and all(map(is_running, both))
    process.terminate()
    process.wait()
    until(lambda: not any(map(is_running, both)))
    (tmp_path / "fine.py").write_text("")
    later = start(str(tmp_path / "fine.py"))
    until(lambda: later.poll() is not None)
    assert later.returncode == 0


def test_a_schedule_goes_on_without_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise EOFError

    monkeypatch.setattr("mg_llava.experiments.schedule.WarmProcess", fail)
    monkeypatch.setattr("mg_llava.experiments.schedule.can_copy", lambda: True)
    runs = plan_runs(read_grid(write_grid(tmp_path, seeds=[0])), tmp_path / "work")
    said: list[str] = []
    monkeypatch.setenv("STUB_CALLS", str(tmp_path / "calls"))
    with hold(tmp_path / "work") as held:
        assert Schedule(runs, 2, 1, said.append, warm=True).run(held) == []
    assert all(run.is_done for run in runs) and "the process with imports is gone (EOFError()" in said[0]


def test_imports_are_not_interrupted_and_speak_in_the_log(
    tmp_path: Path, start: Callable, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    text = "import os, signal\nprint('imported', os.getpid(), flush=True)\nos.kill(os.getpid(), signal.SIGINT)"
    (tmp_path / "interrupted_import.py").write_text(text)
    (tmp_path / "fine.py").write_text("print('ran')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(warm, "MODULES", ("interrupted_import",))
    forkserver._forkserver._stop()  # the next one imports these
    process = start(str(tmp_path / "fine.py"), PYTHONPATH=str(tmp_path), PYTHONUNBUFFERED="1")
    until(lambda: process.poll() is not None)
    monkeypatch.undo()
    forkserver._forkserver._stop()
    assert process.returncode == 0
    words = (tmp_path / "log").read_text()
    assert words.startswith("imported ") and words.endswith("ran\n")
    assert "imported" not in "".join(capfd.readouterr())


def test_what_ignores_that_it_is_asked_ends_with_a_killed_starter(tmp_path: Path) -> None:
    for name, text in (("sleep", SLEEP), ("starter", STARTER.replace("script, told]", "script, told, 'ignored']"))):
        (tmp_path / f"{name}.py").write_text(text)
    names = ("starter.py", "sleep.py", "told", "work")
    starter = subprocess.Popen([sys.executable, *(str(tmp_path / name) for name in names)], env=environment())
    both = told(tmp_path / "told")
    starter.kill()
    starter.wait()
    until(lambda: not any(map(is_running, both)))


def test_imports_can_be_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They take seconds, and a start has to be whole."""
    begun = tmp_path / "begun"
    (tmp_path / "slow_import.py").write_text(f"import time\nopen({str(begun)!r}, 'w')\ntime.sleep(600)")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(warm, "MODULES", ("slow_import",))
    forkserver._forkserver._stop()  # the next one imports this
    monkeypatch.setattr(interrupts, "_has_cleanup", True)

    def interrupt() -> None:
        until(begun.exists)
        os.kill(os.getpid(), signal.SIGINT)

    def main() -> int:
        threading.Thread(target=interrupt).start()
        import_first({**os.environ, "PYTHONPATH": str(tmp_path)}, tmp_path / "log")
        return 0

    try:
        assert run_main(main) == 130
    finally:
        server = forkserver._forkserver._forkserver_pid
        os.kill(server, signal.SIGKILL)
        forkserver._forkserver._stop()


def test_it_ends_with_a_starter_that_is_killed_and_holds_its_lock_so_long(tmp_path: Path) -> None:
    for name, text in (("sleep", SLEEP), ("starter", STARTER)):
        (tmp_path / f"{name}.py").write_text(text)
    names = ("starter.py", "sleep.py", "told", "work")
    starter = subprocess.Popen([sys.executable, *(str(tmp_path / name) for name in names)], env=environment())
    both = told(tmp_path / "told")
    os.kill(both[0], signal.SIGSTOP)
    starter.kill()
    starter.wait()
    with pytest.raises(FolderInUseError), folder_lock(tmp_path / "work", "run"):
        pass
    os.kill(both[0], signal.SIGCONT)
    until(lambda: not any(map(is_running, both)))

    def is_free() -> bool:  # soon: who sees to the end of the group holds it as well
        with contextlib.suppress(FolderInUseError), folder_lock(tmp_path / "work", "run"):
            return True
        return False

    until(is_free)


@pytest.mark.parametrize("gpu", [True, False])
def test_no_copies_beside_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool) -> None:
    device = tmp_path / "device"
    if gpu:
        device.touch()
    monkeypatch.setattr(warm, "_GPUS", (str(device),))
    assert warm.can_copy() is not gpu
    assert Schedule([], 1, 1, print, warm=True)._warm is not gpu


@pytest.mark.parametrize(
    ("command", "own"),
    [
        (["python", "a.py"], True),
        ([sys.executable, "-m", "a"], True),
        (["python"], False),
        (["python", "-m"], False),
        (["python", "-u", "a.py"], False),
        (["python", "-c", "a"], False),
        (["sh", "-c", "a"], False),
    ],
)
def test_commands_of_this_python(command: list[str], own: bool) -> None:
    assert warm.is_python(command) is own
