"""Outputs of the frozen encoders on disk, so that training neither opens pictures nor runs encoders.

Opening a folder maps its entries; nothing is parsed. A picture is found by its path below the image folder, and taken
only if the file still has the size and time, or else the content, that it had, and if its pooled boxes are among
those that the sample asks for, coordinate by coordinate. So neither a changed picture nor other boxes, filters or
limits ever give stale features.

Shapes: n boxes of a picture, in canvas pixels.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from mg_llava.data.features.file import (
    STORED_FIELDS,
    SUFFIX,
    UNREADABLE_BOXES,
    blocks_in,
    offsets_of,
    picture_key,
    read_about,
    stamp_of,
)
from mg_llava.data.pictures.places import state_of
from mg_llava.work.blobs import BlobReader
from mg_llava.work.urls import TransferError


class FeatureError(ValueError):
    """Features of a picture that are absent or stale; the message says why."""


class NoPictureError(FeatureError):
    """There are no features because there is no picture: the file is missing, or could not be read."""


class CachedPicture(NamedTuple):
    """An entry of a picture, its number, and width and height of the picture, in the frame of its boxes."""

    place: int
    entry: np.void
    frame: tuple[int, int]


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
        self.blocks = blocks_in(self.about)
        # of several entries of a picture the last is the newest
        self._blobs = BlobReader(self.folder, SUFFIX, STORED_FIELDS)
        keys = self._blobs.entries["key"]
        self._places = np.argsort(keys, kind="stable")
        self._keys = keys[self._places]

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
        order = np.argsort(keys)  # sorted keys are found several times faster
        places = np.searchsorted(self._keys, keys[order])
        inside = places < len(self._keys)
        found = np.zeros(len(keys), dtype=bool)
        found[order[inside]] = self._keys[places[inside]] == keys[order[inside]]
        return found

    def holds(self, name: str) -> bool:
        """Whether there is an entry of a picture, stale or not; its path below the image folder."""
        return bool(self.has(np.array([picture_key(name)], dtype=np.uint64))[0])

    def find(self, name: str, path: str | Path) -> CachedPicture:
        """The newest entry of a picture, by its path below the image folder; the file is read if it was touched since.

        Raises:
            FeatureError: There is none, or the file was changed since.
            NoPictureError: There is no such file, or it could not be read.
        """
        found = self._entries_of(picture_key(name))
        if not found:
            raise FeatureError(f"picture {name} is not in feature cache {self.folder}")
        try:
            now = state_of(path)
        except TransferError:
            raise
        except OSError as error:
            raise NoPictureError(f"picture {path}: {error}") from error
        fits = [picture for picture in found if (picture.entry["size"], picture.entry["time"]) == now]
        if not fits and any(picture.entry["size"] == now[0] for picture in found):
            content = stamp_of(path).content
            fits = [picture for picture in found if picture.entry["content"] == content]
        if not fits:
            raise FeatureError(f"picture {path} was changed since feature cache {self.folder} was filled")
        if fits[-1].entry["boxes"] == UNREADABLE_BOXES:
            raise NoPictureError(f"picture {path} could not be read when feature cache {self.folder} was filled")
        return fits[-1]

    def boxes(self, picture: CachedPicture) -> torch.Tensor:
        """(n, 4) float32, the boxes that were pooled; for comparing alone, as only ``read`` looks for damage."""
        content = self._blobs.peek(picture.place, 16 * int(picture.entry["boxes"]))
        return torch.from_numpy(content.view(np.float32).reshape(-1, 4))

    def read(self, picture: CachedPicture, boxes: torch.Tensor) -> dict[str, torch.Tensor]:
        """The arrays of a picture, by the names of ``mg_llava.features.blocks_of``, with the features of (k, 4) boxes.

        Raises:
            FeatureError: The features are damaged, or a box was not pooled.
        """
        count = int(picture.entry["boxes"])
        offsets, _ = offsets_of(self.blocks, count)
        found = self._blobs.read(picture.place)
        if found is None:
            shard = self._blobs.path_of(picture.place).name
            raise FeatureError(f"feature cache {self.folder} is damaged in {shard}; delete this shard, fill again")
        content = torch.from_numpy(found)
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
        places = self._places[first:last].tolist()
        entries = self._blobs.entries[places]
        sizes = entries[["width", "height"]].tolist()
        return [CachedPicture(*found) for found in zip(places, entries, sizes, strict=True)]


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
