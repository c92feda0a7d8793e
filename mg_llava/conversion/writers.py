"""Writes tensors to safetensors and to torch's ``.pth``, one at a time, so that never more than one is in memory."""

import ctypes
import json
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from mg_llava.conversion.files import ConversionError
from mg_llava.models.weights.inert import STORAGES
from mg_llava.models.weights.stored import SAFETENSORS_DTYPES, StoredTensor, TensorMap
from mg_llava.work.atomic import replacing

_DTYPE_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
_STORAGE_TYPES = {dtype: getattr(torch, name) for name, dtype in STORAGES.items() if name != "UntypedStorage"}
_ALIGNMENT, _LOCAL_HEADER, _ZIP64 = 64, 30, 20
"""Bytes: of what data of a ``.pth`` are aligned to, of a zip entry before its name, and of its field of long sizes."""
_RELEASED = 1 << 18
"""Bytes of a tensor after which it pays to give back the pages of the files that it was read from."""
_PAGEOUT = 21
"""Linux' ``MADV_PAGEOUT``: changes no content, so it is safe whatever a mapping is."""

TensorProgress = Callable[[str, int], None]
"""Called with the name and the size in bytes of each tensor that was written."""


def write_safetensors(
    path: Path, tensors: TensorMap, metadata: Mapping[str, str] | None = None, progress: TensorProgress | None = None
) -> None:
    """Write one safetensors file.

    Raises:
        ConversionError: A tensor cannot be stored in this format, or is not what was announced.
        NoRoomError: The disk is full.
    """
    # wide types first, as the format's own writer does, so that every tensor begins at a multiple of its item size
    names = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for name in names:
        tensor, begin = tensors[name], end
        if tensor.dtype not in _DTYPE_NAMES:
            raise ConversionError(
                f"{name} is {tensor.dtype}, which safetensors does not know; convert it with --dtype"
            )
        end += tensor.nbytes
        dtype, shape = _DTYPE_NAMES[tensor.dtype], list(tensor.shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as file:
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
    file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    if stored.nbytes >= _RELEASED:
        _release_mapped_weights()


def _release_mapped_weights() -> None:
    """Let the system take the pages of mapped files of weights; they are read again when they are needed.

    Otherwise a process seems to hold whatever it has read of a mapped file. Does nothing where there is no Linux.
    """
    if sys.platform != "linux":
        return
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith((".safetensors", ".bin", ".pt", ".pth")):
            begin, end = (int(address, 16) for address in line.split(maxsplit=1)[0].split("-"))
            ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _PAGEOUT)


def write_pth(
    path: Path, tensors: TensorMap, extra: Mapping[str, Any] | None = None, progress: TensorProgress | None = None
) -> None:
    """Write ``{"state_dict": tensors, **extra}`` as ``torch.save`` does; ``torch.load`` reads it, ``mmap`` included.

    Names that stand for the same stored tensor (tied weights) share their storage.

    Args:
        path: The file.
        tensors: What goes under ``"state_dict"``.
        extra: Further entries of plain Python.
        progress: Called after each tensor.

    Raises:
        ConversionError: As for :func:`write_safetensors`.
        NoRoomError: The disk is full.
    """
    first: dict[int, str] = {}
    for name, tensor in tensors.items():
        first.setdefault(id(tensor), name)
    keys = {number: str(key) for key, number in enumerate(first)}
    state = OrderedDict((name, _Rebuilt(tensor)) for name, tensor in tensors.items())
    with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        with _entry(archive, "data.pkl") as entry:
            _Pickler(entry, keys).dump({**(extra or {}), "state_dict": state})
        with _entry(archive, "byteorder") as entry:
            entry.write(b"little")
        for number, name in first.items():
            with _entry(archive, f"data/{keys[number]}") as entry:
                _write_tensor(entry, name, tensors[name])
            if progress:
                progress(name, tensors[name].nbytes)
        with _entry(archive, "version") as entry:
            entry.write(b"3\n")


def _entry(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """Open an entry whose data begin at a multiple of 64 bytes, as in files of ``torch.save``."""
    info = zipfile.ZipInfo(f"archive/{name}")
    padding = -(archive.start_dir + _LOCAL_HEADER + len(info.filename) + _ZIP64 + 4) % _ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    return archive.open(info, "w", force_zip64=True)


@dataclass(frozen=True)
class _Rebuilt:
    """Stands for a tensor in the pickle; unpickles as one."""

    tensor: StoredTensor

    def __reduce__(self) -> tuple[Any, ...]:
        shape = self.tensor.shape
        strides = torch.empty(shape, device="meta").stride()
        return torch._utils._rebuild_tensor_v2, (self.tensor, 0, shape, strides, False, OrderedDict())


class _Pickler(pickle.Pickler):
    """Pickles stored tensors as torch pickles storages: by their keys in the archive."""

    def __init__(self, file: IO[bytes], keys: Mapping[int, str]) -> None:
        super().__init__(file, protocol=2)
        self.keys = keys

    def persistent_id(self, obj: Any) -> tuple[Any, ...] | None:
        """The storage of a stored tensor; None for all other objects."""
        if not isinstance(obj, StoredTensor):
            return None
        if obj.dtype not in _STORAGE_TYPES:
            raise ConversionError(f"a .pth file cannot hold {obj.dtype} here; convert it with --dtype")
        return ("storage", _STORAGE_TYPES[obj.dtype], self.keys[id(obj)], "cpu", obj.numel)
