"""A toy of the real thing: leaf configs over the repository's builder functions, run by the real `xtuner train`."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import toy

REPOSITORY = Path(__file__).parents[2]

LEAF = """
from mmengine.config import read_base

with read_base():
    from ._base_.recipe import {stage}
    from ._base_.runtime import *

from mg_llava.models.encoders.clip import CLIPEncoder
from mg_llava.models.encoders.convnext import OpenCLIPConvNeXtEncoder

vision = dict(
    low_res_encoder=dict(type=CLIPEncoder, path={paths[clip]!r}),
    high_res_encoder=dict(type=OpenCLIPConvNeXtEncoder, path={paths[convnext]!r}, image_size={canvas}),
    image_size={canvas},
    visual_tokens=4,
)
globals().update(
    {stage}(
        llm_name_or_path={paths[llm]!r},
        prompt_template="vicuna",
        vision=vision,
        data={data!r},
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
del {stage}, vision
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

    def train(self, config: Path, *arguments: str, processes: int = 1, name: str | None = None) -> tuple[Path, str]:
        """Run `xtuner train`; returns the work directory and everything printed.

        `xtuner` hides the exit status of what it starts, so that callers look at what the run left.
        """
        work_dir = self.folder / "work_dirs" / (name or config.stem)
        python = Path(sys.executable).parent
        environment = os.environ | {
            "PATH": f"{python}{os.pathsep}{os.environ['PATH']}",
            "NPROC_PER_NODE": str(processes),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        command = [
            str(python / "xtuner"),
            "train",
            str(config),
            "--work-dir",
            str(work_dir),
            "--seed",
            "0",
            *arguments,
        ]
        if processes > 1:
            command += ["--launcher", "pytorch"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, cwd=REPOSITORY)
        return work_dir, done.stdout + done.stderr


def read_log(work_dir: Path) -> list[dict]:
    """Records of the newest json log that have a loss, in order."""
    file = sorted(work_dir.glob("*/vis_data/scalars.json"))[-1]
    return [record for record in map(json.loads, file.read_text().splitlines()) if "loss" in record]


def read_losses(work_dir: Path) -> dict[int, float]:
    """Loss by iteration of the newest log."""
    return {record["step"]: record["loss"] for record in read_log(work_dir)}


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory, toy_paths: dict[str, str]) -> Project:
    """Toy weights, data and room for configs."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(REPOSITORY / "configs" / "_base_", folder / "configs" / "_base_")
    return Project(folder, toy_paths, toy.write_data(folder / "data"))


@pytest.fixture(scope="session")
def stage1(project: Project) -> Path:
    """Work directory of stage 1: four steps of four samples."""
    work_dir, output = project.train(project.config("stage1", "pretrain", batch_size=4, seed=0))
    assert (work_dir / "iter_4.pth").exists(), output[-4000:]
    return work_dir


@pytest.fixture(scope="session")
def stage2(project: Project, stage1: Path) -> Path:
    """Work directory of stage 2, which starts from stage 1."""
    config = project.config("stage2", "instruct", batch_size=4, seed=0, pretrained_pth=str(stage1))
    work_dir, output = project.train(config)
    assert (work_dir / "iter_4.pth").exists(), output[-4000:]
    return work_dir


def train_together(project: Project, stage1: Path) -> Path:
    """Stage 2 on one process; trained once."""
    return _train_once(project, stage1, "together", 4)


def train_split(project: Project, stage1: Path, mode: str) -> Path:
    """The same on two processes with DeepSpeed; trained once for each mode."""
    return _train_once(project, stage1, f"split_{mode}", 2, "--deepspeed", mode)


def _train_once(project: Project, stage1: Path, name: str, batch_size: int, *arguments: str) -> Path:
    work_dir = project.folder / "work_dirs" / name
    if not (work_dir / "iter_4.pth").exists():
        config = project.config(name, "instruct", batch_size=batch_size, seed=0, pretrained_pth=str(stage1))
        _, output = project.train(config, *arguments, processes=4 // batch_size)
        assert (work_dir / "iter_4.pth").exists(), output[-4000:]
    return work_dir
