"""Both stages of MR-MLLM by the real `xtuner train`: the LLM stays, resuming, two processes with DeepSpeed."""

import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mg_llava.models.weights.checkpoint import load_training_checkpoint
from mg_llava.registry import DATASETS, MODELS
from tests.detection import toys
from tests.end_to_end.conftest import Project

pytestmark = pytest.mark.slow

LEAF = """
from mmengine.config import read_base

with read_base():
    from ._base_.run import {stage}
    from ._base_.runtime import *
    from ._base_.systems.mr_mllm import mr_mllm

from mg_llava.data import PerceptionPrompt
from mg_llava.models import AddedBiases, CLIPEncoder, PromptBranch, RefinementHead, SharedQueries, TransformerDetector

branch = dict(type=PromptBranch, width=16, blocks=1, heads=2)
globals().update(
    {stage}(
        mr_mllm(
            dict(llm_name_or_path={paths[llm]!r}, prompt_template="vicuna"),
            dict(type=CLIPEncoder, path={paths[clip]!r}),
            dict(type=TransformerDetector, path={detector!r}, objects=4, image_size=64),
            prompts=dict(type="mg_llava.GatedPrompts", prompts=3),
            scene=branch,
            objects=branch,
            shared_queries=dict(type=SharedQueries, width=16, queries=4, heads=2),
            perception=dict(type=PerceptionPrompt, text=None, threshold=0.0, most=3, dropout=0.3),
            {parts}
        ),
        {data!r},
        lr=5e-3,
        tuning="frozen",
        context_length=160,
        dataloader_num_workers=0,
        precision="float32",
        save_steps=2,
        save_total_limit=-1,
        max_norm=1,
        log_interval=1,
        seed=0,
        dataset=dict(boxes=dict(targets={targets!r}), budget=dict(long_text_margin=None)),
        {settings}
    )
)
log_processor = dict(by_epoch=False, window_size=1)
del {stage}, mr_mllm, branch
"""
INSTRUCTED = "refine=dict(type=RefinementHead, width=16, heads=2), biases=AddedBiases, fresh=['refine', 'biases'],"
ALIGNED = {"adapter", "scene", "objects", "shared_queries"}


class Toy:
    """Configs of both stages over the toy project."""

    def __init__(self, project: Project) -> None:
        self.project = project
        folder = project.folder / "mr_mllm"
        self.detector = str(toys.write_detr(folder / "detr"))
        records = json.loads(Path(project.data["box_path"]).read_text())
        for record in records:
            record["labels"] = [f"LABEL_{number % 3}" for number in range(len(record["boxes"]))]
        self.targets = str(folder / "targets.json")
        Path(self.targets).write_text(json.dumps(records))

    def config(self, name: str, stage: str, parts: str = "", **settings: object) -> Path:
        """Write a leaf."""
        own = " ".join(f"{key}={value!r}," for key, value in settings.items())
        text = LEAF.format(
            stage=stage,
            parts=parts,
            settings=own,
            paths=self.project.paths,
            data=self.project.data,
            detector=self.detector,
            targets=self.targets,
        )
        file = self.project.folder / "configs" / f"{name}.py"
        file.write_text(text)
        return file

    def instruct(self, name: str, start: Path, **settings: object) -> Path:
        """Write a leaf of stage B."""
        return self.config(name, "instruct", INSTRUCTED, pretrained_pth=str(start), **{"batch_size": 4, **settings})


@pytest.fixture(scope="module")
def mr_mllm(project: Project) -> Toy:
    return Toy(project)


@pytest.fixture(scope="module")
def aligned(mr_mllm: Toy) -> Path:
    """Work directory of stage A."""
    config = mr_mllm.config("mr_mllm_a", "pretrain", batch_size=4)
    work_dir, output = mr_mllm.project.train(config, how="here")
    assert (work_dir / "iter_4.pth").exists(), output[-4000:]
    return work_dir


@pytest.fixture(scope="module")
def instructed(mr_mllm: Toy, aligned: Path) -> Path:
    """Work directory of stage B."""
    work_dir, output = mr_mllm.project.train(mr_mllm.instruct("mr_mllm_b", aligned), how="here")
    assert (work_dir / "iter_4.pth").exists(), output[-4000:]
    return work_dir


def parts(state: dict[str, torch.Tensor]) -> set[str]:
    return {key.split(".", 1)[0] for key in state}


def losses_of(project: Project, checkpoint: Path, config: str) -> dict[str, float]:
    """Losses of a checkpoint over the toy data, in float32 on one process."""
    from mg_llava.data.collate import collate

    cfg = Config.fromfile(project.folder / "configs" / f"{config}.py")
    model = MODELS.build({**cfg.model, "pretrained_pth": None, "fresh": []})
    model.load_pretrained(str(checkpoint), whole=True)
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    model.eval()
    with torch.no_grad():
        values = model(collate([dataset[index] for index in range(8)])["data"])
    return {name: float(value) for name, value in values.items()}


def test_stages_save_what_they_train_and_the_llm_stays(
    mr_mllm: Toy, aligned: Path, instructed: Path, tmp_path: Path
) -> None:
    first, second = (load_training_checkpoint(folder / "iter_4.pth") for folder in (aligned, instructed))
    assert parts(first) == ALIGNED and parts(second) == ALIGNED | {"refine", "llm_bias"}
    assert all(first[key].abs().max() > 0 for key in first if key.endswith(".gate"))
    assert second["refine.out.2.weight"].abs().max() > 0 and second["llm_bias.0.q_proj.bias"].abs().max() > 0
    assert {"loss_refine"} <= set(losses_of(mr_mllm.project, instructed / "iter_4.pth", "mr_mllm_b"))
    # the LLM of the trained system is the one of its folder, byte by byte, and a plain LLM
    from transformers import AutoModelForCausalLM

    cfg = Config.fromfile(mr_mllm.project.folder / "configs" / "mr_mllm_b.py")
    model = MODELS.build({**cfg.model, "pretrained_pth": None, "fresh": []})
    model.load_pretrained(str(instructed / "iter_4.pth"), whole=True)
    model.llm.save_pretrained(tmp_path / "llm")
    plain, own = (
        AutoModelForCausalLM.from_pretrained(folder) for folder in (mr_mllm.project.paths["llm"], tmp_path / "llm")
    )
    before, after = plain.state_dict(), own.state_dict()
    assert set(before) == set(after) and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("stage", ["mr_mllm_a", "mr_mllm_b"])
def test_resumed_is_the_whole_run(stage: str, mr_mllm: Toy, request: pytest.FixtureRequest) -> None:
    whole = request.getfixturevalue({"mr_mllm_a": "aligned", "mr_mllm_b": "instructed"}[stage])
    mr_mllm.project.assert_resumes(stage, whole)


@pytest.mark.parametrize("mode", ["deepspeed_zero2", "deepspeed_zero3"])
def test_two_processes_with_deepspeed_reach_the_losses_of_one(
    mode: str, mr_mllm: Toy, aligned: Path, instructed: Path
) -> None:
    pytest.importorskip("deepspeed")
    config = mr_mllm.instruct(f"mr_mllm_{mode}", aligned, batch_size=2)
    work_dir, output = mr_mllm.project.train(config, "--deepspeed", mode, processes=2)
    assert (work_dir / "iter_4.pth").exists(), output[-4000:]
    state = load_training_checkpoint(work_dir / "iter_4.pth")
    assert parts(state) == ALIGNED | {"refine", "llm_bias"}
    alone = losses_of(mr_mllm.project, instructed / "iter_4.pth", "mr_mllm_b")
    split = losses_of(mr_mllm.project, work_dir / "iter_4.pth", "mr_mllm_b")
    for name, value in alone.items():
        assert split[name] == pytest.approx(value, rel=2e-2), name
    # all parts went the same way from where they started, as far as 16 bits tell
    start, whole = (load_training_checkpoint(folder / "iter_4.pth") for folder in (aligned, instructed))
    for part in ("adapter", "scene", "objects", "shared_queries", "refine.out.2", "llm_bias"):
        names = [name for name in whole if name.startswith(f"{part}.")]
        one, other = (
            torch.cat([(end[name].float() - start.get(name, torch.zeros(()))).flatten() for name in names])
            for end in (whole, state)
        )
        assert torch.cosine_similarity(one, other, dim=0) > 0.8, part
