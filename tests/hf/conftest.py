"""A toy model and its Hugging Face folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from mg_llava.hf import hf_key
from mg_llava.hf.export import folder_files
from tests import toy

PROCESSOR = {"type": "mg_llava.PictureProcessor", "image_size": toy.CANVAS}
PERCEPTION = {"type": "mg_llava.PerceptionPrompt", "threshold": 0.2, "order": "left", "most": 2, "dropout": 0.5}
BOXES = [[4.0, 6.0, 40.0, 30.0], [30.0, 20.0, 60.0, 44.0]]


def training_config(paths: dict[str, str], **changes: Any) -> dict[str, Any]:
    return {
        "model": toy.model_config(paths, **changes),
        "tokenizer": {"type": "transformers.AutoTokenizer", "pretrained_model_name_or_path": paths["llm"]},
        "prompt_template": "vicuna",
        "picture_processor": PROCESSOR,
    }


def own_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All tensors of one of our models, the encoders' included."""
    return torch.nn.Module.state_dict(model)


def write_weights(model: torch.nn.Module, folder: Path) -> None:
    state = {hf_key(name): tensor.contiguous() for name, tensor in own_state(model).items()}
    seen: set[int] = set()
    state = {name: t for name, t in state.items() if not (t.data_ptr() in seen or seen.add(t.data_ptr()))}  # ties
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def write_folder(
    folder: Path, paths: dict[str, str], standalone: bool = False, parts: Sequence[Any] = (), **changes: Any
) -> torch.nn.Module:
    """The folder of a toy model, and of its prompt parts; returns the model."""
    model = toy.build_model(paths, **changes).eval()
    config = {**training_config(paths, **changes), "prompt_parts": parts}
    folder_files(config, folder, dtype="float32", standalone=standalone)
    write_weights(model, folder)
    return model


def make_picture(seed: int = 0, size: tuple[int, int] = (64, 48)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3))
    return Image.fromarray(pixels.astype(np.uint8))


@dataclass(frozen=True)
class Exported:
    model: Any
    folder: Path
    paths: dict[str, str]


@pytest.fixture(scope="session")
def exported(toy_paths: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """One of our models, and the folder of it."""
    folder = tmp_path_factory.mktemp("hf") / "toy"
    return Exported(write_folder(folder, toy_paths), folder, toy_paths)
