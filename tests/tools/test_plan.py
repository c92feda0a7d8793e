"""The command line of the planner."""

import json
from pathlib import Path

import pytest

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
