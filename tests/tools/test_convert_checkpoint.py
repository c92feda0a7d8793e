"""The command line of the converter."""

import json
import os
from pathlib import Path

import pytest
import torch

from mg_llava.models.weights.checkpoint import load_training_checkpoint
from tests import toy
from tests.run import Ran, run_tool


def run(*arguments: object) -> Ran:
    return run_tool("convert_checkpoint", *arguments)


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


def test_inspect_and_convert(checkpoint: Path, tmp_path: Path) -> None:
    done = run(checkpoint, "--inspect", "--json")
    report = json.loads(done.out)
    assert done.status == 0
    assert report["kind"] == "reference .pth" and report["parts"]["fuse_module"]["tensors"] == 12
    target = tmp_path / "out.pth"
    done = run(checkpoint, target, "--to", "mmengine", "--dtype", "float16")
    assert done.status == 0 and "fuse_module: 12 tensors" in done.out and "writing" in done.err
    state = load_training_checkpoint(target, dtype=None)
    assert len(state) == 20 and all(tensor.dtype == torch.float16 for tensor in state.values())
    torch.load(target, weights_only=True)
    assert not (tmp_path / "hacked").exists()


def test_failures(checkpoint: Path, tmp_path: Path) -> None:
    state = load_training_checkpoint(checkpoint)
    del state["projector.model.0.bias"]
    torch.save(state, tmp_path / "part.pth")
    done = run(tmp_path / "part.pth", "--inspect")
    assert done.status == 1 and "incomplete: 1 keys are missing: projector.model.0.bias" in done.out
    cut = tmp_path / "cut.pth"
    cut.write_bytes(checkpoint.read_bytes()[:5000])
    for source, message in (
        (tmp_path / "part.pth", "projector.model.0.bias"),
        (cut, "cut.pth (5000 bytes) cannot be read as a checkpoint"),
        (tmp_path, "is a work directory. Give one of its checkpoints: cut.pth, iter_1.pth, part.pth"),
        (tmp_path / "none.pth", "none.pth does not exist"),
    ):
        done = run(source, tmp_path / "out.pth", "--to", "reference")
        assert done.status == 1 and "error: " in done.err and message in done.err
        assert not (tmp_path / "out.pth").exists()
    assert run(checkpoint).status == 2
    done = run(checkpoint, tmp_path / "hf", "--to", "hf")
    assert done.status == 1 and "--config" in done.err
