"""Reads files of ``torch.save`` without running anything stored in them: tensors and plain values, nothing else.

Neither ``torch.load`` nor ``torch.jit`` takes part: both run code out of some kinds of files, ``weights_only`` or not.
"""

import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Literal

import torch

from mg_llava.models.weights.inert import InertUnpickler, RefusedFile

EXPECTED = (
    "Expected one of: a .pth file written by `xtuner train` (work_dirs/.../iter_N.pth), a file with a bare state dict "
    "(.pth, .bin or .safetensors), or the folder iter_N.pth that DeepSpeed writes (with *_model_states.pt in it)."
)
Restore = Callable[[torch.UntypedStorage, str], torch.UntypedStorage]
"""Puts a storage where it belongs, told the place it was saved from, such as ``cuda:0``."""

_ZIP, _LOCAL_HEADER = b"PK\x03\x04", 30
_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says what was found, what is expected and how to fix it."""


def read_archive(
    file: str | Path | IO[bytes],
    unknown: Literal["inert", "refuse"] = "inert",
    mmap: bool = True,
    restore: Restore | None = None,
) -> Any:
    """Content of a file of ``torch.save``.

    Args:
        file: The file, or one that is open for reading; the latter is never mapped.
        unknown: What becomes of objects that are neither tensors nor plain values: they are replaced by inert ones, or
            the file is refused. In torch's format from before version 1.6 they are refused in any case.
        mmap: Map the tensors, privately, in place of reading them.
        restore: Moves storages off the CPU.

    Raises:
        CheckpointError: The file is damaged, refused or of another kind.
    """
    if not isinstance(file, str | Path):
        return _read(file, str(getattr(file, "name", "the open file")), unknown, None, restore)
    with Path(file).open("rb") as stream:
        return _read(stream, str(file), unknown, str(file) if mmap else None, restore)


def _read(stream: IO[bytes], name: str, unknown: str, mapped: str | None, restore: Restore | None) -> Any:
    begin = stream.tell()
    is_zip = stream.read(len(_ZIP)) == _ZIP
    stream.seek(begin)
    try:
        if is_zip:
            return _read_zip(stream, unknown == "refuse", mapped, restore)
        return _read_legacy(stream, restore)
    except RefusedFile as error:
        raise CheckpointError(f"{name} {error}") from None
    except Exception as error:  # bytes of another kind of file make the unpickler fail in any way
        raise CheckpointError(damaged_message(stream, name, error)) from error


def damaged_message(stream: IO[bytes], name: str | Path, error: Exception) -> str:
    """Why a file cannot be read, and what to do."""
    size = stream.seek(0, 2)
    stream.seek(0)
    if stream.read(40).startswith(b"version https://git-lfs"):
        return f"{name} is a Git LFS pointer, not the weights. Run `git lfs pull` in its repository."
    stream.seek(0)
    if _is_tar(stream):
        return (
            f"{name} is in the tar format of torch's first versions, which is not read. If you trust its source, load "
            "it with the torch that it was made with, and save its state dict alone with a newer one"
        )
    lines = [line for line in str(error).splitlines() if line.strip()]
    reason = ": ".join([type(error).__name__, *lines[:1]])[:200]
    return (
        f"{name} ({size} bytes) cannot be read as a checkpoint ({reason}). It is truncated or another kind of file; "
        f"copy or download it again. {EXPECTED}"
    )


def _is_tar(stream: IO[bytes]) -> bool:
    try:
        with tarfile.open(fileobj=stream, mode="r:"):
            return True
    except (tarfile.TarError, OSError):
        return False


def _read_zip(stream: IO[bytes], refuse: bool, mapped: str | None, restore: Restore | None) -> Any:
    with zipfile.ZipFile(stream) as archive:
        records = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        if "constants.pkl" in records or any(name.startswith("code/") for name in records):
            raise RefusedFile(
                "is a TorchScript archive, whose code is never run. If you trust its source, save its tensors alone "
                "there: torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')"
            )
        if len(records) < len(archive.infolist()) or any(i.compress_type for i in records.values()):
            raise RefusedFile(
                "is an archive with compressed or ambiguous records, as torch does not write; get it again"
            )
        if "byteorder" in records and archive.read(records["byteorder"]) != b"little":
            raise RefusedFile("was saved on a big-endian machine; save it again on a little-endian one")
        storages = _ZipStorages(stream, records, mapped, restore)
        with archive.open(records["data.pkl"]) as content:
            return InertUnpickler(content, storages.load, refuse).load()


class _ZipStorages:
    """Storages of an archive by their keys, each made once; bytes are taken from the file at the record's place."""

    def __init__(
        self, stream: IO[bytes], records: dict[str, zipfile.ZipInfo], mapped: str | None, restore: Restore | None
    ) -> None:
        self._stream, self._records, self._restore = stream, records, restore
        size = stream.seek(0, 2)
        self._map = torch.UntypedStorage.from_file(mapped, False, size) if mapped else None
        self._made: dict[str, torch.UntypedStorage] = {}

    def load(self, key: str, location: str, nbytes: int) -> torch.UntypedStorage:
        if key not in self._made:
            record = self._records[f"data/{key}"]
            if record.file_size < nbytes:
                raise ValueError(f"record {key} has {record.file_size} bytes, {nbytes} are needed")
            begin = self._begin(record)
            storage = self._take(begin, nbytes)
            self._made[key] = self._restore(storage, location) if self._restore else storage
        return self._made[key]

    def _begin(self, record: zipfile.ZipInfo) -> int:
        self._stream.seek(record.header_offset)
        header = self._stream.read(_LOCAL_HEADER)
        name, extra = struct.unpack("<HH", header[26:])
        return record.header_offset + _LOCAL_HEADER + int(name) + int(extra)

    def _take(self, begin: int, nbytes: int) -> torch.UntypedStorage:
        if self._map is None:
            self._stream.seek(begin)
            return _read_storage(self._stream, nbytes)
        if begin + nbytes > self._map.nbytes():
            raise ValueError("a record ends behind the file's end")
        return self._map[begin : begin + nbytes] if nbytes else torch.UntypedStorage(0)


def _read_storage(stream: IO[bytes], nbytes: int) -> torch.UntypedStorage:
    into = torch.empty(nbytes, dtype=torch.uint8)
    if stream.readinto(into.numpy().data) != nbytes:  # type: ignore[attr-defined]
        raise EOFError("the file ends within a tensor")
    return into.untyped_storage()


def _read_legacy(stream: IO[bytes], restore: Restore | None) -> Any:
    """Read torch's format from before version 1.6: pickles, and behind them the storages in a row."""
    size = stream.seek(0, 2)
    stream.seek(0)
    made: dict[str, torch.UntypedStorage] = {}

    def make(key: str, location: str, nbytes: int) -> torch.UntypedStorage:
        if key not in made:
            if nbytes + sum(storage.nbytes() for storage in made.values()) > size:
                raise ValueError(f"storage {key} would be larger than the file")
            storage = torch.UntypedStorage(nbytes)
            made[key] = restore(storage, location) if restore else storage
        return made[key]

    heads = [InertUnpickler(stream, _no_storage, refuse=True).load() for _ in range(3)]
    if heads[:2] != [_LEGACY_MAGIC, _LEGACY_PROTOCOL]:
        raise pickle.UnpicklingError("it does not begin as files of torch do")
    content = InertUnpickler(stream, make, refuse=True).load()
    keys = InertUnpickler(stream, _no_storage, refuse=True).load()
    if set(keys) != set(made):
        raise ValueError("tensors and storages are not the same")
    for key in keys:
        (count,) = struct.unpack("<q", stream.read(8))
        nbytes = made[key].nbytes()
        if count < 0 or nbytes % max(count, 1):
            raise ValueError(f"storage {key} has {count} elements in {nbytes} bytes")
        made[key].copy_(_read_storage(stream, nbytes), False)
    return content


def _no_storage(key: str, location: str, nbytes: int) -> torch.UntypedStorage:
    raise pickle.UnpicklingError("a tensor where none can be")
