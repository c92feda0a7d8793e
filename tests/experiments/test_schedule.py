"""The schedule: seconds over several starts, time to go, and GPUs that steps have for themselves."""

import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mg_llava.experiments import schedule
from mg_llava.experiments.gpus import GpuSlots
from mg_llava.experiments.grid import read_grid
from mg_llava.experiments.schedule import Schedule, hold
from mg_llava.experiments.steps import GridStep, Run, plan_runs
from tests.experiments.toys import write_grid, write_leaf

NOW = 1000.0


class Process:
    """A process that failed, or that runs until it is asked to end."""

    def __init__(self, returncode: int | None) -> None:
        self.returncode = returncode

    def poll(self) -> int | None:
        return self.returncode

    def terminate(self) -> None:
        self.returncode = -15

    def wait(self) -> None:
        pass


def started(returncode: int | None = None, **about: Any) -> Any:
    """A step that began ten seconds ago."""
    process: Any = Process(returncode)
    return schedule._Started(process, NOW - 10, **{"spent": 0.0, "share": 0.0, "log": 0, **about})


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    """Two rows with a common first stage."""
    return plan_runs(read_grid(write_grid(tmp_path, seeds=[0])), tmp_path / "work")


@pytest.fixture
def _at_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "time", SimpleNamespace(monotonic=lambda: NOW))


def done(step: GridStep, seconds: float) -> None:
    step.folder.mkdir(parents=True)
    (step.folder / "iter_5.pth").touch()
    (step.folder / "done.json").write_text(
        json.dumps({"product": str(step.folder / "iter_5.pth"), "seconds": seconds})
    )


@pytest.mark.usefixtures("_at_now")
def test_time_to_go_is_at_least_that_of_the_longest_run(runs: list[Run]) -> None:
    low, full = runs
    for step, seconds in zip(low.steps, (100, 50, 10), strict=True):
        done(step, seconds)
    assert Schedule(runs, 2, 1, print).remaining() == 60, "its steps come one after another"
    assert Schedule([full], 1, 1, print).remaining() == 100 + 100, "another kind takes as long as those that are known"


@pytest.mark.usefixtures("_at_now")
def test_time_to_go_of_a_step_that_goes_on(runs: list[Run]) -> None:
    low, full = runs
    for step, seconds in zip(low.steps, (100, 50, 10), strict=True):
        done(step, seconds)
    training = full.steps[1]
    training.folder.mkdir()
    training.log.write_text("Iter(train) [ 90/100]  loss: 1.00\n")
    found = Schedule(runs, 2, 1, print)
    found._waiting.remove(training)
    found._running[training.folder] = started(share=0.5, log=training.log.stat().st_size)
    assert found.remaining() == 50 * 0.5 - 10 + 10, "by others of its kind until it says more"
    with training.log.open("a") as log:
        log.write("Iter(train) [ 60/100]  loss: 1.00\n")
    assert found.remaining() == pytest.approx(40 + 10), "a tenth took ten seconds"


@pytest.mark.usefixtures("_at_now")
def test_seconds_of_starts_that_failed_or_were_ended_are_kept(runs: list[Run]) -> None:
    first = runs[0].steps[0]
    first.folder.mkdir(parents=True)
    for status, spent in ((1, 20.0), (None, 30.0)):
        found = Schedule(runs, 1, 1, lambda text: None)
        found._running[first.folder] = started(status, spent=spent)
        found._look_at(first)
        found._end()
        assert first.spent == spent + 10


def test_seconds_of_all_starts_are_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_CALLS", str(tmp_path / "calls"))
    rows = [{"name": "a", "leaves": write_leaf(tmp_path, "own")}]
    (run,) = plan_runs(read_grid(write_grid(tmp_path, rows=rows, seeds=[0])), tmp_path / "work")
    run.steps[0].folder.mkdir(parents=True)
    run.steps[0].note(1000.0)
    with hold(tmp_path / "work") as held:
        assert Schedule([run], 1, 1, print).run(held) == []
    training, evaluation = (step.done["seconds"] for step in run.steps)
    assert training >= 1000 > evaluation


PROGRAM = """
import json, os, sys, time
names = ("CUDA_VISIBLE_DEVICES", "NPROC_PER_NODE", "PORT", "MASTER_PORT")
held = [f"{sys.argv[1]}/{name}" for name in (*os.environ["CUDA_VISIBLE_DEVICES"].split(","), os.environ["PORT"])]
for file in held: os.close(os.open(file, os.O_CREAT | os.O_EXCL))
time.sleep(0.1)
for file in held: os.remove(file)
with open(sys.argv[2], "w") as file: json.dump({name: os.environ[name] for name in names}, file)
"""


@dataclasses.dataclass(frozen=True)
class Holding(GridStep):
    """A step that fails where another one that runs has one of its GPUs, or its port."""

    def command(self) -> list[str]:
        return [sys.executable, "-S", "-c", PROGRAM, *self.base, str(self.folder / "product")]

    def find_product(self, ended: bool) -> Path | None:
        path = self.folder / "product"
        return path if path.is_file() else None


@pytest.mark.parametrize(("each", "count", "wanted"), [(1, 4, {"0", "GPU-b", "2"}), (2, 2, {"0,GPU-b"})])
def test_steps_have_gpus_and_a_port_for_themselves(tmp_path: Path, each: int, count: int, wanted: set[str]) -> None:
    (locks := tmp_path / "locks").mkdir()
    row = read_grid(write_grid(tmp_path)).rows[0]
    steps = [Holding("step", str(n), tmp_path / "work" / str(n), (str(locks),)) for n in range(count)]
    runs = [Run(row, 0, step.title, (step,)) for step in steps]
    with hold(tmp_path / "work") as held:
        found = Schedule(runs, 8, 1, print, gpus=GpuSlots(["0", "GPU-b", "2"], each))
        assert found.run(held) == []
    told = [json.loads((step.folder / "product").read_text()) for step in steps]
    assert {one["CUDA_VISIBLE_DEVICES"] for one in told} <= wanted
    assert all(one["NPROC_PER_NODE"] == str(each) and one["PORT"] == one["MASTER_PORT"] for one in told)
