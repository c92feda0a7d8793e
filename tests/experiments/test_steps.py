"""Steps: when a training is finished, by which config it is evaluated, and what its starts took together."""

from pathlib import Path

import pytest

from mg_llava.experiments import steps
from mg_llava.experiments.grid import read_grid
from mg_llava.experiments.steps import Training, plan_runs
from tests.experiments.toys import write_grid


def trainings(folder: Path) -> list[Training]:
    """The stages of a run."""
    run = plan_runs(read_grid(write_grid(folder, seeds=[0])), folder / "work")[0]
    return [step for step in run.steps if isinstance(step, Training)]


def cut(step: Training, number: int, log: str) -> Path:
    """Leave what a training has that was ended after a checkpoint."""
    step.folder.mkdir(parents=True, exist_ok=True)
    checkpoint = step.folder / f"iter_{number}.pth"
    checkpoint.touch()
    (step.folder / "last_checkpoint").write_text(str(checkpoint))
    step.log.write_text(log)
    return checkpoint


def test_a_later_stage_is_evaluated_by_what_its_training_dumped(tmp_path: Path) -> None:
    """It alone names the checkpoint that the stage has started from, which holds what a tuned LLM lacks."""
    first, second = trainings(tmp_path)
    assert second.config == second.leaf, "nothing is dumped yet"
    for step in (first, second):
        step.folder.mkdir(parents=True)
        (step.folder / Path(step.leaf).name).touch()
    assert first.config == first.leaf
    assert second.config == str(second.folder / "low_instruct.py")


def test_a_log_without_steps_tells_nothing_before_a_good_end(tmp_path: Path) -> None:
    first, _ = trainings(tmp_path)
    checkpoint = cut(first, 2, "epoch 1 is done\n")
    assert not first.finish(0.0, ended=False) and not first.done
    assert first.finish(3.0, ended=True) and first.done == {"product": str(checkpoint), "seconds": 3.0}


@pytest.mark.parametrize("block", [1 << 20, 7])
def test_the_number_of_steps_is_found_however_far_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(steps, "_BLOCK", block)
    first, _ = trainings(tmp_path)
    log = "Iter(train) [  1/4]  loss: 2.00\nIter(train) [  2/50]  loss: 1.00\n" + "it failed again\n" * (block // 5)
    cut(first, 2, log)
    assert not first.finish(0.0, ended=False) and not first.finish(0.0, ended=True)
    assert first.begun() == 2 / 50
    cut(first, 50, log)
    assert first.finish(0.0, ended=False) and first.begun() == 1.0


def test_seconds_of_earlier_starts_are_kept_until_the_end(tmp_path: Path) -> None:
    first, _ = trainings(tmp_path)
    cut(first, 2, "Iter(train) [ 2/2]\n")
    assert first.spent == 0.0
    first.note(12.34)
    assert first.spent == 12.3
    assert first.finish(first.spent, ended=False) and first.done["seconds"] == 12.3
    assert first.spent == 0.0, "another training of it begins anew"
    (first.folder / "spent.json").write_text('{"seconds": ')
    assert first.spent == 0.0
