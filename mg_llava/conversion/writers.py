"""Writes tensors to safetensors and to torch's ``.pth``, one at a time, so that never more than one is in memory."""

import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from mg_llava.conversion.files import ConversionError, atomic_file
from mg_llava.conversion.mapped import release_mapped_weights
from mg_llava.models.weights.stored import SAFETENSORS_DTYPES, StoredTensor, TensorMap

INDEX = "model.safetensors.index.json"
_DTYPE_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
_ALIGNMENT = 64
_LOCAL_HEADER = 30
"""Bytes of a zip entry before its name."""
_RELEASED = 1 << 18
"""Bytes of a tensor after which it pays to give back the pages of the files that it was read from."""

Progress = Callable[[str, int], None]
"""Called with the name and the size in bytes of each tensor that was written."""


def parse_size(text: str | int) -> int:
    """Bytes of ``"5GB"``, ``"200MB"`` or a plain number.

    Raises:
        ConversionError: If it is no size.
    """
    if isinstance(text, int):
        return text
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "B": 1}
    number = text.strip().upper()
    unit = next((unit for unit in units if number.endswith(unit)), "")
    try:
        size = int(float(number.removesuffix(unit)) * units.get(unit, 1))
    except ValueError:
        size = 0
    if size <= 0:
        raise ConversionError(f"{text!r} is no size of a shard; write for example 4GB or 500MB")
    return size


def plan_shards(tensors: TensorMap, max_bytes: int, stem: str = "model") -> dict[str, list[str]]:
    """Distribute tensors, in their order, over files of at most ``max_bytes``, or one tensor where that is larger.

    Returns:
        Names of the tensors by file name.
    """
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    if len(shards) == 1:
        return {f"{stem}.safetensors": shards[0]}
    return {f"{stem}-{n:05d}-of-{len(shards):05d}.safetensors": names for n, names in enumerate(shards, start=1)}


def shard_index(shards: Mapping[str, list[str]], tensors: TensorMap) -> dict[str, Any]:
    """The index that Hugging Face reads shards with."""
    total = sum(tensor.nbytes for tensor in tensors.values())
    weight_map = {name: file for file, names in shards.items() for name in names}
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}


def write_safetensors(
    path: Path, tensors: TensorMap, metadata: Mapping[str, str] | None = None, progress: Progress | None = None
) -> None:
    """Write one safetensors file.

    Raises:
        ConversionError: If a tensor cannot be stored in this format, is not what was announced, or the disk is full.
    """
    # wide types first, as the format's own writer does, so that every tensor begins at a multiple of its item size
    names = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    offset = 0
    for name in names:
        tensor = tensors[name]
        if tensor.dtype not in _DTYPE_NAMES:
            raise ConversionError(
                f"{name} is {tensor.dtype}, which safetensors does not know; convert it with --dtype"
            )
        end = offset + tensor.nbytes
        header[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_file(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            _write_tensor(file, name, tensors[name])
            if progress:
                progress(name, tensors[name].nbytes)


def _write_tensor(file: IO[bytes], name: str, stored: StoredTensor) -> None:
    tensor = stored.read().detach()
    if tuple(tensor.shape) != stored.shape or tensor.dtype != stored.dtype:
        raise ConversionError(
            f"{name} was announced as {stored.shape} {stored.dtype} but is {tuple(tensor.shape)} {tensor.dtype}; the "
            "file changed while it was read"
        )
    file.write(_raw(tensor))
    if stored.nbytes >= _RELEASED:
        release_mapped_weights()


def _raw(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, without a copy where it is contiguous."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def write_pth(
    path: Path, tensors: TensorMap, extra: Mapping[str, Any] | None = None, progress: Progress | None = None
) -> None:
    """Write ``{"state_dict": tensors, **extra}`` as ``torch.save`` does; ``torch.load`` reads it, ``mmap`` included.

    Names that stand for the same stored tensor (tied weights) share their storage.

    Args:
        path: The file.
        tensors: What goes under ``"state_dict"``.
        extra: Further entries of plain Python.
        progress: Called after each tensor.

    Raises:
        ConversionError: If the disk is full.
    """
    keys: dict[int, str] = {}
    storages: dict[str, tuple[str, StoredTensor]] = {}
    for name, tensor in tensors.items():
        if id(tensor) not in keys:
            keys[id(tensor)] = str(len(keys))
            storages[keys[id(tensor)]] = (name, tensor)
    state = OrderedDict((name, _Rebuilt(tensor, keys[id(tensor)])) for name, tensor in tensors.items())
    with atomic_file(path) as file:
        archive = zipfile.ZipFile(file, "w", zipfile.ZIP_STORED)
        try:
            with _entry(archive, "archive/data.pkl") as entry:
                _Pickler(entry, protocol=2).dump({**(extra or {}), "state_dict": state})
            _put(archive, "archive/byteorder", b"little")
            for key, (name, tensor) in storages.items():
                with _entry(archive, f"archive/data/{key}") as entry:
                    _write_tensor(entry, name, tensor)
                if progress:
                    progress(name, tensor.nbytes)
            _put(archive, "archive/version", b"3\n")
            archive.close()
        except BaseException:
            _abandon(archive)
            raise


def _abandon(archive: zipfile.ZipFile) -> None:
    """Close an archive whose file is thrown away; otherwise it would write its table of contents when collected."""
    archive._didModify = False  # type: ignore[attr-defined]
    archive.fp = None


def _entry(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """Open an entry whose data begin at a multiple of 64 bytes, as in files of ``torch.save``."""
    info = zipfile.ZipInfo(name)
    zip64_field = 20
    begin = archive.start_dir + _LOCAL_HEADER + len(name) + zip64_field + 4
    padding = -begin % _ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    return archive.open(info, "w", force_zip64=True)


def _put(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    with _entry(archive, name) as entry:
        entry.write(content)


class _Storage:
    """Stands for the storage of a tensor in the pickle."""

    def __init__(self, tensor: StoredTensor, key: str) -> None:
        self.tensor, self.key = tensor, key


class _Rebuilt:
    """Stands for a tensor in the pickle; unpickles as one."""

    def __init__(self, tensor: StoredTensor, key: str) -> None:
        self.tensor, self.key = tensor, key

    def __reduce__(self) -> tuple[Any, ...]:
        shape = self.tensor.shape
        strides = torch.empty(shape, device="meta").stride()
        storage = _Storage(self.tensor, self.key)
        return torch._utils._rebuild_tensor_v2, (storage, 0, shape, strides, False, OrderedDict())


_STORAGE_TYPES = {
    torch.float64: torch.DoubleStorage,
    torch.float32: torch.FloatStorage,
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
    torch.int64: torch.LongStorage,
    torch.int32: torch.IntStorage,
    torch.int16: torch.ShortStorage,
    torch.int8: torch.CharStorage,
    torch.uint8: torch.ByteStorage,
    torch.bool: torch.BoolStorage,
}


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> tuple[Any, ...] | None:
        if not isinstance(obj, _Storage):
            return None
        if obj.tensor.dtype not in _STORAGE_TYPES:
            raise ConversionError(f"a .pth file cannot hold {obj.tensor.dtype} here; convert it with --dtype")
        return ("storage", _STORAGE_TYPES[obj.tensor.dtype], obj.key, "cpu", obj.tensor.numel)


def total_bytes(tensors: Iterable[StoredTensor]) -> int:
    """Size of all tensors together."""
    return sum(tensor.nbytes for tensor in tensors)
