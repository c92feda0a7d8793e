"""The box store's file: memory-mapped arrays with a header, written at once or not at all.

The file is in the safetensors format (8 bytes with the length of the header, the header in JSON, the arrays), so that
any tool that reads this format can open it; ``__metadata__`` holds what the store says about itself, and checksums of
the header and of each array. Opening reads the file once to compare them; nothing of it stays in memory.
"""

import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from mg_llava.data.records.schema import RecordError
from mg_llava.work.atomic import replacing

FORMAT = "mg_llava.boxes"
VERSION = 1

_DTYPES = {
    "F64": "<f8", "I64": "<i8", "U64": "<u8", "F32": "<f4", "I32": "<i4", "I16": "<i2", "U16": "<u2", "U8": "|u1"
}  # fmt: skip
_NAMES = {np.dtype(code): name for name, code in _DTYPES.items()}
_LONGEST_HEADER = 1 << 26
_CHUNK = 1 << 22
_NO_CHECKSUM = "0" * 8
_WITHOUT_CHECKSUM = {"format", "version", "content", "checksums"}
"""What the headers of stores of earlier programs say, which have no checksum of their own."""


class Column(NamedTuple):
    """An array that is made piece by piece; the pieces follow one another along the first axis."""

    dtype: np.dtype
    shape: tuple[int, ...]
    chunks: Callable[[], Iterator[np.ndarray]]

    def load(self) -> np.ndarray:
        """The whole array."""
        return np.concatenate([np.zeros((0, *self.shape[1:]), self.dtype), *self.chunks()]).astype(self.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.dtype.itemsize * math.prod(self.shape)


def as_column(array: np.ndarray) -> Column:
    """A column from an array in memory."""
    return Column(array.dtype, array.shape, lambda: iter([array]))


def write_box_file(path: str | Path, columns: Mapping[str, Column], metadata: Mapping[str, Any]) -> None:
    """Write a store beside ``path`` and move it there when it is complete.

    Args:
        path: The file; replaced if it exists. Its folder is made if needed.
        columns: The arrays.
        metadata: Anything that fits into JSON.
    """
    # Wide values first keep every array aligned.
    ordered = dict(sorted(columns.items(), key=lambda item: -item[1].dtype.itemsize))
    checksums = dict.fromkeys(ordered, 0)
    with replacing(path) as file:
        # Zeros until the end, so that a file that is not complete can be told.
        file.write(bytes(len(_header(ordered, checksums, metadata))))
        for name, column in ordered.items():
            checksums[name] = _write(file, column)
        file.seek(0)
        file.write(_header(ordered, checksums, metadata))


def read_box_file(path: str | Path, verify: bool = True) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Map a store into memory.

    Args:
        path: The file.
        verify: Compare the arrays with their checksums; False where this process's parent did.

    Returns:
        The arrays, read-only views of the file, and the metadata.

    Raises:
        FileNotFoundError: There is no such file.
        RecordError: The file is no box store, was not written to its end, is damaged, or is of a newer version.
    """
    path = Path(path)
    header, text = _read_header(path)
    about, start = header.pop("__metadata__", {}), 8 + len(text)
    _check_about(path, about, text)
    content = np.memmap(path, dtype=np.uint8, mode="r")
    arrays = {}
    for name, entry in header.items():
        first, last = (start + offset for offset in entry["data_offsets"])
        # A plain array, as slices of np.memmap are slow.
        flat = np.asarray(content[first:last]).view(_DTYPES[entry["dtype"]])
        arrays[name] = flat.reshape(entry["shape"])
    checksums = json.loads(about["checksums"])
    damaged = [name for name in arrays if verify and _checksum(arrays[name]) != int(checksums.get(name, "0"), 16)]
    if damaged:
        raise RecordError(
            f"box store {path} is damaged: {', '.join(damaged)} do not fit their checksums; copy it again, or "
            "convert the boxes again"
        )
    return arrays, json.loads(about["content"])


def _header(columns: Mapping[str, Column], checksums: Mapping[str, int], metadata: Mapping[str, Any]) -> bytes:
    """Length and header; the same number of bytes whatever the checksums are."""
    # Eight digits whatever the value is, so that the length does not depend on it.
    digits = {name: f"{checksum:08x}" for name, checksum in checksums.items()}
    about = {
        "format": FORMAT,
        "version": str(VERSION),
        "content": json.dumps(metadata),
        "checksums": json.dumps(digits),
        "header": _NO_CHECKSUM,
    }
    header: dict[str, Any] = {"__metadata__": about}
    offset = 0
    for name, column in columns.items():
        header[name] = {
            "dtype": _NAMES[column.dtype],
            "shape": list(column.shape),
            "data_offsets": [offset, offset + column.nbytes],
        }
        offset += column.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    text = text.replace(_header_field(_NO_CHECKSUM), _header_field(f"{zlib.crc32(text):08x}"), 1)
    return len(text).to_bytes(8, "little") + text


def _header_field(checksum: str) -> bytes:
    return f'"header": "{checksum}"'.encode()


def _write(file: IO[bytes], column: Column) -> int:
    """Append a column; returns its checksum."""
    written = checksum = 0
    for chunk in column.chunks():
        data = np.ascontiguousarray(chunk, dtype=column.dtype).tobytes()
        checksum = zlib.crc32(data, checksum)
        written += file.write(data)
    assert written == column.nbytes, (written, column.shape)
    return checksum


def _checksum(array: np.ndarray) -> int:
    flat = array.reshape(-1).view(np.uint8)
    checksum = 0
    for start in range(0, len(flat), _CHUNK):
        checksum = zlib.crc32(flat[start : start + _CHUNK].data, checksum)
    return checksum


def _read_header(path: Path) -> tuple[dict[str, Any], bytes]:
    """The header, parsed and as it is."""
    if not path.is_file():
        what = "is a folder; a box store is one file" if path.is_dir() else "does not exist; check the path"
        raise FileNotFoundError(f"box store {path} {what}")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size >= 8 and length == 0:
            raise RecordError(f"box store {path} was not written to its end; convert the boxes again")
        if not 2 <= length <= min(_LONGEST_HEADER, size - 8):
            raise RecordError(f"{path} is no box store, or is truncated: it has {size} bytes; {_advice()}")
        text = file.read(length)
    try:
        header = json.loads(text)
        end = 8 + length + max((entry.get("data_offsets", [0, 0])[1] for entry in header.values()), default=0)
    except (ValueError, AttributeError, TypeError, IndexError) as error:
        raise RecordError(f"{path} is no box store: its header cannot be read; {_advice()}") from error
    if size != end:
        raise RecordError(
            f"box store {path} is truncated or was changed: it has {size} bytes, {end} are needed; copy it again"
        )
    return header, text


def _check_about(path: Path, about: Mapping[str, Any], text: bytes) -> None:
    """See that a file is a store that this program knows, and that its header is whole."""
    if about.get("format") != FORMAT:
        raise RecordError(f"{path} is a safetensors file, but no box store; {_advice()}")
    if not str(about.get("version")).isdecimal() or int(about["version"]) > VERSION:
        raise RecordError(
            f"box store {path} has version {about.get('version')}, this program knows {VERSION}; update mg_llava or "
            "convert the boxes again"
        )
    plain = text.replace(_header_field(str(about.get("header"))), _header_field(_NO_CHECKSUM), 1)
    if about.keys() != _WITHOUT_CHECKSUM and f"{zlib.crc32(plain):08x}" != about.get("header"):
        raise RecordError(f"box store {path} is damaged: its header does not fit its checksum; copy it again")


def _advice() -> str:
    return "box files end in .json or .jsonl, stores are made of them with tools/convert_boxes.py"
