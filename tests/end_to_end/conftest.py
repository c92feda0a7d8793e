"""A toy of the real thing: leaf configs over the repository's builder functions, run by the real `xtuner train`."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from mg_llava.models.weights.checkpoint import load_training_checkpoint
from tests import forked, toy
from tests.run import ROOT, read_losses, run_xtuner, train_here

LEAF = """
from mmengine.config import read_base

with read_base():
    from ._base_.run import {stage}
    from ._base_.runtime import *
    from ._base_.systems.mg_llava import mg_llava

from mg_llava.models.encoders.clip import CLIPEncoder
from mg_llava.models.encoders.convnext import OpenCLIPConvNeXtEncoder

vision = dict(
    low_res_encoder=dict(type=CLIPEncoder, path={paths[clip]!r}),
    high_res_encoder=dict(type=OpenCLIPConvNeXtEncoder, path={paths[convnext]!r}, image_size={canvas}),
)
globals().update(
    {stage}(
        mg_llava(dict(llm_name_or_path={paths[llm]!r}, prompt_template="vicuna"), vision),
        {data!r},
        lr={lr},
        context_length=128,
        dataloader_num_workers=0,
        precision="float32",
        save_steps=2,
        save_total_limit=-1,
        max_norm=1,
        log_interval=1,
        dataset=dict(budget=dict(long_text_margin=None)),
        {settings}
    )
)
log_processor = dict(by_epoch=False, window_size=1)
del {stage}, mg_llava, vision
"""


@dataclass
class Project:
    """A folder with toy weights, toy data and configs."""

    folder: Path
    paths: dict[str, str]
    data: dict[str, str]

    def config(self, name: str, stage: str, lr: float = 2e-3, **settings: object) -> Path:
        """Write a leaf config."""
        text = LEAF.format(
            stage=stage,
            paths=self.paths,
            canvas=toy.CANVAS,
            data=self.data,
            lr=lr,
            settings=" ".join(f"{key}={value!r}," for key, value in settings.items()),
        )
        file = self.folder / "configs" / f"{name}.py"
        file.write_text(text)
        return file

    def train(
        self, config: Path, *arguments: str, processes: int = 1, name: str | None = None, how: str = "forked"
    ) -> tuple[Path, str]:
        """Run `xtuner train`; returns the work directory and everything printed.

        Args:
            config: The leaf config.
            arguments: More arguments of `xtuner train`.
            processes: How many share the training.
            name: Name of the work directory; that of the config by default.
            how: ``"forked"``, in processes of its own; ``"command"``, by the console command; ``"here"``, in this
                process, which is fastest; not for DeepSpeed.
        """
        work_dir = self.folder / "work_dirs" / (name or config.stem)
        command = (config, "--work-dir", work_dir, "--seed", 0, *arguments)
        if how == "command":
            return work_dir, run_xtuner("train", *command, processes=processes)
        if how == "here" and not torch.cuda.is_available():
            return work_dir, train_here(*command)
        return work_dir, forked.train(*command, processes=processes)

    def assert_resumes(self, name: str, whole: Path, *options: str) -> None:
        """A run that goes on from the middle of another has its losses and ends with its weights."""
        config = self.folder / "configs" / f"{name}.py"
        resume = ("--resume", str(whole / "iter_2.pth"), *options)
        work_dir, output = self.train(config, *resume, name=f"{name}_resumed", how="here")
        assert (work_dir / "iter_4.pth").exists(), output[-4000:]
        losses = read_losses(whole)
        assert read_losses(work_dir) == {step: losses[step] for step in (3, 4)}
        first, second = (load_training_checkpoint(folder / "iter_4.pth") for folder in (whole, work_dir))
        assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory, toy_paths: dict[str, str]) -> Project:
    """Toy weights, data and room for configs."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "configs" / "_base_", folder / "configs" / "_base_")
    return Project(folder, toy_paths, toy.write_data(folder / "data"))


@pytest.fixture(scope="session")
def stage1(project: Project) -> Path:
    """Work directory of stage 1: four steps of four samples."""
    work_dir, output = project.train(project.config("stage1", "pretrain", batch_size=4, seed=0), how="command")
    assert (work_dir / "iter_4.pth").exists(), output[-4000:]
    return work_dir


@pytest.fixture(scope="session")
def stage2(project: Project, stage1: Path) -> Path:
    """Work directory of stage 2, which starts from stage 1."""
    config = project.config("stage2", "instruct", batch_size=4, seed=0, pretrained_pth=str(stage1))
    work_dir, output = project.train(config)
    assert (work_dir / "iter_4.pth").exists(), output[-4000:]
    return work_dir


def train_split(project: Project, stage1: Path, mode: str) -> Path:
    """Stage 2 on two processes with DeepSpeed; trained once for each mode."""
    work_dir = project.folder / "work_dirs" / f"split_{mode}"
    if not (work_dir / "iter_4.pth").exists():
        config = project.config(f"split_{mode}", "instruct", batch_size=2, seed=0, pretrained_pth=str(stage1))
        _, output = project.train(config, "--deepspeed", mode, processes=2)
        assert (work_dir / "iter_4.pth").exists(), output[-4000:]
    return work_dir
