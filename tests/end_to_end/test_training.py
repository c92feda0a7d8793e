"""Both stages through the real `xtuner train`: one process, two processes, DeepSpeed, resume, bad input."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mg_llava.data.pictures.shard_writing import plan_picture_shards, write_picture_shards
from mg_llava.models.weights.checkpoint import load_training_checkpoint
from mg_llava.registry import DATASETS
from tests.end_to_end.conftest import Project, train_split
from tests.run import read_log, run_tool

pytestmark = pytest.mark.slow

STAGE_1 = {"fuse_module", "projector", "bbox_projector"}


def parts(state: dict[str, torch.Tensor]) -> set[str]:
    """Parts of the model that a checkpoint has."""
    return {key.split(".", 1)[0] for key in state}


def evaluation_loss(project: Project, checkpoint: Path, config: str = "stage2") -> float:
    """Mean loss of a checkpoint over the toy data, in float32 on one process."""
    from mg_llava.data.collate import collate
    from mg_llava.registry import MODELS

    cfg = Config.fromfile(project.folder / "configs" / f"{config}.py")
    model = MODELS.build({**cfg.model, "pretrained_pth": None})
    model.load_pretrained(str(checkpoint), whole=True)
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    model.eval()
    with torch.no_grad():
        return float(model(collate([dataset[index] for index in range(8)])["data"])["loss"])


def test_stage_1_saves_what_it_trains(stage1: Path) -> None:
    state = load_training_checkpoint(stage1 / "iter_4.pth")
    assert parts(state) == STAGE_1
    # both projections of the Conv-Gate start at zero and have to come alive
    assert state["fuse_module.slow_proj.weight"].abs().max() > 0
    assert state["fuse_module.fast_proj.weight"].abs().max() > 0


def test_stage_2_starts_from_stage_1_and_saves_the_llm(stage1: Path, stage2: Path, project: Project) -> None:
    state = load_training_checkpoint(stage2 / "iter_4.pth")
    assert parts(state) == STAGE_1 | {"llm"}
    log = next(stage2.glob("*/*.log")).read_text()
    assert f"checkpoint {stage1}" in log and "projector: 4 tensors, " in log
    before = evaluation_loss(project, stage1_with_llm(project, stage1))
    assert evaluation_loss(project, stage2 / "iter_4.pth") < before


def test_log_has_monitors(stage1: Path) -> None:
    last = read_log(stage1)[-1]
    assert {"gate", "low_norm", "high_norm", "box_norm", "text_norm", "samples_per_s", "tokens_per_s"} <= set(last)
    assert last["grad_projector"] > 0


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_resumed_run_has_the_losses_of_the_whole_one(
    stage: str, project: Project, request: pytest.FixtureRequest
) -> None:
    options = []
    if stage == "stage2":  # with its pictures in tar files now
        data, shards = project.data, project.folder / "shards"
        write_picture_shards(plan_picture_shards([data["data_path"]], data["image_folder"], shards, 20_000))
        assert len(list(shards.glob("*.tar"))) > 2
        options = ["--cfg-options", f"train_dataloader.dataset.image_folder={shards}/*.tar"]
    project.assert_resumes(stage, request.getfixturevalue(stage), *options)


@pytest.mark.parametrize("mode", ["deepspeed_zero2", "deepspeed_zero3"])
def test_two_processes_with_deepspeed_reach_the_loss_of_one(
    mode: str, project: Project, stage1: Path, stage2: Path
) -> None:
    pytest.importorskip("deepspeed")
    work_dir = train_split(project, stage1, mode)
    before = evaluation_loss(project, stage1_with_llm(project, stage1))
    alone = evaluation_loss(project, stage2 / "iter_4.pth")
    split = evaluation_loss(project, work_dir / "iter_4.pth")
    assert alone < before  # training moved the loss, and both by the same amount
    assert split == pytest.approx(alone, rel=2e-2)


def stage1_with_llm(project: Project, stage1: Path) -> Path:
    """Stage 1's checkpoint with the untouched LLM added, to measure the loss before stage 2."""
    from transformers import AutoModelForCausalLM

    file = project.folder / "before.pth"
    llm = AutoModelForCausalLM.from_pretrained(project.paths["llm"])
    state = load_training_checkpoint(stage1 / "iter_4.pth")
    torch.save({**state, **{f"llm.{key}": value for key, value in llm.state_dict().items()}}, file)
    return file


def test_samples_of_any_length(project: Project, tmp_path: Path) -> None:
    """Without a limit doctor, planner, token cache and training take samples as they are, with all their boxes."""
    config = project.config("unlimited", "instruct", batch_size=4, seed=0, pretrained_pth=None, lr=1e-4)
    config.write_text(config.read_text().replace("context_length=128", "context_length=None"))
    dataset = DATASETS.build(Config.fromfile(config).train_dataloader.dataset)
    assert dataset.budget.text_limit(1) is None and max(dataset.modality_length) < 200
    checked = run_tool("check_data", config, "--out", tmp_path / "report.json", "--strict", "--quiet")
    assert checked.status == 0, checked.out + checked.err
    planned = run_tool("plan", config, "--gpus", 1, "--json", tmp_path / "plan.json")
    assert json.loads((tmp_path / "plan.json").read_text())["conflicts"] == [], planned.out
    filled = run_tool("fill_token_cache", config, "--folder", tmp_path / "tokens", "--workers", 1)
    assert filled.status == 0, filled.out + filled.err
    work_dir, output = project.train(config, how="here")
    assert (work_dir / "iter_4.pth").exists(), output[-4000:]


class TestBadInput:
    """Each gives one clear message that names what is wrong, and the run ends."""

    def fail(self, project: Project, config: Path, *arguments: str) -> str:
        work_dir, output = project.train(config, *arguments, name=f"bad_{config.stem}", how="here")
        assert not (work_dir / "iter_4.pth").exists()
        return output

    def test_wrong_checkpoint_kind(self, project: Project) -> None:
        config = project.config("bad_checkpoint", "instruct", batch_size=4, pretrained_pth=project.paths["clip"])
        assert "is a model folder in Hugging Face format" in self.fail(project, config)

    def test_llm_without_tokenizer(self, project: Project, tmp_path: Path) -> None:
        folder = tmp_path / "llm"
        shutil.copytree(project.paths["llm"], folder, ignore=shutil.ignore_patterns("*token*"))
        bad = Project(project.folder, {**project.paths, "llm": str(folder)}, project.data)
        output = self.fail(bad, bad.config("bad_llm", "pretrain", batch_size=4))
        assert str(folder) in output and "tokenizer" in output

    def test_unreadable_picture_and_sample_without_boxes(self, project: Project, tmp_path: Path) -> None:
        shutil.copytree(project.folder / "data", tmp_path / "data")
        data = {key: value.replace(str(project.folder), str(tmp_path)) for key, value in project.data.items()}
        (tmp_path / "data" / "images" / "4_0.png").write_bytes(b"not a picture")
        bad = Project(project.folder, project.paths, data)
        output = self.fail(bad, bad.config("bad_picture", "pretrain", batch_size=4))
        assert "4_0.png" in output and "toy_4" in output
        boxes = json.loads(Path(data["box_path"]).read_text())
        Path(data["box_path"]).write_text(json.dumps([box for box in boxes if box["id"] != "toy_2"]))
        output = self.fail(bad, bad.config("bad_boxes", "pretrain", batch_size=4))
        assert "toy_2" in output and "boxes.json" in output
