"""Folders of Hugging Face models: their weights without loading them, and what the configuration says of them."""

import json
from pathlib import Path
from typing import Any

import torch

from mg_llava.conversion.files import ConversionError
from mg_llava.conversion.layout import Shape
from mg_llava.models.weights.archive import CheckpointError
from mg_llava.models.weights.stored import TensorMap, map_weights

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLE = ("model.safetensors", "pytorch_model.bin")
SMALL_FILES = ("*.json", "*.model", "*.txt", "*.jinja", "*.py", "LICENSE*", "NOTICE*")
"""What of a folder is copied beside the weights."""
_WEIGHTS = ["*.safetensors", "*.bin"]
_UNUSED = ["*.h5", "*.msgpack", "*.gguf", "*.onnx", "*.pth", "original/*"]


def find_folder(path: str | Path, weights: bool = True) -> Path:
    """A local folder, or what the hub has under a name.

    Args:
        path: Folder or name.
        weights: Whether the weights are needed too.

    Raises:
        ConversionError: If there is neither, and the hub cannot be reached.
    """
    folder = Path(path)
    if folder.is_dir():
        return folder
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(str(path), ignore_patterns=_UNUSED if weights else [*_UNUSED, *_WEIGHTS]))
    except Exception as error:  # the hub's client has dozens
        raise ConversionError(
            f"{path} is no folder here and cannot be had from the hub ({type(error).__name__}); download it, and give "
            "its folder in the config or with --llm"
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """A folder's ``config.json``; empty where there is none.

    Raises:
        CheckpointError: If it is damaged.
    """
    file = folder / "config.json"
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error
    return content if isinstance(content, dict) else {}


def map_folder(folder: Path) -> TensorMap:
    """All weights of a Hugging Face folder, under its own names.

    Raises:
        CheckpointError: If there are none, a shard is absent or damaged, or lacks what the index says it has.
    """
    for name in INDEXES:
        if (folder / name).is_file():
            return _map_shards(folder, name)
    for name in SINGLE:
        if (folder / name).is_file():
            return map_weights(folder / name)[0]
    raise CheckpointError(f"{folder} has no weights; expected one of {', '.join((*INDEXES, *SINGLE))}")


def _map_shards(folder: Path, index: str) -> TensorMap:
    try:
        weight_map: dict[str, str] = json.loads((folder / index).read_text())["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / index} is damaged: {error}") from error
    files = sorted(set(weight_map.values()))
    absent = [name for name in files if not (folder / name).is_file() or Path(name).name != name]
    if absent:
        raise CheckpointError(
            f"{folder} lacks {len(absent)} of its {len(files)} files of weights: {', '.join(absent[:4])}; copy or "
            "download it again"
        )
    tensors: TensorMap = {}
    for name in files:
        found, _ = map_weights(folder / name)
        lacking = [key for key, file in weight_map.items() if file == name and key not in found]
        if lacking:
            raise CheckpointError(
                f"{folder / name} lacks {len(lacking)} tensors that {index} says it has, e.g. {lacking[0]}; the "
                "folder was put together from two models"
            )
        tensors |= {key: found[key] for key in weight_map if weight_map[key] == name}
    return tensors


def expected_weights(folder: Path, trust_remote_code: bool = False) -> tuple[dict[str, Shape], dict[str, str]]:
    """Names and shapes of the parameters of the LLM that a folder's configuration describes.

    Returns:
        Shape by name; and further names of tied weights with the name they stand for.

    Raises:
        ConversionError: If the folder holds no causal LM.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        text = read_config(folder).get("text_config")
        if text is None:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        else:  # a folder of the whole model
            config = AutoConfig.for_model(**text)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except (ValueError, OSError) as error:
        raise ConversionError(f"{folder} holds no causal LM: {str(error).splitlines()[0]}") from error
    model.tie_weights()
    names = {id(parameter): name for name, parameter in reversed(list(model.named_parameters()))}
    every = dict(model.named_parameters(remove_duplicate=False))
    shapes = {name: tuple(parameter.shape) for name, parameter in every.items() if names[id(parameter)] == name}
    tied = {name: names[id(parameter)] for name, parameter in every.items() if names[id(parameter)] != name}
    return shapes, tied
