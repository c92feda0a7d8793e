"""The command line of the converter."""

import json
import os
import runpy
import sys
from pathlib import Path

import pytest
import torch

from mg_llava.models.weights.checkpoint import load_training_checkpoint
from tests import toy

TOOL = Path(__file__).parents[2] / "tools" / "convert_checkpoint.py"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(TOOL), run_name="__main__")
    return int(stop.value.code or 0)


class Attack:
    """Makes a folder when it is unpickled the ordinary way."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.path,)


@pytest.fixture()
def checkpoint(toy_paths: dict[str, str], tmp_path: Path) -> Path:
    """A stage-1 checkpoint that runs code when it is loaded the ordinary way."""
    content = {"state_dict": toy.build_model(toy_paths).state_dict(), "meta": Attack(str(tmp_path / "hacked"))}
    torch.save(content, tmp_path / "iter_1.pth")
    return tmp_path / "iter_1.pth"


def test_inspect_and_convert(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: object
) -> None:
    assert run(monkeypatch, checkpoint, "--inspect", "--json") == 0
    report = json.loads(capsys.readouterr().out)  # type: ignore[attr-defined]
    assert report["kind"] == "reference .pth" and report["parts"]["fuse_module"]["tensors"] == 12
    target = tmp_path / "out.pth"
    assert run(monkeypatch, checkpoint, target, "--to", "mmengine", "--dtype", "float16") == 0
    captured = capsys.readouterr()  # type: ignore[attr-defined]
    assert "fuse_module: 12 tensors" in captured.out and "writing" in captured.err
    state = load_training_checkpoint(target, dtype=None)
    assert len(state) == 20 and all(tensor.dtype == torch.float16 for tensor in state.values())
    torch.load(target, weights_only=True)
    assert not (tmp_path / "hacked").exists()


def test_failures(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: object) -> None:
    state = load_training_checkpoint(checkpoint)
    del state["projector.model.0.bias"]
    torch.save(state, tmp_path / "part.pth")
    assert run(monkeypatch, tmp_path / "part.pth", "--inspect") == 1
    assert "incomplete: 1 keys are missing: projector.model.0.bias" in capsys.readouterr().out  # type: ignore[attr-defined]
    cut = tmp_path / "cut.pth"
    cut.write_bytes(checkpoint.read_bytes()[:5000])
    for source, message in (
        (tmp_path / "part.pth", "projector.model.0.bias"),
        (cut, "cut.pth (5000 bytes) cannot be read as a checkpoint"),
        (tmp_path, "is a work directory. Give one of its checkpoints: cut.pth, iter_1.pth, part.pth"),
        (tmp_path / "none.pth", "none.pth does not exist"),
    ):
        assert run(monkeypatch, source, tmp_path / "out.pth", "--to", "reference") == 1
        error = capsys.readouterr().err  # type: ignore[attr-defined]
        assert "error: " in error and message in error
        assert not (tmp_path / "out.pth").exists()
    assert run(monkeypatch, checkpoint) == 2
    assert run(monkeypatch, checkpoint, tmp_path / "hf", "--to", "hf") == 1
    assert "--config" in capsys.readouterr().err  # type: ignore[attr-defined]
