"""Outputs of the frozen encoders on disk, so that training neither opens pictures nor runs encoders.

A folder is for one pair of encoders and one way of making canvases; ``about.json`` says which. Every process that adds
something writes shards of its own: ``.features``, the arrays of one picture after the other, and ``.index``,
fixed-size entries that say where they lie. An entry is written after its arrays and has their checksum, so that what
a kill leaves is either whole or not found. Opening a folder maps the entries; nothing is parsed.

A picture is found by its path below the image folder, and taken only if the file still has the size and time, or else
the content, that it had, and if its pooled boxes are among those that the sample asks for, coordinate by coordinate.
So neither a changed picture nor other boxes, filters or limits ever give stale features.

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
_UNREADABLE = -1
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


class FeatureError(ValueError):
    """Features of a picture that are absent or stale; the message says why."""


class NoPictureError(FeatureError):
    """There are no features because there is no picture: the file is missing, or could not be read."""


class Stamp(NamedTuple):
    """What a picture file was like: size in bytes, time of its last change in nanoseconds, hash of its content."""

    size: int
    time: int
    content: int


class CachedPicture(NamedTuple):
    """Where the features of a picture lie.

    Attributes:
        shard: Number of the shard.
        entry: Its entry.
        frame: Width and height of the picture, in the frame of its boxes.
    """

    shard: int
    entry: np.void
    frame: tuple[int, int]


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


class FeatureCache:
    """Reads a folder, from any number of processes. What others add is seen after the next start.

    Args:
        folder: The folder, filled by ``tools/fill_feature_cache.py``.

    Raises:
        FileNotFoundError: There is no feature cache.
        ValueError: It is of a newer version.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.about = read_about(self.folder)
        self.blocks = layout_of(self.about)
        self._open: dict[int, BinaryIO] = {}
        # in the order in which they were begun, so that of several entries of a picture the last is the newest
        self._paths = sorted(self.folder.glob("*.index"))
        self._entries = [_map_entries(path) for path in self._paths]
        keys = [np.asarray(entries["key"]) for entries in self._entries]
        all_keys = np.concatenate([np.zeros(0, "<u8"), *keys])
        order = np.argsort(all_keys, kind="stable")
        self._keys = all_keys[order]
        shards = np.repeat(np.arange(len(keys), dtype=np.int32), [len(own) for own in keys])
        places = np.concatenate([np.zeros(0, np.int64), *(np.arange(len(own)) for own in keys)])
        self._shards, self._places = shards[order], places[order]

    @property
    def name(self) -> str:
        """What batches call it."""
        return str(self.folder)

    @property
    def holds_boxes(self) -> bool:
        """Whether there are pooled boxes."""
        return any(block.name == "pooled" for block in self.blocks)

    def __len__(self) -> int:
        """Number of entries; a picture whose boxes were added to has several."""
        return len(self._keys)

    def has(self, keys: np.ndarray) -> np.ndarray:
        """Which of (n,) uint64 keys have an entry; (n,) bool."""
        places = np.searchsorted(self._keys, keys)
        found = np.zeros(len(keys), dtype=bool)
        inside = places < len(self._keys)
        found[inside] = self._keys[places[inside]] == keys[inside]
        return found

    def holds(self, name: str) -> bool:
        """Whether there is an entry of a picture, stale or not; its path below the image folder."""
        return bool(self.has(np.array([picture_key(name)], dtype=np.uint64))[0])

    def find(self, name: str, path: str | Path) -> CachedPicture:
        """The newest entry of a picture.

        Args:
            name: Its path below the image folder.
            path: The file; it is read only where it was touched since.

        Raises:
            FeatureError: There is none, or the file was changed since.
            NoPictureError: There is no such file, or it could not be read.
        """
        found = self._entries_of(picture_key(name))
        if not found:
            raise FeatureError(f"picture {name} is not in feature cache {self.folder}")
        try:
            status = os.stat(path)
        except OSError as error:
            raise NoPictureError(f"picture {path}: {error}") from error
        now = status.st_size, status.st_mtime_ns
        fits = [picture for picture in found if (picture.entry["size"], picture.entry["time"]) == now]
        if not fits and any(picture.entry["size"] == status.st_size for picture in found):
            content = stamp_of(path).content
            fits = [picture for picture in found if picture.entry["content"] == content]
        if not fits:
            raise FeatureError(f"picture {path} was changed since feature cache {self.folder} was filled")
        if fits[-1].entry["boxes"] == _UNREADABLE:
            raise NoPictureError(f"picture {path} could not be read when feature cache {self.folder} was filled")
        return fits[-1]

    def boxes(self, picture: CachedPicture) -> torch.Tensor:
        """(n, 4) float32, the boxes that were pooled."""
        count = int(picture.entry["boxes"])
        content = self._read(picture, 16 * count)
        return content.view(torch.float32).view(count, 4)

    def read(self, picture: CachedPicture, boxes: torch.Tensor) -> dict[str, torch.Tensor]:
        """The arrays of a picture, by the names of ``mg_llava.features.blocks_of``.

        Args:
            picture: From ``find``.
            boxes: (k, 4) float32, the boxes whose features are wanted, in this order.

        Raises:
            FeatureError: The features are damaged, or a box was not pooled.
        """
        count = int(picture.entry["boxes"])
        offsets, total = _offsets(self.blocks, count)
        content = self._read(picture, total)
        if len(content) != total or _checksum(content, int(picture.entry["key"])) != int(picture.entry["checksum"]):
            shard = self._paths[picture.shard].with_suffix(".features")
            raise FeatureError(
                f"feature cache {self.folder} is damaged in {shard.name}; delete this shard, fill again"
            )
        arrays = {}
        for block, offset in zip(self.blocks, offsets[1:], strict=True):
            part = content[offset : offset + block.nbytes(count)]
            arrays[block.name] = part.view(block.dtype).view(block.shape(count))
        if "pooled" in arrays:
            pooled = content[: 16 * count].view(torch.float32).view(count, 4)
            arrays["pooled"] = arrays["pooled"][match_boxes(pooled, boxes, self.folder)]
        return arrays

    def _entries_of(self, key: int) -> list[CachedPicture]:
        """Entries with a key, oldest first."""
        first, last = (int(np.searchsorted(self._keys, np.uint64(key), side)) for side in ("left", "right"))  # type: ignore[call-overload]
        found = []
        for number in range(first, last):
            shard = int(self._shards[number])
            entry = self._entries[shard][self._places[number]]
            found.append(CachedPicture(shard, entry, (int(entry["width"]), int(entry["height"]))))
        return found

    def _read(self, picture: CachedPicture, count: int) -> torch.Tensor:
        """The first (count,) bytes of a picture; fewer where the shard ends before."""
        shard = picture.shard
        if shard not in self._open:
            self._open[shard] = open(self._paths[shard].with_suffix(".features"), "rb", buffering=0)
        content = torch.empty(count, dtype=torch.uint8)
        # leaves the file's position alone, which forked processes share
        read = os.preadv(self._open[shard].fileno(), [content.numpy().data], int(picture.entry["offset"]))
        return content[:read]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}

    def __del__(self) -> None:
        for file in self.__dict__.get("_open", {}).values():
            file.close()


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
        offsets, total = _offsets(self.blocks, count)
        content = torch.zeros(total, dtype=torch.uint8)
        for offset, array in zip(offsets, [boxes, *(arrays[block.name] for block in self.blocks)], strict=True):
            flat = array.contiguous().flatten().view(torch.uint8)
            content[offset : offset + len(flat)] = flat
        key = picture_key(name)
        self._append(key, stamp, frame, count, content, _checksum(content, key))

    def add_unreadable(self, name: str, stamp: Stamp) -> None:
        """Remember that a picture cannot be read, so that training meets it as it would without a cache."""
        self._append(picture_key(name), stamp, (0, 0), _UNREADABLE, torch.zeros(0, dtype=torch.uint8), 0)

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
        encoders: What the model side compares (see ``mg_llava.models.frozen``).
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
    return _offsets(list(blocks), boxes)[1] + _ENTRY.itemsize


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


def match_boxes(pooled: torch.Tensor, wanted: torch.Tensor, folder: Path | str) -> torch.Tensor:
    """(k,) int64: where each of (k, 4) boxes is among (n, 4); both float32.

    Raises:
        FeatureError: A box is not there.
    """
    places = {row.tobytes(): place for place, row in enumerate(_rows(pooled))}
    found = [places.get(row.tobytes()) for row in _rows(wanted)]
    absent = [box for box, place in zip(wanted.tolist(), found, strict=True) if place is None]
    if absent:
        raise FeatureError(
            f"{len(absent)} of {len(found)} boxes, such as {absent[0]}, are not in feature cache {folder}: boxes or "
            "their filter were changed"
        )
    return torch.tensor(found, dtype=torch.int64)


def unique_boxes(boxes: torch.Tensor) -> torch.Tensor:
    """(n, 4) float32 without rows that come again, in their order."""
    rows = {row.tobytes(): place for place, row in reversed(list(enumerate(_rows(boxes))))}
    return boxes[sorted(rows.values())]


def _rows(boxes: torch.Tensor) -> np.ndarray:
    """(n, 4) float32; adding zero makes -0.0 the same as 0.0."""
    return boxes.detach().cpu().to(torch.float32).numpy() + np.float32(0)


def _refuse_other(known: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> None:
    old, new = _flat(known), _flat(wanted)
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if changed:
        differences = "; ".join(f"{key} is {old.get(key)}, wanted {new.get(key)}" for key in changed)
        raise ValueError(f"{folder} is a feature cache for something else ({differences}); use another folder")


def _flat(about: Mapping[str, Any]) -> dict[str, Any]:
    nested = {key: value for part in ("encoders", "pictures") for key, value in about[part].items()}
    return {key: value for key, value in about.items() if key not in ("encoders", "pictures")} | nested


def _map_entries(path: Path) -> np.ndarray:
    """Whole entries of an index; a kill may leave a part of one at its end."""
    count = path.stat().st_size // _ENTRY.itemsize
    if not count:
        return np.zeros(0, _ENTRY)
    return np.asarray(np.memmap(path, dtype=_ENTRY, mode="r", shape=(count,)))


def _new_shard(folder: Path) -> tuple[BinaryIO, BinaryIO]:
    name = f"{time.time_ns():020d}-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    features = open(folder / f"{name}.features", "xb", buffering=0)
    return features, open(folder / f"{name}.index", "xb", buffering=0)


def _offsets(blocks: list[Block], boxes: int) -> tuple[list[int], int]:
    """Where boxes and blocks of a picture begin, and the bytes of all; each is aligned for any dtype."""
    offsets, end = [], 0
    for size in [16 * boxes, *(block.nbytes(boxes) for block in blocks)]:
        offsets.append(end)
        end += -(-size // _ALIGNMENT) * _ALIGNMENT
    return offsets, end


def _checksum(content: torch.Tensor, key: int) -> int:
    """Sum of 64-bit words: finds what was not written, at the speed of memory."""
    return (int(np.add.reduce(content.numpy().view("<u8"), initial=np.uint64(0))) + key) & 0xFFFFFFFFFFFFFFFF
