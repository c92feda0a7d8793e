"""Tensors that stay in their files until they are read, and files read without ever running code stored in them."""

import pickle
import re
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

EXPECTED = (
    "Expected one of: a .pth file written by `xtuner train` (work_dirs/.../iter_N.pth), a file with a bare state dict "
    "(.pth, .bin or .safetensors), or the folder iter_N.pth that DeepSpeed writes (with *_model_states.pt in it)."
)

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


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says what was found, what is expected and how to fix it."""


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
    content = load_pickle(path)
    if isinstance(content, Mapping) and "buffer_names" in content and "module" in content:
        raise CheckpointError(
            f"{path} is one shard of a DeepSpeed checkpoint. Give the folder instead: {path.parent}. {EXPECTED}"
        )
    weights = content.get("state_dict", content) if isinstance(content, Mapping) else content
    inner = weights if isinstance(weights, Mapping) and weights is not content else {}
    odd = [name for name, value in inner.items() if not isinstance(value, Tensor)]
    if odd:
        raise CheckpointError(
            f"{path}: {len(odd)} entries of its state dict are no tensors, e.g. {odd[0]}; what they are was not run. "
            "It is damaged or not to be trusted: get it again from its source"
        )
    if not isinstance(weights, Mapping) or not weights or not all(isinstance(v, Tensor) for v in weights.values()):
        found = f"a mapping with the keys {list(content)[:8]}" if isinstance(content, Mapping) else type(content)
        raise CheckpointError(f"{path} holds no state dict but {found}. {EXPECTED}")
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
        raise CheckpointError(damaged_message(path, error)) from error


def load_pickle(path: Path) -> Any:
    """Load a file of ``torch.save`` onto the CPU, its tensors mapped, not copied.

    Objects that are neither tensors nor plain Python become inert.

    Raises:
        CheckpointError: If the file is damaged or of another kind.
    """
    if not zipfile.is_zipfile(path):
        return _load_legacy_pickle(path)
    try:
        return torch.load(path, map_location="cpu", mmap=True, pickle_module=_inert_pickle, weights_only=False)
    except Exception as error:  # a damaged pickle makes the unpickler fail in any way
        raise CheckpointError(damaged_message(path, error)) from error


def _load_legacy_pickle(path: Path) -> Any:
    """Load a file in torch's format from before version 1.6, where it holds tensors alone."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused is None:
            raise CheckpointError(damaged_message(path, error)) from error
        raise CheckpointError(
            f"{path} is in torch's format from before version 1.6 and holds {refused[1]}, which is no tensor and was "
            "not run. If you trust its source, load it there and save its state dict alone with a newer torch"
        ) from error
    except Exception as error:  # bytes of another kind of file make the unpickler fail in any way
        raise CheckpointError(damaged_message(path, error)) from error


def damaged_message(path: Path, error: Exception) -> str:
    """Why a file cannot be read, and what to do."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(40)
    if head.startswith(b"version https://git-lfs"):
        return f"{path} is a Git LFS pointer, not the weights. Run `git lfs pull` in its repository."
    # torch's advice to run what is stored is left out
    lines = [line for line in str(error).splitlines() if line.strip() and "weights_only" not in line]
    reason = ": ".join([type(error).__name__, *lines[:1]])[:200]
    return (
        f"{path} ({size} bytes) cannot be read as a checkpoint ({reason}). It is truncated or another kind of file; "
        f"copy or download it again. {EXPECTED}"
    )


class _Inert:
    """Stands for any stored object that is not a weight; accepts whatever the pickle does to it.

    It keeps nothing but the number that a member of an enumeration is made from.
    """

    number: int | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if len(args) == 1 and isinstance(args[0], int):
            self.number = args[0]

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
