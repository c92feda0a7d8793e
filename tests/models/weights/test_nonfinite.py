"""Weights that are nan or inf are refused by name wherever a checkpoint is taken up."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mg_llava.conversion import ConversionOptions, inspect
from mg_llava.conversion.files import ConversionError
from mg_llava.models.weights.stored import map_weights, nonfinite_names
from tests import toy

BAD = [
    ("projector.model.0.weight", float("nan")),
    ("fuse_module.gate.0.bias", float("inf")),
    ("bbox_projector.model.2.weight", -float("inf")),
]


@pytest.fixture(scope="module")
def stage_1(toy_paths: dict[str, str]) -> nn.Module:
    return toy.build_model(toy_paths)


def write(model: nn.Module, path: Path, name: str, value: float) -> Path:
    """A checkpoint with one bad value, in the format of the file's name."""
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    state[name].view(-1)[-1] = value
    save_file(state, path) if path.suffix == ".safetensors" else torch.save({"state_dict": state, "meta": {}}, path)
    return path


@pytest.mark.parametrize(("name", "value"), BAD)
@pytest.mark.parametrize("file", ["bad.pth", "bad.safetensors"])
def test_next_stage_does_not_start_from_them(toy_paths, stage_1, tmp_path, name, value, file):
    path = write(stage_1, tmp_path / file, name, value)
    with pytest.raises(ValueError, match=rf"{file} holds nan or inf in 1 tensors, e\.g\. {name};"):
        toy.build_model(toy_paths, "full", pretrained_pth=str(path))


@pytest.mark.parametrize(("name", "value"), BAD)
def test_verify_names_them(stage_1, tmp_path, name, value):
    path = write(stage_1, tmp_path / "bad.pth", name, value)
    inspect(path)  # looks at names and shapes alone
    with pytest.raises(ConversionError, match=rf"bad.pth holds nan or inf in 1 tensors, e\.g\. {name};"):
        inspect(path, ConversionOptions(verify=True))


def test_finite_ones_pass(toy_paths, stage_1, tmp_path):
    path = write(stage_1, tmp_path / "good.pth", "projector.model.0.weight", 1e30)
    assert not inspect(path, ConversionOptions(verify=True))[1].problems
    model = toy.build_model(toy_paths, "full", pretrained_pth=str(path))
    assert model.projector.model[0].weight.max() == 1e30


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_every_dtype_is_looked_at(tmp_path, dtype):
    state = {
        "good": torch.ones(3).to(dtype),
        "bad": torch.tensor([1.0, float("nan")]).to(dtype),
        "ids": torch.arange(3),
    }
    assert nonfinite_names(state) == ["bad"]
    save_file(state, tmp_path / "a.safetensors")
    assert nonfinite_names(map_weights(tmp_path / "a.safetensors")[0]) == ["bad"]
