"""Tensors that stay in their files until they are read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mg_llava.models.weights.archive import EXPECTED, CheckpointError, damaged_message, read_archive

SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Names of dtypes in the header of a safetensors file."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is made when it is read and not kept.

    Args:
        shape: Its shape.
        dtype: Its dtype.
        read: Gives the tensor on the CPU; it may share memory with the mapped file, so it must not be changed.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @classmethod
    def of(cls, tensor: Tensor) -> "StoredTensor":
        """A tensor that is in memory, or mapped into it, anyway."""
        return cls(tuple(tensor.shape), tensor.dtype, lambda: tensor)

    @property
    def numel(self) -> int:
        """Number of elements."""
        return torch.Size(self.shape).numel()

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * self.dtype.itemsize

    def to(self, dtype: torch.dtype | None) -> "StoredTensor":
        """The tensor in another dtype; integers, and all with None, stay as they are."""
        if dtype is None or dtype == self.dtype or not self.dtype.is_floating_point:
            return self
        return StoredTensor(self.shape, dtype, lambda: self.read().to(dtype))


TensorMap = dict[str, StoredTensor]


def nonfinite_names(tensors: Mapping[str, Any]) -> list[str]:
    """Names of tensors with nan or inf among tensors or stored ones, which are read one by one."""
    found = []
    for name, tensor in tensors.items():
        if tensor.dtype.is_floating_point:
            values = tensor.read() if isinstance(tensor, StoredTensor) else tensor
            if not torch.isfinite(values if values.dtype.itemsize > 1 else values.float()).all():
                found.append(name)
    return found


def nonfinite_message(source: str | Path, names: list[str]) -> str:
    """Why a checkpoint with nan or inf is refused."""
    return (
        f"{source} holds nan or inf in {len(names)} tensors, e.g. {names[0]}; its training went wrong. Use an earlier "
        "checkpoint, or train again with a lower learning rate"
    )


def map_weights(path: Path) -> tuple[TensorMap, dict[str, Any]]:
    """Weights of one file and what else is in it.

    Args:
        path: ``.safetensors``, or a file of ``torch.save`` with a state dict, bare or under ``"state_dict"``.

    Returns:
        The tensors, and the file's other top-level entries (safetensors: its metadata), plain values alone.

    Raises:
        CheckpointError: If the file is damaged or of another kind.
    """
    if path.suffix == ".safetensors":
        return _map_safetensors(path)
    content = read_archive(path)
    if isinstance(content, Mapping) and "buffer_names" in content and "module" in content:
        raise CheckpointError(
            f"{path} is one shard of a DeepSpeed checkpoint. Give the folder instead: {path.parent}. {EXPECTED}"
        )
    weights = content.get("state_dict", content) if isinstance(content, Mapping) else content
    entries = weights if isinstance(weights, Mapping) else {}
    odd = [name for name, value in entries.items() if not isinstance(value, Tensor)]
    if not entries or (len(odd) == len(entries) and weights is content):
        found = f"a mapping with the keys {list(content)[:8]}" if isinstance(content, Mapping) else type(content)
        raise CheckpointError(f"{path} holds no state dict but {found}. {EXPECTED}")
    if odd:
        raise CheckpointError(
            f"{path}: {len(odd)} entries of its state dict are no tensors, e.g. {odd[0]}; what they are was not run. "
            "It is damaged or not to be trusted: get it again from its source"
        )
    rest = {} if weights is content else {key: value for key, value in content.items() if key != "state_dict"}
    return map_state_dict(weights), rest


def map_state_dict(state: Mapping[str, Tensor]) -> TensorMap:
    """Tensors that are there anyway; names of one and the same (tied weights) get one and the same entry."""
    seen: dict[tuple[Any, ...], StoredTensor] = {}
    tensors: TensorMap = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr() or name, tensor.shape, tensor.stride(), tensor.dtype)
        tensors[str(name)] = seen.setdefault(key, StoredTensor.of(tensor))
    return tensors


def _map_safetensors(path: Path) -> tuple[TensorMap, dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(path, framework="pt")  # kept open by the tensors' readers
        tensors: TensorMap = {}
        for name in file.keys():
            view = file.get_slice(name)
            dtype = SAFETENSORS_DTYPES[view.get_dtype()]
            tensors[name] = StoredTensor(tuple(view.get_shape()), dtype, lambda name=name: file.get_tensor(name))  # type: ignore[misc]
        return tensors, dict(file.metadata() or {})
    except (SafetensorError, OSError, KeyError) as error:
        with path.open("rb") as stream:
            raise CheckpointError(damaged_message(stream, path, error)) from error
