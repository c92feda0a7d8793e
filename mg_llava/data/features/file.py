"""The files of a feature cache: what a folder is for, shards of features, and the entries that say where they lie.

A folder is for one pair of encoders and one way of making canvases; ``about.json`` says which. Every process that adds
something writes shards of its own: ``.features``, the arrays of one picture after the other, and ``.index``,
fixed-size entries that say where they lie. An entry is written after its arrays and has their checksum, so that what
a kill leaves is either whole or not found.

Shapes: n boxes of a picture, in canvas pixels.
"""

import hashlib
import json
import os
import secrets
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch

from mg_llava.features import Block, FeatureDtype, blocks_of

FORMAT = "mg_llava.features"
VERSION = 1

_ABOUT = "about.json"
_ALIGNMENT = 64
_SHARD_BYTES = 16 << 30
UNREADABLE = -1
"""In place of a number of boxes, where a picture cannot be read."""
_ENTRY = np.dtype(
    [
        ("key", "<u8"),
        ("size", "<i8"),
        ("time", "<i8"),
        ("content", "<u8"),
        ("offset", "<i8"),
        ("checksum", "<u8"),
        ("width", "<i4"),
        ("height", "<i4"),
        ("boxes", "<i4"),
        ("reserved", "<i4"),
    ]
)


class Stamp(NamedTuple):
    """What a picture file was like: size in bytes, time of its last change in nanoseconds, hash of its content."""

    size: int
    time: int
    content: int


def picture_key(name: str) -> int:
    """Short hash of the path of a picture below its image folder."""
    return int.from_bytes(hashlib.blake2b(os.fsencode(name), digest_size=8).digest(), "little")


def stamp_of(path: str | Path) -> Stamp:
    """What a file is like now; reads it."""
    status, digest = os.stat(path), hashlib.blake2b(digest_size=8)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return Stamp(status.st_size, status.st_mtime_ns, int.from_bytes(digest.digest(), "little"))


class FeatureWriter:
    """Adds pictures to a folder, in shards of this process.

    Args:
        folder: The folder; made if needed.
        about: What the folder is for, from ``describe_cache``.
        shard_bytes: Size at which a new shard is begun.

    Raises:
        ValueError: The folder is for something else, with what differs.
    """

    def __init__(self, folder: str | Path, about: Mapping[str, Any], shard_bytes: int = _SHARD_BYTES) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / _ABOUT).exists():
            _refuse_other(read_about(self.folder), about, self.folder)
        else:
            part = self.folder / f"{_ABOUT}.{os.getpid()}.part"
            part.write_text(json.dumps(about, indent=1) + "\n")
            os.replace(part, self.folder / _ABOUT)
        self.blocks = layout_of(about)
        self.written = 0
        self._shard_bytes = shard_bytes
        self._files: tuple[BinaryIO, BinaryIO] | None = None
        self._offset = 0

    def add(
        self,
        name: str,
        stamp: Stamp,
        frame: tuple[int, int],
        boxes: torch.Tensor,
        arrays: Mapping[str, torch.Tensor],
    ) -> None:
        """Add a picture.

        Args:
            name: Its path below the image folder.
            stamp: What its file is like.
            frame: Width and height, in the frame of its boxes.
            boxes: (n, 4) float32, those that were pooled.
            arrays: Its features, one picture of ``mg_llava.features.pack``.

        Raises:
            OSError: The disk is full.
        """
        count = len(boxes)
        offsets, total = offsets_of(self.blocks, count)
        content = torch.zeros(total, dtype=torch.uint8)
        for offset, array in zip(offsets, [boxes, *(arrays[block.name] for block in self.blocks)], strict=True):
            flat = array.contiguous().flatten().view(torch.uint8)
            content[offset : offset + len(flat)] = flat
        key = picture_key(name)
        self._append(key, stamp, frame, count, content, checksum_of(content, key))

    def add_unreadable(self, name: str, stamp: Stamp) -> None:
        """Remember that a picture cannot be read, so that training meets it as it would without a cache."""
        self._append(picture_key(name), stamp, (0, 0), UNREADABLE, torch.zeros(0, dtype=torch.uint8), 0)

    def _append(
        self, key: int, stamp: Stamp, frame: tuple[int, int], boxes: int, content: torch.Tensor, checksum: int
    ) -> None:
        if self._files is None or self._offset >= self._shard_bytes:
            self.close()
            self._files = _new_shard(self.folder)
            self._offset = 0
        features, index = self._files
        entry = np.array([(key, *stamp, self._offset, checksum, *frame, boxes, 0)], dtype=_ENTRY)
        # counted before it is known to be written, so that what follows a failure is not misplaced
        self._offset += len(content)
        self.written += len(content)
        for file, data in ((features, content.numpy().data), (index, entry.tobytes())):
            if len(data) and file.write(data) != len(data):
                raise OSError("the disk is full")

    def close(self) -> None:
        """Close the files."""
        for file in self._files or ():
            file.close()
        self._files = None


def describe_cache(
    dtype: FeatureDtype, sizes: Mapping[str, Any], encoders: Mapping[str, Any], pictures: Mapping[str, Any]
) -> dict[str, Any]:
    """What a folder is for.

    Args:
        dtype: How values are kept.
        sizes: Arguments of ``mg_llava.features.blocks_of``.
        encoders: What the model side compares (see ``mg_llava.models.vision``).
        pictures: What decides about the pixels of a canvas, from ``describe_pictures``.
    """
    about = {"format": FORMAT, "version": VERSION, "dtype": dtype, **sizes}
    return json.loads(json.dumps({**about, "encoders": dict(encoders), "pictures": dict(pictures)}))


def describe_pictures(processor: Any) -> dict[str, Any]:
    """What of a ``PictureProcessor`` decides about the pixels of a canvas; boxes are compared one by one."""
    names = ("image_size", "pad_to_square", "mode", "resize", "apply_exif", "pad_color")
    return json.loads(json.dumps({name: getattr(processor, name) for name in names}))


def layout_of(about: Mapping[str, Any]) -> list[Block]:
    """The arrays of a picture in a folder."""
    return blocks_of(about["low"], about["high"], about["pooled"], about["dtype"])


def picture_bytes(blocks: Iterable[Block], boxes: int) -> int:
    """Bytes of a picture with this many boxes, its entry included."""
    return offsets_of(blocks, boxes)[1] + _ENTRY.itemsize


def read_about(folder: Path) -> dict[str, Any]:
    """What a folder says it is for.

    Raises:
        FileNotFoundError: There is no feature cache.
        ValueError: It is something else, or of a newer version.
    """
    path = folder / _ABOUT
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no feature cache; fill it with tools/fill_feature_cache.py")
    about = json.loads(path.read_text())
    if about.get("format") != FORMAT or about.get("version") != VERSION:
        found = f"{about.get('format')} {about.get('version')}"
        raise ValueError(f"{path} is of {found}, this program reads {FORMAT} {VERSION}; fill another folder")
    return about


def _refuse_other(known: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> None:
    old, new = _flat(known), _flat(wanted)
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if changed:
        differences = "; ".join(f"{key} is {old.get(key)}, wanted {new.get(key)}" for key in changed)
        raise ValueError(f"{folder} is a feature cache for something else ({differences}); use another folder")


def _flat(about: Mapping[str, Any]) -> dict[str, Any]:
    nested = {key: value for part in ("encoders", "pictures") for key, value in about[part].items()}
    return {key: value for key, value in about.items() if key not in ("encoders", "pictures")} | nested


def map_entries(path: Path) -> np.ndarray:
    """Whole entries of an index; a kill may leave a part of one at its end."""
    count = path.stat().st_size // _ENTRY.itemsize
    if not count:
        return np.zeros(0, _ENTRY)
    return np.asarray(np.memmap(path, dtype=_ENTRY, mode="r", shape=(count,)))


def _new_shard(folder: Path) -> tuple[BinaryIO, BinaryIO]:
    name = f"{time.time_ns():020d}-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    features = open(folder / f"{name}.features", "xb", buffering=0)
    return features, open(folder / f"{name}.index", "xb", buffering=0)


def offsets_of(blocks: Iterable[Block], boxes: int) -> tuple[list[int], int]:
    """Where boxes and blocks of a picture begin, and the bytes of all; each is aligned for any dtype."""
    offsets, end = [], 0
    for size in [16 * boxes, *(block.nbytes(boxes) for block in blocks)]:
        offsets.append(end)
        end += -(-size // _ALIGNMENT) * _ALIGNMENT
    return offsets, end


def checksum_of(content: torch.Tensor, key: int) -> int:
    """Sum of 64-bit words: finds what was not written, at the speed of memory."""
    return (int(np.add.reduce(content.numpy().view("<u8"), initial=np.uint64(0))) + key) & 0xFFFFFFFFFFFFFFFF
