"""An unpickler that builds tensors and plain values by functions of its own, and runs nothing that a file names."""

import enum
import importlib
import pickle
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.storage import TypedStorage

LoadStorage = Callable[[str, str, int], torch.UntypedStorage]
"""Gives a storage of a file by its key, the place it was saved from and the bytes that are needed of it."""


class RefusedFile(Exception):
    """A file that is not read; the message continues the file's name."""


class Inert:
    """Stands for any stored object that is neither a tensor nor a plain value; takes whatever a pickle does to it.

    It keeps nothing but the number that a member of an enumeration is made from.
    """

    number: int | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if len(args) == 1 and isinstance(args[0], int):
            self.number = args[0]
        if len(args) == 2 and args[0] is Inert and isinstance(args[1], str):
            self.name = args[1]  # a member of an enumeration, as Python 3.11.0 to 3.11.3 store it

    def _ignore(self, *args: Any, **kwargs: Any) -> Any:
        return self

    __call__ = __setstate__ = __setitem__ = append = extend = add = _ignore


class InertUnpickler(pickle.Unpickler):
    """Resolves a few names, to functions of this module and to plain classes; nothing is imported for a file.

    Args:
        file: Open at the pickle.
        load: Gives the storages.
        refuse: Refuse other names, in place of putting :class:`Inert` objects there; objects that training needs to
            resume (histories of mmengine, settings of DeepSpeed) are known then.

    Raises:
        RefusedFile: On loading, for a name that is not known.
    """

    def __init__(self, file: IO[bytes], load: LoadStorage, refuse: bool) -> None:
        super().__init__(file, encoding="utf-8")
        self._load, self._refuse = load, refuse

    def find_class(self, module: str, name: str) -> Any:
        """The function or class for a name in the pickle."""
        found = _KNOWN.get((module.replace("__builtin__", "builtins"), name))
        if found is None and module in ("torch", "torch.storage") and name in STORAGES:
            found = _StorageType(STORAGES[name])
        if found is None and module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            found = getattr(torch, name)
        if found is None and self._refuse:
            found = _of_training(module, name)
        if found is None and self._refuse:
            raise RefusedFile(
                f"holds {module}.{name}, which is neither a tensor nor a plain value and was not run. If you trust "
                "its source, load it there and save its tensors alone: torch.save(state_dict, 'weights.pth')"
            )
        return Inert if found is None else found

    def persistent_load(self, pid: Any) -> TypedStorage:
        """The storage for ``("storage", type, key, location, elements)``."""
        kind, storage_type, key, location, count, *view = pid
        if kind != "storage" or any(part is not None for part in view) or not isinstance(storage_type, _StorageType):
            raise pickle.UnpicklingError("no storage of a tensor")
        if not (isinstance(key, str) and isinstance(location, str) and isinstance(count, int) and count >= 0):
            raise pickle.UnpicklingError("a storage without key or size")
        dtype = storage_type.dtype
        return _typed(self._load(key, location, count * dtype.itemsize), dtype)


class _StorageType(NamedTuple):
    dtype: torch.dtype


def _typed(storage: torch.UntypedStorage, dtype: torch.dtype) -> TypedStorage:
    return TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)


STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}


def _tensor(
    storage: TypedStorage,
    offset: int,
    size: Sequence[int],
    stride: Sequence[int],
    requires_grad: bool = False,
    hooks: Any = None,
    metadata: Any = None,
) -> Tensor:
    """``torch._utils._rebuild_tensor_v2``, within the storage's bounds."""
    if not isinstance(storage, TypedStorage) or metadata or min((offset, *size, *stride), default=0) < 0:
        raise pickle.UnpicklingError("a tensor of another kind")
    untyped = storage._untyped_storage
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) + 1
    if 0 not in size and last * storage.dtype.itemsize > untyped.nbytes():
        raise pickle.UnpicklingError(f"a tensor of {tuple(size)} is larger than its storage")
    tensor = torch.empty(0, dtype=storage.dtype, device=untyped.device)
    tensor.set_(untyped, offset, tuple(size), tuple(stride))
    return tensor.requires_grad_(bool(requires_grad))


def _tensor_of_dtype(storage: TypedStorage, *rest: Any) -> Tensor:
    """``torch._utils._rebuild_tensor_v3``: for dtypes without a storage class of their own."""
    *place, dtype = rest[:6]  # offset, size, stride, requires_grad, hooks
    if not isinstance(storage, TypedStorage) or not isinstance(dtype, torch.dtype):
        raise pickle.UnpicklingError("a tensor without dtype")
    return _tensor(_typed(storage._untyped_storage, dtype), *place)


def _parameter(data: Tensor, requires_grad: bool = True, *_: Any) -> torch.nn.Parameter:
    return torch.nn.Parameter(data, requires_grad=bool(requires_grad))


def _without_state(build: Any, kind: Any, arguments: Sequence[Any], state: Any) -> Any:
    """``torch._tensor._rebuild_from_type_v2`` without the attributes that somebody hung on a tensor."""
    if build not in (_tensor, _tensor_of_dtype, _parameter):
        raise pickle.UnpicklingError("a tensor of another kind")
    return build(*arguments)


class _DType:
    """Stands for a numpy dtype of numbers; others are refused."""

    def __init__(self, name: str, *_: Any) -> None:
        self.dtype = np.dtype(name)
        if self.dtype.kind not in "biufcSU" or self.dtype.fields is not None:
            raise pickle.UnpicklingError(f"a numpy array of {name}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] == ">":
            self.dtype = self.dtype.newbyteorder(">")
        if self.dtype.kind in "SU":
            self.dtype = np.dtype(f"{self.dtype.str[:2]}{int(state[5]) // (4 if self.dtype.kind == 'U' else 1)}")


class _Array(np.ndarray):
    """A numpy array of numbers from a file; it is saved as a plain one again."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        version, shape, kind, fortran, data = state
        if not isinstance(kind, _DType) or not isinstance(data, bytes):
            raise pickle.UnpicklingError("a numpy array of objects")
        super().__setstate__((version, shape, kind.dtype, fortran, data))

    def __reduce__(self) -> Any:
        return self.view(np.ndarray).__reduce__()


def _array(*_: Any) -> _Array:
    return np.empty(0, dtype=np.uint8).view(_Array)


def _scalar(kind: _DType, data: bytes) -> Any:
    return np.frombuffer(data, dtype=kind.dtype, count=1)[0]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Bytes, as old protocols of pickle spell them."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes in {encoding}")
    return text.encode("latin1")


def _layout(name: str) -> torch.layout:
    if name != "torch.strided":
        raise pickle.UnpicklingError(f"a tensor of layout {name}")
    return torch.strided


_KNOWN: dict[tuple[str, str], Any] = {
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "complex"): complex,
    ("builtins", "slice"): slice,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
    ("torch", "Size"): torch.Size,
    ("torch", "Tensor"): Tensor,
    ("torch", "device"): torch.device,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_of_dtype,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _without_state,
    ("torch.nn.parameter", "Parameter"): torch.nn.Parameter,
    ("torch.serialization", "_get_layout"): _layout,
}
_NUMPY = {"dtype": _DType, "ndarray": np.ndarray, "_reconstruct": _array, "scalar": _scalar}

_DEEPSPEED = {
    ("deepspeed.runtime.fp16.loss_scaler", "LossScaler"),
    ("deepspeed.runtime.fp16.loss_scaler", "DynamicLossScaler"),
    ("deepspeed.runtime.zero.config", "ZeroStageEnum"),
    ("deepspeed.utils.tensor_fragment", "fragment_address"),
}


def _of_training(module: str, name: str) -> Any:
    """Classes of checkpoints that training resumes from; they hold numbers, and are imported only where one is met."""
    if module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray"):
        return _NUMPY.get(name)
    if (module, name) == ("mmengine.logging.history_buffer", "HistoryBuffer"):
        from mmengine.logging import HistoryBuffer

        return HistoryBuffer
    if (module, name) in (("builtins", "getattr"), ("__builtin__", "getattr")):
        return _attribute
    if (module, name) == ("mmengine.config.config", "ConfigDict"):
        return dict
    if (module, name) in _DEEPSPEED:
        return getattr(importlib.import_module(module), name)
    return None


def _attribute(owner: Any, name: str) -> Any:
    """A statistics method, which mmengine's histories name, or a member of an enumeration of DeepSpeed."""
    from mmengine.logging import HistoryBuffer

    if isinstance(owner, enum.EnumMeta) and name in owner.__members__:
        return owner[name]
    methods = {name: getattr(HistoryBuffer, name) for name in ("min", "max", "current", "mean")}
    methods |= HistoryBuffer._statistics_methods  # empty until a process has made a history
    if owner is not HistoryBuffer or name not in methods:
        raise RefusedFile(f"reads {name} of another object, which was not run; get the file again from its source")
    return methods[name]
