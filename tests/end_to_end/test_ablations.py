"""Each row of the ablations trains through `xtuner train`, and goes on from a checkpoint as if never stopped."""

import re

import pytest
import torch

from mg_llava.models.weights.checkpoint import load_training_checkpoint
from tests.end_to_end.conftest import Project
from tests.run import ROOT, read_losses

ROWS = re.findall(r"^    (\w+)=dict\(", (ROOT / "configs/_base_/ablations.py").read_text(), re.MULTILINE)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("row", sorted(set(ROWS) - {"full", "coco80"}))  # those differ in data alone
def test_a_row_trains_and_resumes(row: str, project: Project) -> None:
    config = project.config(f"row_{row}", "pretrain", batch_size=3, seed=0)
    text = config.read_text().replace("vision),", "vision, **rows[row]),")
    text = text.replace(
        "    from ._base_.run import", "    from ._base_.ablations import rows\n    from ._base_.run import"
    )
    config.write_text(text.replace("globals()", f"row = {row!r}\nglobals()", 1) + "del rows, row\n")
    whole, output = project.train(config, how="here")
    last = max(whole.glob("iter_*.pth"), key=lambda file: int(file.stem.split("_")[1]))
    assert int(last.stem.split("_")[1]) >= 5, output[-3000:]
    resumed, output = project.train(config, "--resume", str(whole / "iter_2.pth"), name=f"{row}_resumed", how="here")
    assert (resumed / last.name).exists(), output[-3000:]
    losses = read_losses(whole)
    assert read_losses(resumed) == {step: loss for step, loss in losses.items() if step > 2}
    first, second = (load_training_checkpoint(folder / last.name) for folder in (whole, resumed))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
