"""Both stages of Lyrics through the real `xtuner train`: resumed, and in two processes with DeepSpeed."""

import math
from pathlib import Path

import pytest

from mg_llava.models.weights.checkpoint import load_training_checkpoint
from tests import toy
from tests.contract import cases
from tests.end_to_end.conftest import Project
from tests.run import read_losses

pytestmark = pytest.mark.slow

LEAF = """
from mmengine.config import read_base

with read_base():
    from ._base_.run import {run}
    from ._base_.runtime import *
    from ._base_.systems.lyrics import {system}

from mg_llava.models.encoders.clip import CLIPEncoder
from mg_llava.models.encoders.detector import TransformerDetector

vision = dict(
    image_size=64,
    visual_encoder=dict(type=CLIPEncoder, path={paths[clip]!r}),
    detector=dict(type=TransformerDetector, path={paths[detector]!r}, objects=4),
)
small = dict(queries=(3, 4), width=16, layers=2, heads=2, intermediate=24, vocabulary={words}, positions=256)
row = dict(llm_name_or_path={paths[llm]!r}, prompt_template="vicuna")
globals().update(
    {run}(
        {system}(row, vision, pieces={pieces!r}, mq_former=small, **{model!r}),
        {data!r},
        lr=1e-3,
        batch_size=4,
        context_length=128,
        dataloader_num_workers=0,
        precision="float32",
        save_steps=2,
        save_total_limit=-1,
        log_interval=1,
        seed=0,
        dataset=dict(budget=dict(long_text_margin=None)),
        **{settings!r},
    )
)
log_processor = dict(by_epoch=False, window_size=1)
del {run}, {system}, vision, small, row
"""
LORA = dict(tuning="lora", lora=dict(r=2, target_modules=["q_proj", "k_proj", "v_proj"]))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return cases.write_all(tmp_path_factory.mktemp("toys"))


def leaf(project: Project, folders: dict[str, str], name: str, stage1: Path | None = None) -> Path:
    """The leaf of stage 1, or of stage 2 which starts from it."""
    first = stage1 is None
    text = LEAF.format(
        run="pretrain" if first else "instruct",
        system="lyrics_pretrain" if first else "lyrics",
        paths=folders,
        words=len(toy.PIECES) + 1,
        pieces=toy.PIECES,
        data=project.data,
        model={} if first else {"fresh": ("projector",)},
        settings={} if first else {**LORA, "pretrained_pth": str(stage1)},
    )
    file = project.folder / "configs" / f"{name}.py"
    file.write_text(text)
    return file


@pytest.fixture(scope="module")
def stages(project: Project, folders: dict[str, str]) -> dict[str, Path]:
    """Work directories of both stages, four steps each."""
    first, output = project.train(leaf(project, folders, "lyrics_stage1"), how="here")
    assert (first / "iter_4.pth").exists(), output[-4000:]
    second, output = project.train(leaf(project, folders, "lyrics_stage2", first), how="here")
    assert (second / "iter_4.pth").exists(), output[-4000:]
    return {"lyrics_stage1": first, "lyrics_stage2": second}


def test_what_each_stage_saves(stages: dict[str, Path]) -> None:
    saved = {
        name: {key.split(".")[0] for key in load_training_checkpoint(folder / "iter_4.pth")}
        for name, folder in stages.items()
    }
    assert saved == {"lyrics_stage1": {"mq_former", "heads"}, "lyrics_stage2": {"mq_former", "projector", "llm"}}
    log = next(stages["lyrics_stage2"].glob("*/*.log")).read_text()
    assert f"checkpoint {stages['lyrics_stage1']}" in log and "13 ignored: heads." in log


@pytest.mark.parametrize("stage", ["lyrics_stage1", "lyrics_stage2"])
def test_resumed_runs_are_uninterrupted_ones(stage: str, project: Project, stages: dict[str, Path]) -> None:
    project.assert_resumes(stage, stages[stage])


@pytest.mark.parametrize(
    ("stage", "mode"),
    [("lyrics_stage1", "deepspeed_zero2"), ("lyrics_stage1", "deepspeed_zero3"), ("lyrics_stage2", "deepspeed_zero3")],
)
def test_two_processes_with_deepspeed(stage: str, mode: str, project: Project, stages: dict[str, Path]) -> None:
    pytest.importorskip("deepspeed")
    config = project.folder / "configs" / f"{stage}.py"
    work_dir, output = project.train(config, "--deepspeed", mode, processes=2, name=f"{stage}_{mode}")
    losses = read_losses(work_dir)
    assert losses and all(map(math.isfinite, losses.values())), output[-4000:]
    newest = load_training_checkpoint(work_dir)
    expected = load_training_checkpoint(stages[stage] / "iter_4.pth")
    assert newest.keys() == expected.keys()
    assert all(newest[name].shape == expected[name].shape for name in expected)
