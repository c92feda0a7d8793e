"""A checkpoint is resumed with the settings it was trained with, or refused with all that differs in one message."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mg_llava.engine.facts import ResumeError, _precision, differences
from mg_llava.models.weights.archive import CheckpointError
from tests.engine.conftest import ToyRuns
from tests.run import forget_runs

CHANGES = {
    "one more epoch": ({"train_cfg.max_iters": 10}, "steps in all .*: 5 in the checkpoint, 10 here"),
    "batch size": ({"train_dataloader.batch_size": 3}, "samples in a step .*: 2 in the checkpoint, 3 here"),
    "records": ({"train_dataloader.dataset.length": 14}, "records: 12 in the checkpoint, 14 here"),
    "order": ({"train_dataloader.sampler.type": "InfiniteSampler"}, "order of samples: DefaultSampler in"),
    "learning rate": ({"optim_wrapper.optimizer.lr": 3e-3}, "learning rate: 0.01 in the checkpoint, 0.003 here"),
    "weight decay": ({"optim_wrapper.optimizer.weight_decay": 0.3}, "weight decay: 0.01 in .*, 0.3 here"),
    "optimizer": ({"optim_wrapper.optimizer.type": "Adam"}, "optimizer: AdamW in the checkpoint, Adam here"),
    "schedule": ({"param_scheduler.0.eta_min": 1e-4}, r"param_scheduler 0 \(CosineAnnealingLR\) eta_min: 0.0 in"),
    "accumulation": ({"optim_wrapper.accumulative_counts": 2}, "gradient accumulation: 1 in the checkpoint, 2 here"),
    "group": (
        {"optim_wrapper.paramwise_cfg.custom_keys.llm.lr_mult": 0.5},
        "learning rate: 0.01 in the checkpoint, 0.005, 0.01 here",
    ),
    "stage": ({"model.trains_llm": False}, "another stage.*\n.*trained part llm: 2 tensors with 9 numbers"),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint of step 4 of 5."""
    runs = ToyRuns(tmp_path_factory.mktemp("trained"))
    runs.train()
    forget_runs()
    return runs.work_dir / "iter_4.pth"


@pytest.fixture
def checkpoint(trained, tmp_path):
    """Its copy, beside which a test may write others."""
    return Path(shutil.copy(trained, tmp_path))


@pytest.mark.parametrize("change", CHANGES)
def test_changed_settings_are_refused(runs, checkpoint, change):
    options, message = CHANGES[change]
    with pytest.raises(ResumeError, match=rf"(?s)iter_4.pth cannot be resumed.*{message}") as caught:
        runs.train(resume=checkpoint, **options)
    assert f"--cfg-options model.pretrained_pth={checkpoint}" in str(caught.value)


def test_all_differences_are_in_one_message(runs, checkpoint):
    options = {
        key: value for name in ("batch size", "records", "weight decay") for key, value in CHANGES[name][0].items()
    }
    with pytest.raises(ResumeError) as caught:
        runs.train(resume=checkpoint, **options)
    for name in ("samples in a step", "records", "weight decay", "steps in an epoch"):
        assert f"  {name}" in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"default_hooks.checkpoint.interval": 3},
        {"default_hooks.checkpoint.max_keep_ckpts": 1},
        {"train_dataloader.num_workers": 1},
        {"optim_wrapper.clip_grad.max_norm": 0.5},
        {"optim_wrapper.optimizer.fused": False},
    ],
)
def test_harmless_changes_pass(runs, checkpoint, options):
    _, rest = runs.train(resume=checkpoint, **options)
    assert set(rest) == {5}


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"bf16": {"enabled": True}, "fp16": {"enabled": False}}, "bfloat16"),
        ({"fp16": {"enabled": True}}, "float16"),
        ({"bf16": {"enabled": False}}, "float32"),
    ],
)
def test_precision_and_stage_of_deepspeed_count(config, found):
    config |= {"gradient_accumulation_steps": 4, "zero_optimization": {"stage": 2}}
    facts = _precision(SimpleNamespace(strategy=SimpleNamespace(config=config)))
    assert facts["precision"] == found and facts["DeepSpeed"] == "ZeRO-2" and facts["gradient accumulation"] == 4


def test_same_step_in_other_processes_is_the_same():
    facts = {"samples in a step (batch size x processes)": 8, "order of samples": "DefaultSampler"}
    assert differences(facts, dict(reversed(facts.items()))) == []


def test_finished_run_says_so(runs):
    runs.train()
    runs.build(resume=runs.work_dir / "iter_5.pth").train()
    assert "nothing is left to train: the checkpoint is of step 5 of 5" in _log(runs)


def test_checkpoint_without_facts_is_compared_by_its_tensors(runs, checkpoint):
    content = torch.load(checkpoint, weights_only=False)
    del content["message_hub"]["runtime_info"]["run_facts"]
    old = checkpoint.with_name("old.pth")
    torch.save(content, old)
    runs.train(resume=old)
    assert "does not say with which settings it was trained" in _log(runs)
    content["state_dict"] = {key: value for key, value in content["state_dict"].items() if not key.startswith("llm")}
    torch.save(content, old)
    with pytest.raises(ResumeError, match=r"2 trained tensors are not in it, e\.g\. llm\.bias"):
        runs.train(resume=old)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_cut_off_checkpoint_is_named(runs, checkpoint, share):
    content = checkpoint.read_bytes()
    cut = checkpoint.with_name("cut.pth")
    cut.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=r"cut\.pth .*cannot be read as a checkpoint"):
        runs.train(resume=cut)


def test_empty_pointer_is_named(runs):
    runner = runs.build()
    runs.work_dir.mkdir(exist_ok=True)
    (runs.work_dir / "last_checkpoint").write_text("")
    runner._resume = True
    with pytest.raises(ResumeError, match="run0/last_checkpoint is empty"):
        runner.train()


def _log(runs):
    return next(runs.work_dir.glob("*/*.log")).read_text()
