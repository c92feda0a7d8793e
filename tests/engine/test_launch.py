"""The real `xtuner train` on two CPU processes, plain and with DeepSpeed, against one process; and what it leaves."""

import os

import pytest
import torch
from mmengine.config import Config

from mg_llava.engine import launch as distributed
from mg_llava.models.weights.checkpoint import load_training_checkpoint
from tests.engine.conftest import launch
from tests.run import read_log, read_losses

MODES = {
    "ddp": [],
    "zero2": ["--deepspeed", "deepspeed_zero2"],
    "zero3": ["--deepspeed", "deepspeed_zero3"],
}
TRAINED = {f"{part}.{kind}" for part in ("fuse_module", "projector", "llm") for kind in ("weight", "bias")}


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """Work directory and output of one run in each mode, ZeRO-2 by the console command."""
    folder = tmp_path_factory.mktemp("launched")
    return {
        mode: (folder / mode, launch(folder / mode, *arguments, command=mode == "zero2"))
        for mode, arguments in MODES.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_two_processes_equal_one(launched, runs, mode):
    """Two processes with two samples each take the steps of one process with four."""
    work_dir, output = launched[mode]
    assert (work_dir / "iter_5.pth").exists(), output[-3000:]
    runner, _ = runs.train(**{"train_dataloader.batch_size": 4})
    expected = runner.model.state_dict()
    found = load_training_checkpoint(work_dir / "iter_5.pth")
    assert set(found) >= TRAINED
    tolerance = 1e-5 if mode == "ddp" else 2e-2
    for name in TRAINED:
        torch.testing.assert_close(found[name], expected[name], atol=tolerance, rtol=tolerance)


@pytest.mark.slow
def test_deepspeed_checkpoints(launched):
    folder = launched["zero2"][0]
    second = load_training_checkpoint(folder / "iter_5.pth")
    third = load_training_checkpoint(launched["zero3"][0] / "iter_5.pth")
    assert set(second) == set(third) == TRAINED | {"scale"}  # without the frozen encoder
    for name in second:  # sums of gradients are split differently, and some CPUs round them so
        torch.testing.assert_close(second[name], third[name], rtol=0, atol=1e-7)
    with pytest.raises(ValueError, match="one shard of a DeepSpeed checkpoint"):
        load_training_checkpoint(folder / "iter_5.pth" / "mp_rank_00_model_states.pt")
    newest = load_training_checkpoint(folder)  # a work directory stands for its newest checkpoint
    assert all(torch.equal(newest[name], second[name]) for name in second)


@pytest.mark.slow
def test_deepspeed_consolidation_agrees(launched):
    zero_to_fp32 = pytest.importorskip("deepspeed.utils.zero_to_fp32")
    for mode in ("zero2", "zero3"):
        theirs = zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint(str(launched[mode][0]), tag="iter_5.pth")
        ours = load_training_checkpoint(launched[mode][0] / "iter_5.pth")
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_hooks_report_in_every_mode(launched, mode):
    last = read_log(launched[mode][0])[-1]
    assert {"gate", "low_norm", "grad_fuse_module", "grad_projector", "grad_llm"} <= set(last)
    assert last["grad_projector"] > 0 and last["samples_per_s"] > 0 and last["tokens_per_s"] > 0
    assert "Data (process 1): 2 pictures could not be read" in launched[mode][1]


@pytest.mark.slow
def test_monitor_agrees_between_modes(launched):
    first = {mode: read_log(launched[mode][0])[0] for mode in MODES}
    for key in ("low_norm", "grad_projector", "grad_llm", "loss"):
        assert first["zero2"][key] == pytest.approx(first["zero3"][key], rel=1e-3)
        assert first["zero2"][key] == pytest.approx(first["ddp"][key], rel=3e-2)


@pytest.mark.slow
def test_resume_with_deepspeed(launched, tmp_path):
    work_dir, _ = launched["zero3"]
    output = launch(tmp_path / "resumed", *MODES["zero3"], "--resume", str(work_dir / "iter_2.pth"))
    assert (tmp_path / "resumed" / "iter_5.pth").exists(), output[-3000:]
    whole = read_losses(work_dir)
    assert read_losses(tmp_path / "resumed") == {step: whole[step] for step in (3, 4, 5)}


@pytest.mark.slow
def test_resume_in_another_number_of_processes(launched, runs):
    """Two processes with two samples each go on as one with four: same samples, same order, same steps."""
    folder = launched["ddp"][0]
    runner, losses = runs.train(resume=folder / "iter_2.pth", **{"train_dataloader.batch_size": 4})
    assert set(losses) == {3, 4, 5}
    whole = load_training_checkpoint(folder / "iter_5.pth")
    for name, tensor in runner.model.state_dict().items():
        torch.testing.assert_close(tensor, whole[name], atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_dumped_config_prepares_too(launched):
    """A flattened config has lost the import statement; there mmengine reads ``custom_imports``."""
    text = (launched["ddp"][0] / "launch_config.py").read_text()
    assert "mg_llava.cpu_launch" in text
    assert Config.fromfile(launched["ddp"][0] / "launch_config.py").custom_imports.imports == ["mg_llava.cpu_launch"]


def test_nothing_is_prepared_without_torchrun(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(distributed, "get_device", lambda: "cpu")
    assert not distributed.prepare_cpu_launch()


@pytest.mark.parametrize("option", [["--deepspeed", "deepspeed_zero2"], ["--deepspeed=deepspeed_zero2"]])
def test_deepspeed_in_one_process_needs_no_launcher(monkeypatch, option):
    for name in distributed.LAUNCHER_VARIABLES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name in ("_declare_bf16_support", "_disable_deepspeed_shared_memory", "_complete_deepspeed_gathers"):
        monkeypatch.setattr(distributed, name, lambda: None)
    groups = []
    monkeypatch.setattr(distributed.dist, "init_process_group", groups.append)
    monkeypatch.setattr(distributed, "get_device", lambda: "cpu")
    monkeypatch.setattr(distributed.sys, "argv", ["train.py", "config.py", *option])
    assert distributed.prepare_cpu_launch()
    assert groups == ["gloo"]
    monkeypatch.setattr(distributed.sys, "argv", ["plan.py", "config.py", *option])
    assert not distributed.is_deepspeed_asked_for()
    assert os.environ["WORLD_SIZE"] == "1" and os.environ["RANK"] == "0" and int(os.environ["MASTER_PORT"]) > 0


def test_nothing_is_prepared_with_a_gpu(monkeypatch):
    for name in distributed.LAUNCHER_VARIABLES:
        monkeypatch.setenv(name, "0")
    monkeypatch.setattr(distributed, "get_device", lambda: "cuda")
    monkeypatch.setattr(distributed.dist, "init_process_group", lambda *a, **k: pytest.fail("must not be called"))
    assert not distributed.prepare_cpu_launch()


def test_gathers_are_done_when_they_return():
    """ZeRO-3 waits for the last of many gathers alone, and gloo finishes them in any order."""
    waited = []

    class Work:
        def wait(self):
            waited.append(self)

    work = Work()
    assert distributed._completing(lambda *tensors, async_op: work)(1, 2, async_op=True) is work
    assert waited == [work]
    assert distributed._completing(lambda: None)() is None  # a synchronous gather has nothing to wait for
