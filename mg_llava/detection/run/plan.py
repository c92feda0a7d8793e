"""The plan of a run: every picture by content, each content once, in the order in which batches take them.

S sources, P pictures (a video has several), U different ones.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mg_llava.detection.detector import Size
from mg_llava.work.arrays import load_arrays, save_arrays


@dataclass(frozen=True)
class BoxPlan:
    """The pictures to look at.

    Attributes:
        starts: (S + 1,) int64, where the pictures of each source begin.
        digests: (P, 2) uint64 content hashes; zeros for pictures that cannot be read.
        sizes: (P, 2) int32 widths and heights; zeros likewise.
        unique_of: (P,) int64 number of each picture's content in the order of detection; -1 likewise.
        pictures: (U,) int64 first picture of each content.
    """

    starts: np.ndarray
    digests: np.ndarray
    sizes: np.ndarray
    unique_of: np.ndarray
    pictures: np.ndarray

    def __len__(self) -> int:
        return len(self.pictures)

    @classmethod
    def load(cls, path: str | Path) -> "BoxPlan":
        """Read a plan.

        Raises:
            ValueError: It is damaged.
        """
        arrays = load_arrays(path)
        if arrays is None:
            raise ValueError(f"{path} is damaged; remove it and start the run again, which takes what was read")
        return cls(**arrays)

    def save(self, path: str | Path) -> None:
        """Write a plan, at once or not at all."""
        save_arrays(path, **vars(self))

    def source_of(self, unique: int) -> tuple[int, int]:
        """Number of the source and of the picture in it, of a content."""
        picture = int(self.pictures[unique])
        source = int(np.searchsorted(self.starts, picture, side="right")) - 1
        return source, picture - int(self.starts[source])

    def content(self, picture: int) -> str:
        """Content hash of a picture, 32 hexadecimal digits."""
        return "".join(f"{int(half):016x}" for half in self.digests[picture])

    def size(self, picture: int) -> Size:
        """Width and height of a picture."""
        return int(self.sizes[picture, 0]), int(self.sizes[picture, 1])


def make_box_plan(
    parts: Sequence[int],
    read: Iterable[tuple[int, Mapping[str, Any]]],
    shapes: Callable[[Sequence[Size]], list[str]],
    by_content: bool = True,
) -> BoxPlan:
    """Plan a run from the results of reading all pictures.

    Args:
        parts: (S,) number of pictures of each source.
        read: Number of each source that was read, and ``{"pictures": [[hash, width, height], ...]}``.
        shapes: Texts for sizes; pictures with equal ones go through the detector together and follow one another.
        by_content: Whether equal pictures are one; else every picture is its own.
    """
    starts = np.concatenate([[0], np.cumsum(np.asarray(parts, dtype=np.int64))]).astype(np.int64)
    count = int(starts[-1])
    digests, sizes = np.zeros((count, 2), dtype=np.uint64), np.zeros((count, 2), dtype=np.int32)
    for source, found in read:
        for picture, (content, width, height) in enumerate(found.get("pictures", ()), int(starts[source])):
            digests[picture] = int(content[:16], 16), int(content[16:], 16)
            sizes[picture] = width, height
    readable = np.flatnonzero(sizes[:, 0])
    if by_content:
        _, firsts, inverse = np.unique(digests[readable], axis=0, return_index=True, return_inverse=True)
        firsts, inverse = readable[firsts], inverse.reshape(-1)
    else:
        firsts, inverse = readable, np.arange(len(readable))
    different, owners = np.unique(sizes[firsts], axis=0, return_inverse=True)
    texts = shapes([(width, height) for width, height in different.tolist()])
    keys = np.unique(texts, return_inverse=True)[1][owners.reshape(-1)] if texts else np.zeros(0, dtype=np.int64)
    order = np.lexsort((firsts, keys))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    unique_of = np.full(count, -1, dtype=np.int64)
    unique_of[readable] = rank[inverse]
    return BoxPlan(starts=starts, digests=digests, sizes=sizes, unique_of=unique_of, pictures=firsts[order])
