"""Folders of Hugging Face models: their weights, mapped and not loaded, and putting such into a module."""

import re
from pathlib import Path
from typing import Any

from torch import nn

from mg_llava.models.weights.archive import CheckpointError
from mg_llava.models.weights.loading import fill_tensor, full_shape
from mg_llava.models.weights.report import Expected, check_keys
from mg_llava.models.weights.stored import TensorMap, map_weights
from mg_llava.work.json_text import load_object

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLE = ("model.safetensors", "pytorch_model.bin")
_WEIGHTS = ["*.safetensors", "*.bin"]
_UNUSED = ["*.h5", "*.msgpack", "*.gguf", "*.onnx", "*.pth", "original/*"]

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class NoWeightsError(CheckpointError, FileNotFoundError):
    """A folder has no weights."""


def is_model(name: str | Path) -> bool:
    """Whether a name is that of a folder or of a hub's model, and not of a file; neither may be there."""
    path = Path(name)
    if path.suffix in (".py", ".json", ".yaml", ".yml") or path.is_file():
        return False
    return path.is_dir() or _HUB_ID.fullmatch(str(name)) is not None


def find_folder(path: str | Path, weights: bool = True) -> Path:
    """A local folder, or what the hub has under a name.

    Args:
        path: Folder or name.
        weights: Whether the weights are needed too.

    Raises:
        FileNotFoundError: If there is neither, and the hub cannot be reached.
    """
    folder = Path(path)
    if folder.is_dir():
        return folder
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(str(path), ignore_patterns=_UNUSED if weights else [*_UNUSED, *_WEIGHTS]))
    except Exception as error:  # the hub's client has dozens
        raise FileNotFoundError(
            f"{path} is no folder here and cannot be had from the hub ({type(error).__name__}); download it, and give "
            "its folder in its place"
        ) from error


def read_folder_config(folder: Path) -> dict[str, Any]:
    """A folder's ``config.json``; empty where there is none.

    Raises:
        CheckpointError: If it is damaged.
    """
    file = folder / "config.json"
    if not file.is_file():
        return {}
    try:
        return load_object(file)
    except ValueError as error:
        raise CheckpointError(f"{file} is damaged: {error}; copy or download it again") from error


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
    raise NoWeightsError(f"{folder} has no weights; expected one of {', '.join((*INDEXES, *SINGLE))}")


def _map_shards(folder: Path, index: str) -> TensorMap:
    try:
        weight_map: dict[str, str] = load_object(folder / index)["weight_map"]
        files = sorted({str(name) for name in weight_map.values()})
    except (ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{folder / index} is damaged: {error}; copy or download it again") from error
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


def load_mapped(module: nn.Module, tensors: TensorMap, source: str) -> None:
    """Copy mapped tensors into a module, one at a time, in its dtype and layout; every key must fit.

    Args:
        module: A module with weights in memory.
        tensors: For each parameter and persistent buffer its tensor.
        source: Where they are from, for messages.

    Raises:
        ValueError: Naming the source and the missing, unexpected or misshapen keys.
    """
    own = module.state_dict(keep_vars=True)
    report = check_keys(tensors, Expected({name: full_shape(tensor) for name, tensor in own.items()}))
    if problems := report.misfits:
        raise ValueError(f"{source} does not fit {type(module).__name__}: " + "; ".join(problems))
    for key, target in own.items():
        fill_tensor(target, tensors[key].read)
