"""The command line of the planner."""

import json
from pathlib import Path

import pytest

from tests.hf.conftest import write_folder
from tests.run import ROOT, Ran, run_python, run_tool

CONFIG = str(ROOT / "configs" / "mg_llava_qwen2_5_0_5b_instruct.py")


def run(*arguments: str) -> Ran:
    return run_tool("plan", *arguments)


def test_tables_and_json(tmp_path: Path) -> None:
    status, out, _ = run(CONFIG, "--gpus", "8", "--gpu", "A100-80G", "--json", str(tmp_path / "plan.json"))
    assert status == 3
    for text in (
        "bbox_projector",
        "pays after",
        "TFLOPs of a sample",
        "deepspeed_zero3_offload",
        "hours per epoch at 40% MFU",
    ):
        assert text in out
    assert "llm Qwen/Qwen2.5-0.5B-Instruct: not in the hub's cache" in out
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["parameters"]["llm"] == {"all": 494032768, "trained": 494032768}
    assert plan["steps"]["total_batch"] == 128 and plan["status"] == 3
    assert {"weights", "gradients", "states", "activations", "total"} <= set(plan["memory"][0])


@pytest.mark.slow
def test_json_alone_is_printed_for_a_pipe() -> None:
    """In a process of its own, where the log has not been opened before."""
    done = run_python(ROOT / "tools" / "plan.py", CONFIG, "--ignore-missing", "--json", "-")
    assert done.returncode == 0 and json.loads(done.stdout)["fits"]


def test_status_for_ci() -> None:
    status, out, _ = run(CONFIG, "--ignore-missing", "--cfg-options", "train_dataloader.batch_size=4096")
    assert status == 1
    assert "This cannot run." in out and "takes" in out and "groups 16 samples" in out
    status, _, err = run("no_such_config.py")
    assert status == 2 and "no_such_config.py" in err
    status, _, err = run(CONFIG, "--gpu", "A1000")
    assert status == 2 and "known: A100-80G" in err
    for name, value in (
        ("--boxes", "-5"),
        ("--disk", "nan"),
        ("--text-tokens", "0"),
        ("--json", "/dev/null/plan.json"),
    ):
        status, out, err = run(CONFIG, name, value)
        assert status == 2 and "error: " in err.strip().splitlines()[-1], err


def test_a_model_that_answers(toy_paths: dict[str, str], tmp_path: Path) -> None:
    """Of a folder, standalone or not, without its weights; sizes are those of the model."""
    model = write_folder(tmp_path / "toy", toy_paths)
    (tmp_path / "toy" / "model.safetensors").unlink()
    status, out, err = run(str(tmp_path / "toy"), "--gpu", "T4-16G", "--json", str(tmp_path / "plan.json"))
    assert status == 0, err
    assert "answering on one T4-16G" in out and "a picture: 4 tokens" in out
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["parameters"]["llm"] == sum(p.numel() for p in model.llm.parameters())
    assert plan["weights"] == sum(p.numel() * 4 for p in model.parameters())
    config = model.llm.config
    keys = config.hidden_size // config.num_attention_heads * config.num_key_value_heads
    assert plan["token"] == 2 * config.num_hidden_layers * keys * 4 and plan["context"] == 512
    assert plan["together"] * 512 * plan["token"] < 14.5 * 2**30
    (tmp_path / "bare").mkdir()
    status, _, err = run(str(tmp_path / "bare"))
    assert status == 2 and "bare has no config.json" in err
    status, _, err = run("user/nowhere")
    assert status == 2 and "cannot be had from the hub" in err


@pytest.mark.parametrize(
    "arguments",
    [("plan", "{}"), ("benchmark", "launches", "--config", "{}"), ("fill_feature_cache", "{}", "--folder", "x")],
)
def test_a_config_without_a_model_is_named(arguments: tuple[str, ...], tmp_path: Path) -> None:
    config = tmp_path / "base.py"
    config.write_text("train_dataloader = dict(dataset=dict(type='mg_llava.LLaVADataset', data_path='x.json'))\n")
    tool, *others = [argument.format(config) for argument in arguments]
    status, _, err = run_tool(tool, *others)
    assert status in (1, 2) and f"{config} has no model; give the config of a training" in err, err
