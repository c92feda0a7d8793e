"""The command: all runs, what is shared and done is not repeated, kills, failures, tables."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from mg_llava.experiments import schedule
from mg_llava.experiments.grid import read_grid
from mg_llava.experiments.steps import plan_runs
from mg_llava.work.lock import folder_lock
from tests.experiments.toys import write_grid, write_leaf
from tests.run import TOOLS, environment, is_running, run_tool, until


class Toy:
    """A grid of stubs in a folder, and the command on it."""

    def __init__(self, folder: Path, **changes: object) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.calls, self.work = folder, folder / "calls", folder / "work"
        self.grid = write_grid(folder, **changes)

    def start(self, seconds: float, **changes: str) -> subprocess.Popen:
        """The command as a process, with so many seconds for a step of a training."""
        changes = {"STUB_CALLS": str(self.calls), "STUB_SECONDS": str(seconds), **changes}
        command = [sys.executable, str(TOOLS / "run_experiments.py"), str(self.grid), "--work-dir", str(self.work)]
        return subprocess.Popen(command, env=environment(**changes), stderr=subprocess.PIPE, text=True)

    def run(self, *arguments: str, status: int = 0) -> tuple[str, str]:
        """What the command writes, in this process."""
        with mock.patch.dict(os.environ, STUB_CALLS=str(self.calls)):
            ran = run_tool("run_experiments", self.grid, "--work-dir", self.work, *arguments)
        assert ran.status == status, ran
        return ran.out, ran.err

    @property
    def processes(self) -> list[str]:
        """Those trainings that still run."""
        pids = [line.split()[0] for line in self.calls.read_text().splitlines()]
        return [pid for pid in pids if is_running(int(pid))]

    @property
    def starts(self) -> list[str]:
        """Step folders of all trainings that were started, with where they began."""
        return [line.split(" ", 1)[1] for line in self.calls.read_text().splitlines()] if self.calls.exists() else []

    @property
    def entries(self) -> list[dict]:
        """Stored results without their times, which differ."""
        found = json.loads((self.work / "results.json").read_text())
        return [{key: value for key, value in entry.items() if key != "seconds"} for entry in found]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """The grid, run without a break."""
    toy = Toy(tmp_path_factory.mktemp("whole") / "grid")
    toy.run()
    return toy


def test_commands_and_options_follow_the_seeds(tmp_path: Path) -> None:
    (folder := tmp_path / "grid").mkdir()
    rows = [{"name": "own", "leaves": [write_leaf(folder, "own")], "options": ["llm=toy_{seed}"]}]
    toy = Toy(folder, rows=rows, prepare=[sys.executable, "-c", "import sys; print('for', *sys.argv[1:])", "{seeds}"])
    out, _ = toy.run("--seeds", "3", "1")
    assert "for 3 1\n" in out and len(toy.starts) == 2
    assert [run.steps[0].command()[-1] for run in plan_runs(read_grid(toy.grid), toy.work)] == [
        "llm=toy_0",
        "llm=toy_1",
    ]


def test_everything_once(whole: Toy) -> None:
    assert len(whole.starts) == 6 and all(start.endswith("from 0") for start in whole.starts), (
        "a common stage is shared"
    )
    assert [(entry["row"], entry["seed"]) for entry in whole.entries] == [
        ("low", 0),
        ("low", 1),
        ("full", 0),
        ("full", 1),
    ]
    assert len({entry["metrics"]["all"] for entry in whole.entries}) == 4
    assert (whole.work / "plot.png").read_bytes().startswith(b"\x89PNG")
    out, _ = whole.run()
    assert "0 of 4 runs to do" in out and len(whole.starts) == 6
    assert "| low only, seed 0 |" in out and "stored, older config" not in out


def test_last_runs_begin_before_others_go_on(tmp_path: Path) -> None:
    """So that no run is left for the end, with nothing beside it."""
    toy = Toy(tmp_path / "grid")
    toy.run("--rows", "low", "--seeds", "0", "1", "2", "3", "--jobs", "1")
    stages = ["first" if start.startswith("pretrain") else "second" for start in toy.starts]
    assert stages == ["first", "second"] * 2 + ["first"] * 2 + ["second"] * 2


def test_finished_runs_need_nothing_of_what_made_them(tmp_path: Path) -> None:
    toy = Toy(tmp_path / "grid")
    toy.run("--rows", "low")
    for folder in toy.work.glob("*instruct*"):
        shutil.rmtree(folder)
    for checkpoint in toy.work.glob("pretrain*/iter_5.pth"):
        checkpoint.unlink()
    before = len(toy.starts)
    out, _ = toy.run("--rows", "low")
    assert "0 of 2 runs to do" in out and len(toy.starts) == before
    assert "| low only, seed 0 |" in toy.run("--report-only")[0]
    toy.run("--rows", "full")
    assert [start.partition("_")[0] for start in toy.starts[before:]].count("pretrain") == 2, "its checkpoint was gone"


def test_a_moved_folder_is_used_where_it_is(tmp_path: Path) -> None:
    toy = Toy(tmp_path / "grid")
    toy.run("--rows", "low")
    before, toy.work = len(toy.starts), toy.work.rename(tmp_path / "elsewhere")
    out, _ = toy.run()
    assert "2 of 4 runs to do" in out
    assert all(start.startswith("full_instruct") for start in toy.starts[before:]), "the first stage is there"


def test_damaged_files_are_named_before_anything_runs(whole: Toy, tmp_path: Path) -> None:
    toy = Toy(tmp_path / "grid", results=str(tmp_path / "kept.json"), prepare=f"touch {tmp_path / 'prepared'}")
    (tmp_path / "kept.json").write_text("<<<<<<< ours\n[]")
    assert "kept.json holds no results" in toy.run(status=1)[1]
    assert not (tmp_path / "prepared").exists()
    (tmp_path / "kept.json").unlink()
    toy.run("--rows", "low", "--seeds", "0")
    note = next(toy.work.glob("low_instruct*/done.json"))
    note.write_text('{"product": ')
    assert f"{note} is damaged" in toy.run(status=1)[1]


def test_preparation_ends_with_the_command(tmp_path: Path) -> None:
    program = "import os, sys, time; os.symlink(str(os.getpid()), sys.argv[1]); time.sleep(600)"
    toy = Toy(tmp_path / "grid", prepare=[sys.executable, "-c", program, str(tmp_path / "pid")])
    process = toy.start(0)
    until((tmp_path / "pid").is_symlink)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 130 and "the same command goes on" in err
    assert not is_running(int(os.readlink(tmp_path / "pid")))


def test_kill_and_resume(whole: Toy, tmp_path: Path) -> None:
    """Killed in the middle of a stage, it goes on from that stage's last checkpoint, and ends as without the kill."""
    toy = Toy(tmp_path / "grid")
    process = toy.start(0, STUB_HOLD="instruct")
    until(lambda: [file for file in toy.work.glob("*instruct*/last_checkpoint") if "iter_2" in file.read_text()])
    process.kill()
    process.communicate()
    before = len(toy.starts)
    toy.run()  # waits for what the killed one started
    assert not toy.processes, "no training goes on without its command"
    resumed = toy.starts[before:]
    assert any(not start.endswith("from 0") for start in resumed)
    assert before + len(resumed) < 12, "what was finished is not repeated"
    assert [{k: v for k, v in entry.items() if k != "fingerprint"} for entry in toy.entries] == [
        {k: v for k, v in entry.items() if k != "fingerprint"} for entry in whole.entries
    ]


def test_interrupt(tmp_path: Path) -> None:
    toy = Toy(tmp_path / "grid")
    process = toy.start(5.0)
    until(lambda: toy.starts)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 130 and "the same command goes on" in err
    assert not toy.processes


AT_THE_START = """
import os, runpy, signal, subprocess, sys
start, number, file = subprocess.Popen.__init__, int(sys.argv.pop(1)), sys.argv.pop(1)
def interrupted(self, *arguments, **settings):
    start(self, *arguments, **settings)
    with open(file, "a") as pids: pids.write(f"{self.pid} ")
    os.kill(os.getpid(), number)
subprocess.Popen.__init__ = interrupted
sys.argv.pop(0)
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""The command, interrupted when it has just started another one that it has not noted yet."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("prepare", [None, [sys.executable, "-c", "import time; time.sleep(600)"]])
def test_interrupt_at_a_start(tmp_path: Path, number: int, prepare: list[str] | None) -> None:
    toy = Toy(tmp_path / "grid", **({"prepare": prepare} if prepare else {}))
    words = ["-c", AT_THE_START, str(int(number)), str(tmp_path / "pids"), str(TOOLS / "run_experiments.py")]
    command = [sys.executable, *words, str(toy.grid), "--work-dir", str(toy.work)]
    changes = {"STUB_CALLS": str(toy.calls), "STUB_SECONDS": "600"}
    ended = subprocess.run(command, env=environment(**changes), stderr=subprocess.PIPE, text=True, timeout=600)
    pids = (tmp_path / "pids").read_text().split()
    assert pids and not any(is_running(int(pid)) for pid in pids)
    assert not toy.calls.exists() or not toy.processes
    assert ended.returncode == 130 and "the same command goes on" in ended.stderr


def test_failed_step_ends_its_own_row(tmp_path: Path) -> None:
    toy = Toy(tmp_path / "grid")
    write_leaf(toy.folder, "low_instruct", fails=True)
    out, _ = toy.run("--seeds", "0", status=1)
    assert "low 0, stage 2:" in out and "ended with status 1" in out and "something broke" in out
    assert [entry["row"] for entry in toy.entries] == ["full"]


def test_training_that_ended_early_is_no_result(tmp_path: Path) -> None:
    toy = Toy(tmp_path / "grid")
    write_leaf(toy.folder, "full_instruct", stops=3)
    out, _ = toy.run("--seeds", "0", status=1)
    assert "full 0, stage 2:" in out and "ended without its result" in out
    assert [entry["row"] for entry in toy.entries] == ["low"]


def test_damaged_notes_of_the_newest_checkpoint_are_none(tmp_path: Path) -> None:
    """They do not stand for the folder of the process; the stage is trained again."""
    toy = Toy(tmp_path / "grid")
    write_leaf(toy.folder, "full_instruct", stops=3)
    toy.run("--seeds", "0", status=1)
    (note,) = [path for path in toy.work.rglob("last_checkpoint") if "iter_3" in path.read_text()]
    write_leaf(toy.folder, "full_instruct")
    for content in (b"\n", b".", b"\xff\xfe", b"a\0b"):
        note.write_bytes(content)
        toy.run("--seeds", "0")
    assert sorted(entry["row"] for entry in toy.entries) == ["full", "low"]
    assert sum("full_instruct" in line and line.endswith("from 0") for line in toy.calls.read_text().splitlines()) > 1


def test_rows_seeds_and_stored_results(tmp_path: Path) -> None:
    toy = Toy(tmp_path / "grid", report=str(tmp_path / "page.md"), results=str(tmp_path / "kept.json"))
    (tmp_path / "page.md").write_text("# Title\n\nCeilings stay.\n")
    toy.run("--rows", "full", "--seeds", "5")
    kept = json.loads((tmp_path / "kept.json").read_text())
    assert [(entry["row"], entry["seed"]) for entry in kept] == [("full", 5)]
    write_leaf(toy.folder, "full_instruct", lr=2)
    out, _ = toy.run("--rows", "low", "--seeds", "5")
    assert "| full, seed 5 | " in out and " stored, older config |" in out
    assert "Stored, older config: 1 of 2 runs were measured with a config" in out
    page = (tmp_path / "page.md").read_text()
    assert page.startswith("# Title\n\nCeilings stay.\n") and page.count("Stored, older config: 1 of 2") == 1
    again, _ = toy.run("--report-only")
    assert "Stored, older config: 1 of 2" in again


def test_changed_options_leave_stored_results_alone(tmp_path: Path) -> None:
    toy = Toy(tmp_path / "grid", results=str(tmp_path / "kept.json"), quick={"seeds": [0], "options": ["lr=9"]})
    toy.run("--cfg-options", "lr=3", "--seeds", "0")
    toy.run("--quick")
    assert not (tmp_path / "kept.json").exists() and len(toy.entries) == 2


def test_commands_and_folders_are_looked_at_first(tmp_path: Path) -> None:
    toy = Toy(tmp_path / "grid", train="no_such_trainer train")
    assert "the command no_such_trainer is neither beside" in toy.run(status=1)[1]
    toy = Toy(tmp_path / "grid", prepare=f"{sys.executable} -c 'raise SystemExit(\"no pictures\")'")
    assert "no pictures" in toy.run(status=1)[1]
    assert not toy.starts


def test_more_gpus_than_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Toy(tmp_path / "grid", prepare=f"touch {tmp_path / 'prepared'}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert "error: --gpus-per-run is 3, and there are 2 GPUs: 0, 1" in toy.run("--gpus-per-run", "3", status=1)[1]
    assert not (tmp_path / "prepared").exists() and not toy.starts


def test_one_command_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "_FREED", 0.5)
    toy = Toy(tmp_path / "grid", prepare=f"touch {tmp_path / 'prepared'}")
    with folder_lock(toy.work, "run of experiments"):
        assert f"process {os.getpid()}" in toy.run(status=1)[1]
    assert not (tmp_path / "prepared").exists(), "data that the other one reads stay as they are"
