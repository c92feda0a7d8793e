"""Reads training checkpoints of every kind into one plain state dict, without ever running code stored in them.

Kinds: an mmengine ``.pth`` file, a bare state dict (``.pth``, ``.bin``, ``.safetensors``), and the folder DeepSpeed
writes (ZeRO 1, 2 or 3).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mg_llava.models.weights.archive import EXPECTED, CheckpointError
from mg_llava.models.weights.deepspeed import MODEL_STATES, map_deepspeed_folder
from mg_llava.models.weights.loading import StateDict
from mg_llava.models.weights.stored import TensorMap, map_weights

HUGGING_FACE_FILES = ("config.json", "adapter_config.json", "open_clip_config.json", "tokenizer_config.json")


@dataclass(frozen=True)
class TrainingCheckpoint:
    """An open checkpoint; its tensors are read one by one."""

    path: Path
    kind: str
    """``"mmengine .pth"``, ``"state dict"``, ``"safetensors"`` or ``"DeepSpeed ZeRO-N folder"``."""
    tensors: TensorMap
    extra: dict[str, Any]
    """Everything else in it, e.g. mmengine's ``"meta"``; objects that are not plain Python are inert."""


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
    tensors = open_training_checkpoint(path).tensors
    return {name: tensor.to(dtype).read() for name, tensor in tensors.items()}


def open_training_checkpoint(path: str | Path) -> TrainingCheckpoint:
    """Open a training checkpoint without reading its tensors; arguments and errors as for loading one."""
    path = newest_checkpoint(Path(path))
    if not path.exists():
        raise FileNotFoundError(_missing_message(path))
    if path.is_dir():
        if not any(path.glob(MODEL_STATES)):
            raise CheckpointError(_wrong_folder_message(path))
        tensors, extra = map_deepspeed_folder(path)
        return TrainingCheckpoint(path, f"DeepSpeed ZeRO-{extra['zero_stage']} folder", tensors, extra)
    tensors, extra = map_weights(path)
    if path.suffix == ".safetensors":
        return TrainingCheckpoint(path, "safetensors", tensors, extra)
    return TrainingCheckpoint(path, "mmengine .pth" if "meta" in extra else "state dict", tensors, extra)


def newest_checkpoint(path: Path) -> Path:
    """The checkpoint that a work directory's ``last_checkpoint`` names; any other path as it is."""
    pointer = path / "last_checkpoint"
    if not pointer.is_file():
        return path
    named = Path(pointer.read_text(errors="replace").strip())
    moved = path / named.name  # the work directory may have been moved since
    return moved if moved.exists() else named


def _missing_message(path: Path) -> str:
    parent = path.parent
    near = sorted(p.name for p in parent.glob("*.pth")) if parent.is_dir() else []
    hint = f"{parent} has: {', '.join(near)}." if near else f"{parent} holds no *.pth either."
    return f"Checkpoint {path} does not exist. {hint} {EXPECTED}"


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
