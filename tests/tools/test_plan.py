"""The command line of the planner."""

import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "mg_llava_qwen2_5_0_5b_instruct.py")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., tuple[int, str, str]]:
    """Runs the tool; returns exit status, output and errors."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["plan.py", *arguments])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / "tools" / "plan.py"), run_name="__main__")
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return call


def test_tables_and_json(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
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
    command = [sys.executable, str(ROOT / "tools" / "plan.py"), CONFIG, "--ignore-missing", "--json", "-"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["fits"]


def test_status_for_ci(run: Callable[..., tuple[int, str, str]]) -> None:
    status, out, _ = run(CONFIG, "--ignore-missing", "--cfg-options", "train_dataloader.batch_size=4096")
    assert status == 1
    assert "This cannot run." in out and "takes" in out and "groups 16 samples" in out
    status, _, err = run("no_such_config.py")
    assert status == 2 and "no_such_config.py" in err
    status, _, err = run(CONFIG, "--gpu", "A1000")
    assert status == 2 and "known: A100-80G" in err
