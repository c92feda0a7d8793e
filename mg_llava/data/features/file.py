"""The files of a feature cache: what a folder is for, shards of features, and the entries that say where they lie.

A folder is for one pair of encoders and one way of making canvases; ``about.json`` says which. Every process that adds
something writes shards of its own, as ``work.blobs`` has them: the content of a picture is its boxes and its arrays.

Shapes: n boxes of a picture, in canvas pixels.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mg_llava.data.pictures.places import StoredPath, state_of
from mg_llava.features import Block, FeatureDtype, blocks_of
from mg_llava.work.atomic import write_json
from mg_llava.work.blobs import BlobWriter, entry_dtype

_FORMAT = "mg_llava.features"
_VERSION = 2
SUFFIX = ".features"

_ABOUT = "about.json"
_ALIGNMENT = 64
_SHARD_BYTES = 16 << 30
UNREADABLE_BOXES = -1
"""In place of a number of boxes, where a picture cannot be read."""
STORED_FIELDS = (
    *(("size", "<i8"), ("time", "<i8"), ("content", "<u8")),
    *(("width", "<i4"), ("height", "<i4"), ("boxes", "<i4"), ("reserved", "<i4")),
)
"""What an entry says of its picture: its stamp, its frame, and the number of its boxes."""


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
    state, digest = state_of(path), hashlib.blake2b(digest_size=8)
    with io.BytesIO(path.read()) if isinstance(path, StoredPath) else open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return Stamp(*state, int.from_bytes(digest.digest(), "little"))


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
            write_json(self.folder / _ABOUT, about)
        self.blocks = blocks_in(about)
        self._blobs = BlobWriter(self.folder, SUFFIX, STORED_FIELDS, shard_bytes)

    @property
    def written(self) -> int:
        """Bytes of features that were added."""
        return self._blobs.written

    def add(
        self,
        name: str,
        stamp: Stamp,
        frame: tuple[int, int],
        boxes: torch.Tensor,
        arrays: Mapping[str, torch.Tensor],
    ) -> None:
        """Add a picture by its path below the image folder, with the (n, 4) float32 boxes that were pooled.

        ``frame`` is its width and height, in the frame of its boxes; ``arrays`` one picture of
        ``mg_llava.features.pack_features``.

        Raises:
            NoRoomError: The disk is full.
            FileNotFoundError: The folder was removed meanwhile.
        """
        count = len(boxes)
        offsets, total = offsets_of(self.blocks, count)
        content = torch.zeros(total, dtype=torch.uint8)
        for offset, array in zip(offsets, [boxes, *(arrays[block.name] for block in self.blocks)], strict=True):
            flat = array.contiguous().flatten().view(torch.uint8)
            content[offset : offset + len(flat)] = flat
        self._blobs.add(picture_key(name), content.numpy(), *stamp, *frame, count, 0)

    def add_unreadable(self, name: str, stamp: Stamp) -> None:
        """Remember that a picture cannot be read, so that training meets it as it would without a cache."""
        self._blobs.add(picture_key(name), np.zeros(0, np.uint8), *stamp, 0, 0, UNREADABLE_BOXES, 0)

    def close(self) -> None:
        """Put everything on the disk.

        Raises:
            FileNotFoundError: The folder was removed meanwhile.
        """
        self._blobs.close()


def describe_cache(
    dtype: FeatureDtype, sizes: Mapping[str, Any], encoders: Mapping[str, Any], pictures: Mapping[str, Any]
) -> dict[str, Any]:
    """What a folder is for; ``sizes`` as of ``mg_llava.features.blocks_of``, ``pictures`` of ``describe_pictures``.

    The model side compares ``encoders`` (see ``mg_llava.models.vision``).
    """
    about = {"format": _FORMAT, "version": _VERSION, "dtype": dtype, **sizes}
    return json.loads(json.dumps({**about, "encoders": dict(encoders), "pictures": dict(pictures)}))


def describe_pictures(processor: Any) -> dict[str, Any]:
    """What of a ``PictureProcessor`` decides about the pixels of a canvas; boxes are compared one by one."""
    names = ("image_size", "pad_to_square", "mode", "resize", "apply_exif", "pad_color")
    return json.loads(json.dumps({name: getattr(processor, name) for name in names}))


def blocks_in(about: Mapping[str, Any]) -> list[Block]:
    """The arrays of a picture in a folder."""
    rest = {name: about[name] for name in ("objects", "finer") if name in about}
    return blocks_of(about["low"], about["high"], about["pooled"], about["dtype"], **rest)


def picture_bytes(blocks: Iterable[Block], boxes: int) -> int:
    """Bytes of a picture with this many boxes, its entry included."""
    return offsets_of(blocks, boxes)[1] + entry_dtype(STORED_FIELDS).itemsize


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
    if about.get("format") != _FORMAT or about.get("version") != _VERSION:
        found = f"{about.get('format')} {about.get('version')}"
        raise ValueError(f"{path} is of {found}, this program reads {_FORMAT} {_VERSION}; fill another folder")
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


def offsets_of(blocks: Iterable[Block], boxes: int) -> tuple[list[int], int]:
    """Where boxes and blocks of a picture begin, and the bytes of all; each is aligned for any dtype."""
    offsets, end = [], 0
    for size in [16 * boxes, *(block.nbytes(boxes) for block in blocks)]:
        offsets.append(end)
        end += -(-size // _ALIGNMENT) * _ALIGNMENT
    return offsets, end
