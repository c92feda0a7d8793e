"""A checkpoint that another row of packages has written is resumed as one's own: same losses, same weights.

``tests/golden/rows`` holds of each row the toy's checkpoints of step 2, plain and of ZeRO-2 on two processes, and its
losses. ``python -m tests.engine.test_rows pinned`` makes those of the row that it runs on.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from mg_llava.models.weights.checkpoint import load_training_checkpoint
from tests.engine.conftest import ToyRuns, launch
from tests.run import read_losses

GOLDEN = Path(__file__).parents[1] / "golden" / "rows"
ROWS = ("pinned", "current")
ZERO2 = ("--deepspeed", "deepspeed_zero2")


def losses_of(row: str, kind: str) -> dict[int, float]:
    """The stored losses of the steps after the checkpoint."""
    return {int(step): loss for step, loss in json.loads((GOLDEN / row / "losses.json").read_text())[kind].items()}


@pytest.mark.parametrize("row", ROWS)
def test_plain_checkpoints(runs: ToyRuns, row: str) -> None:
    _, rest = runs.train(resume=GOLDEN / row / "plain" / "iter_2.pth")
    assert rest == pytest.approx(losses_of(row, "plain"), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_checkpoints_of_deepspeed(tmp_path: Path, row: str) -> None:
    output = launch(tmp_path, *ZERO2, "--resume", str(GOLDEN / row / "zero2" / "iter_2.pth"))
    assert (tmp_path / "iter_5.pth").exists(), output[-4000:]
    assert read_losses(tmp_path) == pytest.approx(losses_of(row, "zero2"), rel=1e-3)


@pytest.mark.parametrize("kind", ["plain", "zero2"])
def test_both_rows_take_the_same_steps(kind: str) -> None:
    first, second = (load_training_checkpoint(GOLDEN / row / kind / "iter_2.pth") for row in ROWS)
    assert first.keys() == second.keys() and len(first) > 4
    tolerance = 1e-5 if kind == "plain" else 1e-3
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], atol=tolerance, rtol=tolerance)


def make(row: str, folder: Path) -> None:
    """Store what this row gives."""
    runs = ToyRuns(folder)
    runs.train()
    output = launch(folder / "zero2", *ZERO2)
    found = {}
    for kind, work_dir in (("plain", runs.work_dir), ("zero2", folder / "zero2")):
        assert (work_dir / "iter_5.pth").exists(), output[-4000:]
        found[kind] = {step: loss for step, loss in read_losses(work_dir).items() if step > 2}
        place = GOLDEN / row / kind
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        copy = shutil.copytree if (work_dir / "iter_2.pth").is_dir() else shutil.copy
        copy(work_dir / "iter_2.pth", place / "iter_2.pth")
    (GOLDEN / row / "losses.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        make(sys.argv[1], Path(name))
