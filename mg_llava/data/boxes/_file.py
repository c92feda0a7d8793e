"""The box store's file: memory-mapped arrays with a header, written at once or not at all.

The file is in the safetensors format (8 bytes with the length of the header, the header in JSON, the arrays), so that
any tool that reads this format can open it; ``__metadata__`` holds what the store says about itself, and checksums of
the header and of each array. Opening reads the file once to compare them; nothing of it stays in memory.
"""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mg_llava.data.records.schema import RecordError
from mg_llava.work.atomic import replacing

_FORMAT = "mg_llava.boxes"
_VERSION = 1

_DTYPES = {
    "F64": "<f8", "I64": "<i8", "U64": "<u8", "F32": "<f4", "I32": "<i4", "I16": "<i2", "U16": "<u2", "U8": "|u1"
}  # fmt: skip
_NAMES = {np.dtype(code): name for name, code in _DTYPES.items()}
_LONGEST_HEADER = 1 << 26
_NO_CHECKSUM = "0" * 8
_WITHOUT_CHECKSUM = {"format", "version", "content", "checksums"}
"""What the headers of stores of earlier programs say, which have no checksum of their own."""
_ADVICE = "box files end in .json or .jsonl, stores are made of them with tools/convert_boxes.py"


def write_box_file(path: str | Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
    """Replace ``path`` by a store of arrays, and of metadata that fits into JSON; its folder is made if needed."""
    # Wide values first keep every array aligned.
    ordered = dict(sorted(arrays.items(), key=lambda item: -item[1].dtype.itemsize))
    with replacing(path) as file:
        file.write(_header(ordered, metadata))
        for array in ordered.values():
            file.write(_bytes_of(array))


def read_box_file(path: str | Path, verify: bool = True) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Map a store into memory: the arrays, read-only views of the file, and the metadata.

    Args:
        path: The file.
        verify: Compare the arrays with their checksums; False where this process's parent did.

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
    damaged = [name for name in arrays if verify and _checksum(arrays[name]) != checksums.get(name)]
    if damaged:
        raise RecordError(
            f"box store {path} is damaged: {', '.join(damaged)} do not fit their checksums; copy it again, or "
            "convert the boxes again"
        )
    return arrays, json.loads(about["content"])


def _header(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> bytes:
    """Length and header."""
    about = {
        "format": _FORMAT,
        "version": str(_VERSION),
        "content": json.dumps(metadata),
        "checksums": json.dumps({name: _checksum(array) for name, array in arrays.items()}),
        "header": _NO_CHECKSUM,
    }
    header: dict[str, Any] = {"__metadata__": about}
    offset = 0
    for name, array in arrays.items():
        offsets = [offset, offset + array.nbytes]
        header[name] = {"dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": offsets}
        offset += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    text = text.replace(_header_field(_NO_CHECKSUM), _header_field(f"{zlib.crc32(text):08x}"), 1)
    return len(text).to_bytes(8, "little") + text


def _header_field(checksum: str) -> bytes:
    return f'"header": "{checksum}"'.encode()


def _bytes_of(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _checksum(array: np.ndarray) -> str:
    return f"{zlib.crc32(_bytes_of(array)):08x}"


def _read_header(path: Path) -> tuple[dict[str, Any], bytes]:
    """The header, parsed and as it is."""
    if not path.is_file():
        what = "is a folder; a box store is one file" if path.is_dir() else "does not exist; check the path"
        raise FileNotFoundError(f"box store {path} {what}")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size >= 8 and length == 0:  # earlier programs wrote it last
            raise RecordError(f"box store {path} was not written to its end; convert the boxes again")
        if not 2 <= length <= min(_LONGEST_HEADER, size - 8):
            raise RecordError(f"{path} is no box store, or is truncated: it has {size} bytes; {_ADVICE}")
        text = file.read(length)
    try:
        header = json.loads(text)
        end = 8 + length + max((entry.get("data_offsets", [0, 0])[1] for entry in header.values()), default=0)
    except (ValueError, AttributeError, TypeError, IndexError) as error:
        raise RecordError(f"{path} is no box store: its header cannot be read; {_ADVICE}") from error
    if size != end:
        raise RecordError(
            f"box store {path} is truncated or was changed: it has {size} bytes, {end} are needed; copy it again"
        )
    return header, text


def _check_about(path: Path, about: Mapping[str, Any], text: bytes) -> None:
    """See that a file is a store that this program knows, and that its header is whole."""
    if about.get("format") != _FORMAT:
        raise RecordError(f"{path} is a safetensors file, but no box store; {_ADVICE}")
    if not str(about.get("version")).isdecimal() or int(about["version"]) > _VERSION:
        raise RecordError(
            f"box store {path} has version {about.get('version')}, this program knows {_VERSION}; update mg_llava or "
            "convert the boxes again"
        )
    plain = text.replace(_header_field(str(about.get("header"))), _header_field(_NO_CHECKSUM), 1)
    if about.keys() != _WITHOUT_CHECKSUM and f"{zlib.crc32(plain):08x}" != about.get("header"):
        raise RecordError(f"box store {path} is damaged: its header does not fit its checksum; copy it again")
