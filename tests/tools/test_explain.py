"""The tool behind the figures of probabilities and attention."""

import json
from pathlib import Path

from PIL import Image

from tests.run import run_tool


def test_both_figures_are_written(files: dict[str, str], tmp_path: Path) -> None:
    model = [files["config"], "--checkpoint", files["checkpoint"], "--image", files["image"], "--out", tmp_path]
    asked = ["--question", "what is at {box}?", "--box", "4,4,30,30", "--answer", "a cat"]
    done = run_tool("explain", *model, *asked)
    assert done.status == 0, done.err
    found = json.loads((tmp_path / "probabilities.json").read_text())
    assert found["questions"]["without box"] == "what is at ?" and "<box:0>" in found["questions"]["with box"]
    assert (
        len(found["tokens"]) == len(found["probabilities"]["with box"]) == len(found["probabilities"]["without box"])
    )
    assert "mean" in done.out and Image.open(tmp_path / "attention.png").width > 600
    own = run_tool("explain", *model, "--question", "what is there?", "--layer", -1)
    assert own.status == 0, own.err
    assert list(json.loads((tmp_path / "probabilities.json").read_text())["mean"]) == ["question"]
    assert run_tool("explain", *model, "--question", "what is at {box}?").status == 2
    wrong = run_tool("explain", *model, "--question", "what?", "--answer", "a", "--layer", 99)
    assert wrong.status == 1 and "layer is 99" in wrong.err
