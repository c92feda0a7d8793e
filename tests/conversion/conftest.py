"""Checkpoints of the toy model in every kind, written as their writers write them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from torch import Tensor

from mg_llava.models.weights.checkpoint import load_training_checkpoint
from tests import toy

State = dict[str, Tensor]


def config_values(paths: dict[str, str], tuning: str = "full", **changes: Any) -> dict[str, Any]:
    """A training config as far as a conversion looks at it."""
    return {
        "model": toy.model_config(paths, tuning, **changes),
        "tokenizer": {
            "type": "transformers.AutoTokenizer.from_pretrained",
            "pretrained_model_name_or_path": paths["llm"],
            "padding_side": "right",
        },
        "prompt_template": "vicuna",
        "picture_processor": {"type": "mg_llava.PictureProcessor", "image_size": toy.CANVAS},
    }


def write_pth(path: Path, state: State, config: dict[str, Any] | None = None) -> Path:
    """A checkpoint as mmengine writes it; without a config as the reference's release has it."""
    meta = {"iter": 7, "epoch": 0, "seed": 3}
    if config is not None:
        meta["cfg"] = Config(config).pretty_text
    torch.save({"meta": meta, "state_dict": state, "message_hub": {"loss": [1.0]}, "optimizer": {"state": {}}}, path)
    return path


def write_config(path: Path, config: dict[str, Any]) -> Path:
    """The config as a file."""
    Config(config).dump(path)
    return path


def assert_same(found: State, expected: State) -> None:
    """Equal names, dtypes and bits."""
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def read(path: Path) -> State:
    """Weights of a file in their own dtypes."""
    return load_training_checkpoint(path, dtype=None)


@pytest.fixture(scope="session")
def values(toy_paths: dict[str, str]) -> dict[str, Any]:
    """Config of stage 2."""
    return config_values(toy_paths)


@pytest.fixture(scope="session")
def state(toy_paths: dict[str, str]) -> State:
    """What stage 2 saves, in the dtypes of a training on GPUs: LLM in bfloat16, the rest in float32."""
    torch.manual_seed(5)
    model = toy.build_model(toy_paths, "full")
    trained = {name: torch.randn_like(tensor) for name, tensor in model.state_dict().items()}
    return {name: tensor.bfloat16() if name.startswith("llm.") else tensor for name, tensor in trained.items()}


@pytest.fixture(scope="session")
def stage_2(tmp_path_factory: pytest.TempPathFactory, state: State, values: dict[str, Any]) -> Path:
    """mmengine checkpoint of stage 2, with its config inside."""
    return write_pth(tmp_path_factory.mktemp("stage2") / "iter_7.pth", state, values)


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory, state: State) -> Path:
    """The reference's layout: half precision, no config of ours."""
    half = {name: tensor.half() for name, tensor in state.items()}
    return write_pth(tmp_path_factory.mktemp("published") / "iter_21000.pth", half)


@pytest.fixture(scope="session")
def change(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a reference-layout file from a changed state."""

    def write(state: State, **changes: Tensor | None) -> Path:
        changed = {**state, **changes}
        return write_pth(
            tmp_path_factory.mktemp("changed") / "iter_1.pth", {k: v for k, v in changed.items() if v is not None}
        )

    return write
