"""Reads training checkpoints of every kind into one plain state dict, without ever running code stored in them.

Kinds: an mmengine ``.pth`` file, a bare state dict (``.pth``, ``.bin``, ``.safetensors``), and the folder DeepSpeed
writes (ZeRO 1, 2 or 3; its full-precision shards are put together here, so DeepSpeed need not be installed).
"""

import math
import pickle
import re
import types
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

StateDict = dict[str, Tensor]

EXPECTED = (
    "Expected one of: a .pth file written by `xtuner train` (work_dirs/.../iter_N.pth), a file with a bare state dict "
    "(.pth, .bin or .safetensors), or the folder iter_N.pth that DeepSpeed writes (with *_model_states.pt in it)."
)
MODEL_STATES = "*_model_states.pt"
OPTIMIZER_STATES = "*_optim_states.pt"
HUGGING_FACE_FILES = ("config.json", "adapter_config.json", "open_clip_config.json", "tokenizer_config.json")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says what was found, what is expected and how to fix it."""


def load_training_checkpoint(path: str | Path, dtype: torch.dtype | None = torch.float32) -> StateDict:
    """Load the weights of a training checkpoint.

    Args:
        path: File, DeepSpeed folder, or the work directory of a run, which stands for its newest checkpoint.
        dtype: Type the floating-point tensors are converted to; None keeps the stored ones.

    Returns:
        Parameter and buffer names with their CPU tensors, as saved (only what was trained, if only that was saved).

    Raises:
        FileNotFoundError: Nothing at ``path``.
        CheckpointError: Another kind of file or folder, or a damaged one.
    """
    path = newest_checkpoint(Path(path))
    if not path.exists():
        raise FileNotFoundError(_missing_message(path))
    state_dict = _load_deepspeed_folder(path) if path.is_dir() else _load_file(path)
    return {name: _convert(tensor, dtype) for name, tensor in state_dict.items()}


def newest_checkpoint(path: Path) -> Path:
    """The checkpoint that a work directory's ``last_checkpoint`` names; any other path as it is."""
    pointer = path / "last_checkpoint"
    if not pointer.is_file():
        return path
    named = Path(pointer.read_text().strip())
    moved = path / named.name  # the work directory may have been moved since
    return moved if moved.exists() else named


def _convert(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def _missing_message(path: Path) -> str:
    parent = path.parent
    near = sorted(p.name for p in parent.glob("*.pth")) if parent.is_dir() else []
    hint = f"{parent} has: {', '.join(near)}." if near else f"{parent} holds no *.pth either."
    return f"Checkpoint {path} does not exist. {hint} {EXPECTED}"


# ---------------------------------------------------------------------------------------------------------------------
# Files


def _load_file(path: Path) -> StateDict:
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    content = _load_pickle(path)
    if isinstance(content, Mapping) and "buffer_names" in content and "module" in content:
        raise CheckpointError(
            f"{path} is one shard of a DeepSpeed checkpoint. Give the folder instead: {path.parent}. {EXPECTED}"
        )
    weights = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(weights, Mapping) or not weights or not all(isinstance(v, Tensor) for v in weights.values()):
        found = f"a mapping with the keys {list(content)[:8]}" if isinstance(content, Mapping) else type(content)
        raise CheckpointError(f"{path} holds no state dict but {found}. {EXPECTED}")
    return dict(weights)


def _load_safetensors(path: Path) -> StateDict:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(_damaged_message(path, error)) from error


def _load_pickle(path: Path) -> Any:
    """Load a file of ``torch.save`` onto the CPU; objects that are neither tensors nor plain Python become inert."""
    if not zipfile.is_zipfile(path):
        return _load_legacy_pickle(path)
    try:
        return torch.load(path, map_location="cpu", mmap=True, pickle_module=_inert_pickle, weights_only=False)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise CheckpointError(_damaged_message(path, error)) from error


def _load_legacy_pickle(path: Path) -> Any:
    """Load a file in torch's format from before version 1.6, where it holds tensors alone."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes of another kind of file make the unpickler fail in any way
        raise CheckpointError(_damaged_message(path, error)) from error


def _damaged_message(path: Path, error: Exception) -> str:
    size = path.stat().st_size
    head = path.open("rb").read(40)
    if head.startswith(b"version https://git-lfs"):
        return f"{path} is a Git LFS pointer, not the weights. Run `git lfs pull` in its repository."
    first_line = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return (
        f"{path} ({size} bytes) cannot be read as a checkpoint: {first_line} It is truncated or another kind of file; "
        f"copy or download it again. {EXPECTED}"
    )


class _Inert:
    """Stands for any stored object that is not a weight; accepts whatever the pickle does to it and keeps nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def _ignore(self, *args: Any, **kwargs: Any) -> None: ...

    __setstate__ = __setitem__ = append = extend = add = _ignore


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch", "Tensor"): torch.Tensor,
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): torch._tensor._rebuild_from_type_v2,
    ("torch.nn.parameter", "Parameter"): torch.nn.Parameter,
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
}


class _InertUnpickler(pickle.Unpickler):
    """Resolves the few names tensors are rebuilt with; every other becomes :class:`_Inert`, nothing is imported."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        return _ALLOWED.get((module, name), _Inert)


_inert_pickle = types.ModuleType("inert_pickle", "What torch.load needs of a pickle module.")
_inert_pickle.Unpickler = _InertUnpickler  # type: ignore[attr-defined]


# ---------------------------------------------------------------------------------------------------------------------
# Folders of DeepSpeed


def _load_deepspeed_folder(folder: Path) -> StateDict:
    model_files = _by_rank(folder.glob(MODEL_STATES))
    if not model_files:
        raise CheckpointError(_wrong_folder_message(folder))
    models = [_load_pickle(file) for file in model_files]
    optimizers = [_load_pickle(file)["optimizer_state_dict"] for file in _by_rank(folder.glob(OPTIMIZER_STATES))]
    first = models[0]
    weights: StateDict = {name: first["module"][name] for name in first["buffer_names"] if name in first["module"]}
    if not optimizers:
        weights.update(_stored_weights(folder, first))
    else:
        _check_shard_count(folder, optimizers)
        weights.update(_frozen_weights(models))
        partitioned = "fp32_flat_groups" in optimizers[0]
        weights.update(_join_stage_3(first, optimizers) if partitioned else _join_stage_1_2(first, optimizers))
    for alias, name in first["shared_params"].items():
        if name in weights:
            weights[alias] = weights[name]
    return weights


def _by_rank(files: Any) -> list[Path]:
    return sorted(files, key=lambda file: [int(number) for number in re.findall(r"\d+", file.name)])


def _wrong_folder_message(folder: Path) -> str:
    inside = sorted(file.name for file in folder.iterdir())
    checkpoints = [name for name in inside if name.endswith(".pth")]
    if checkpoints:
        return f"{folder} is a work directory. Give one of its checkpoints: {', '.join(checkpoints)}."
    if any(name in inside for name in HUGGING_FACE_FILES):
        return (
            f"{folder} is a model folder in Hugging Face format (it has {', '.join(inside[:6])}), not a training "
            f"checkpoint. {EXPECTED} A language model or encoder folder is set by its own path in the config."
        )
    found = f"it has {', '.join(inside[:6])}" if inside else "it is empty"
    return f"{folder} is a folder without a checkpoint ({found}). {EXPECTED}"


def _check_shard_count(folder: Path, optimizers: list[dict]) -> None:
    count = optimizers[0]["partition_count"]
    wanted = max(count) if isinstance(count, list) else count
    if wanted != len(optimizers):
        raise CheckpointError(
            f"{folder} was written by {wanted} processes but has {len(optimizers)} files {OPTIMIZER_STATES}. "
            "Copy the files of every node into this folder."
        )


def _stored_weights(folder: Path, model: dict) -> StateDict:
    """Take the weights in training precision, when the optimizer's full-precision copy was not kept."""
    if any(tensor.numel() == 0 for tensor in model["module"].values()):
        raise CheckpointError(f"{folder} is a ZeRO-3 checkpoint without {OPTIMIZER_STATES}, which hold its weights.")
    return dict(model["module"])


def _frozen_weights(models: list[dict]) -> StateDict:
    """Frozen parameters, where they were saved: whole in ZeRO 1 and 2, one fragment per rank in ZeRO 3."""
    frozen: StateDict = {}
    for name, shape in (models[0]["frozen_param_shapes"] or {}).items():
        fragments = torch.cat([model["frozen_param_fragments"][name].flatten() for model in models])
        frozen[name] = fragments[: shape.numel()].view(shape)
    return frozen


def _join_stage_1_2(model: dict, optimizers: list[dict]) -> StateDict:
    """Each rank holds one slice of every parameter group's flat vector."""
    weights: StateDict = {}
    for index, shapes in enumerate(model["param_shapes"]):
        flat = torch.cat([optimizer["single_partition_of_fp32_groups"][index] for optimizer in optimizers])
        offset = 0
        for name, shape in shapes.items():
            weights[name] = flat[offset : offset + shape.numel()].view(shape).clone()
            offset += shape.numel()
    return weights


def _join_stage_3(model: dict, optimizers: list[dict]) -> StateDict:
    """Each rank holds one slice of every parameter, padded to the same length."""
    flats = [torch.cat(list(optimizer["fp32_flat_groups"])) for optimizer in optimizers]
    weights: StateDict = {}
    offset = 0
    for shapes in model["param_shapes"]:
        for name, shape in shapes.items():
            length = math.ceil(shape.numel() / len(flats))
            joined = torch.cat([flat[offset : offset + length] for flat in flats])
            weights[name] = joined[: shape.numel()].view(shape)
            offset += length
    return weights
