"""One update through the real `xtuner train`: however a step is split, its gradient is that of the large batch."""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from mg_llava.models.weights.checkpoint import load_training_checkpoint
from tests.end_to_end.conftest import Project

pytestmark = pytest.mark.slow

RATE = 10.0
"""Large, so that the rounding of the weights hides nothing of the gradient."""


class Split(NamedTuple):
    """Four samples of a step, and how they are spread."""

    micro_batch: int
    accumulation: int
    processes: int = 1
    arguments: tuple[str, ...] = ()

    @property
    def steps(self) -> int:
        """Micro-batches of a process, fewer than ``accumulation`` where the only step is incomplete."""
        return 4 // (self.micro_batch * self.processes)


WHOLE = Split(4, 1)
SPLITS = {
    "accumulated": Split(1, 4),
    "ddp": Split(1, 2, 2),
    "zero2, incomplete": Split(1, 3, 2, ("--deepspeed", "deepspeed_zero2")),
    "zero3": Split(1, 2, 2, ("--deepspeed", "deepspeed_zero3")),
}


@pytest.fixture(scope="module")
def uneven(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The toy project with answers of one to forty words, and one source that is text alone."""
    folder = tmp_path_factory.mktemp("uneven")
    shutil.copytree(project.folder / "data", folder / "data")
    data = {key: value.replace(str(project.folder), str(folder)) for key, value in project.data.items()}
    records = json.loads(Path(data["data_path"]).read_text())
    for number, record in enumerate(records):
        record["conversations"][1]["value"] = " ".join(["digits"] * (1 + 13 * (number % 4)))
    Path(data["data_path"]).write_text(json.dumps(records))
    return Project(project.folder, project.paths, data)


def gradient(project: Project, name: str, split: Split, **settings: object) -> dict[str, Tensor]:
    """How far one update of stage 2 moves each trained tensor, divided by the learning rate."""
    batch = dict(batch_size=split.micro_batch, accumulative_counts=split.accumulation, seed=0, pretrained_pth=None)
    config = project.config(name.replace(", ", "_"), "instruct", **batch, **settings)
    config.write_text(
        config.read_text()
        + f"\nparam_scheduler = []\ntrain_cfg.pop('max_epochs')\ntrain_cfg['max_iters'] = {split.steps}\n"
        + f"optim_wrapper.update(optimizer=dict(type='SGD', lr={RATE}), clip_grad=None)\n"
        + "train_dataloader['sampler'] = dict(type='DefaultSampler', shuffle=True)\n"
    )
    how = "here" if split.processes == 1 else "forked"
    work_dir, output = project.train(config, *split.arguments, processes=split.processes, how=how)
    assert (work_dir / f"iter_{split.steps}.pth").exists(), output[-4000:]
    moved, start = load_training_checkpoint(work_dir / f"iter_{split.steps}.pth"), _start(config)
    return {key: (start[key] - moved[key]).double() / RATE for key in moved}


def _start(config: Path) -> dict[str, Tensor]:
    from mmengine.config import Config
    from mmengine.runner import set_random_seed

    from mg_llava.registry import MODELS

    set_random_seed(0)
    return MODELS.build(Config.fromfile(config).model).state_dict()


def apart(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Norm of the difference in norms of the expected gradient."""
    assert found.keys() == expected.keys()
    norm = torch.stack([value.norm() for value in expected.values()]).norm()
    return float(torch.stack([(found[key] - value).norm() for key, value in expected.items()]).norm() / norm)


@pytest.fixture(scope="module")
def whole(uneven: Project) -> dict[str, Tensor]:
    return gradient(uneven, "whole", WHOLE)


@pytest.mark.parametrize("name", SPLITS)
def test_split_step_is_the_whole_one(uneven: Project, whole: dict[str, Tensor], name: str) -> None:
    assert apart(gradient(uneven, name, SPLITS[name]), whole) < 1e-6


def test_micro_batches_of_the_reference_weigh_the_same(uneven: Project, whole: dict[str, Tensor]) -> None:
    found = gradient(uneven, "reference", SPLITS["accumulated"], loss_weighting="micro_batches")
    assert apart(found, whole) > 0.3
