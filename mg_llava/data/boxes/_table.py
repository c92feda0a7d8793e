"""Boxes of many pictures in flat arrays, found by key or by the hash of the picture.

Arrays, with R records, B boxes, L different labels and P hashed pictures:

==================  =========  ====================================================================================
``key_hashes``      (R,)       sorted 64-bit hashes of the keys
``key_rows``        (R,)       the record that each hash belongs to
``key_text``        bytes      the keys in UTF-8, one after the other, to confirm a hash
``key_ends``        (R + 1,)   where the keys begin and end
``box_ends``        (R + 1,)   where the boxes of a record begin and end
``boxes``           (B, 4)     xyxy in original pixels
``scores``          (B,)
``labels``          (B,)       numbers of labels
``label_text``      bytes      the labels in UTF-8
``label_ends``      (L + 1,)   where the labels begin and end
``tags``            (G,)       numbers of labels: tags of the pictures; absent where there is none
``tag_ends``        (R + 1,)   where the tags of a record begin and end; absent with them
``sizes``           (R, 2)     width and height of the pictures, 0 where not known; (0, 2) where none is
``picture_hashes``  (P,)       sorted first halves of the 128-bit hashes of the pictures' content
``picture_rests``   (P,)       their second halves
``picture_rows``    (P,)       their records
==================  =========  ====================================================================================

Boxes, scores and labels have the narrowest type that keeps every value exactly.

Flat arrays are as fast as SQLite (12 to 19 us a record), nothing of them is private to a process, a million ids are
checked in one vectorized search, and they need no package.
"""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mg_llava.data.boxes._file import read_box_file
from mg_llava.data.records.schema import BoxRecord, RecordError

_BLOCK = 1 << 14


def hash_key(key: bytes) -> int:
    """64-bit hash of a key in UTF-8, the same in every process."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")


def encode_text(text: str) -> bytes:
    """UTF-8; JSON may hold lone surrogates, which are kept."""
    return text.encode("utf-8", "surrogatepass")


def decode_text(text: bytes) -> str:
    """The inverse of ``encode_text``."""
    return text.decode("utf-8", "surrogatepass")


class BoxTable:
    """Records by row number, and rows by key; read-only.

    Args:
        arrays: See above.
        metadata: What is known about the boxes.
        path: The file that the arrays are mapped from; other processes then map it themselves instead of copying.
    """

    def __init__(
        self, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any], path: str | Path | None = None
    ) -> None:
        self.arrays = dict(arrays)
        self.metadata = dict(metadata)
        self.path = path
        self._key_hashes, self._box_ends = arrays["key_hashes"], arrays["box_ends"]
        self._keys = arrays["key_rows"], arrays["key_text"], arrays["key_ends"]

    @classmethod
    def open(cls, path: str | Path, verify: bool = True) -> "BoxTable":
        """Map a store's file; arguments and errors as for ``read_box_file``."""
        arrays, metadata = read_box_file(path, verify)
        try:
            _check_shapes(arrays)
        except (KeyError, IndexError, ValueError) as error:
            raise RecordError(f"box store {path} is damaged: {error}; convert the boxes again") from error
        return cls(arrays, metadata, path)

    def __reduce__(self) -> Any:
        if self.path is None:
            return type(self), (self.arrays, self.metadata)
        return type(self).open, (self.path, False)

    def __len__(self) -> int:
        return len(self._key_hashes)

    @property
    def has_pictures(self) -> bool:
        """Whether boxes can be found by the content of pictures."""
        return len(self.arrays["picture_rows"]) > 0

    def find(self, key: str) -> int | None:
        """The row of a key."""
        text, hashes, (rows, key_text, ends) = encode_text(key), self._key_hashes, self._keys
        hashed = np.uint64(hash_key(text))
        place = int(hashes.searchsorted(hashed))
        # Several only where hashes collide.
        while place < len(self) and hashes[place] == hashed:
            row = int(rows[place])
            if key_text[ends[row] : ends[row + 1]].tobytes() == text:
                return row
            place += 1
        return None

    def find_picture(self, content: str) -> int | None:
        """The row of a picture, by its 32 hexadecimal digits from ``pictures.content_hash``."""
        first, second = split_content_hash(content)
        hashes = self.arrays["picture_hashes"]
        same = slice(*(int(hashes.searchsorted(first, side)) for side in ("left", "right")))
        found = self.arrays["picture_rows"][same][self.arrays["picture_rests"][same] == second]
        return int(found[0]) if len(found) else None

    def rows(self, keys: Iterable[str]) -> np.ndarray:
        """The rows of n keys, by their hashes alone: (n,) int64, -1 for unknown keys."""
        hashes = np.array([hash_key(encode_text(key)) for key in keys], dtype=np.uint64)
        found = np.full(len(hashes), -1, dtype=np.int64)
        if len(self):
            # In ascending order the search touches each page of the file once.
            order = np.argsort(hashes)
            places = np.minimum(self._key_hashes.searchsorted(hashes[order]), len(self) - 1)
            same = self._key_hashes[places] == hashes[order]
            found[order[same]] = self.arrays["key_rows"][places[same]]
        return found

    def counts(self, rows: np.ndarray) -> np.ndarray:
        """Numbers of boxes of n rows: (n,) int64, 0 for rows below 0."""
        return np.where(rows < 0, 0, np.diff(self._box_ends, append=0)[rows])

    def record(self, row: int) -> BoxRecord:
        """The boxes of a row, in original pixels."""
        part = slice(int(self._box_ends[row]), int(self._box_ends[row + 1]))
        arrays = self.arrays
        boxes, scores = arrays["boxes"][part].astype(np.float64), arrays["scores"][part].astype(np.float64)
        boxes.setflags(write=False)
        scores.setflags(write=False)
        tags: tuple[str, ...] = ()
        if "tags" in arrays:
            tags = self._words(arrays["tags"][slice(*arrays["tag_ends"][row : row + 2].tolist())])
        return BoxRecord(boxes, scores, self._words(arrays["labels"][part]), tags=tags)

    def _words(self, numbers: np.ndarray) -> tuple[str, ...]:
        """Labels by their numbers."""
        numbers, ends, text = numbers.astype(np.int64), self.arrays["label_ends"], self.arrays["label_text"]
        places = zip(ends[numbers].tolist(), ends[numbers + 1].tolist(), strict=True)
        return tuple(decode_text(text[start:end].tobytes()) for start, end in places)

    def image_size(self, row: int) -> tuple[int, int] | None:
        """Width and height of a row's picture, where the source said it."""
        sizes = self.arrays["sizes"]
        return (int(sizes[row, 0]), int(sizes[row, 1])) if len(sizes) and sizes[row, 0] else None

    def keys(self) -> Iterator[str]:
        """All keys, in the order of the rows."""
        for start in range(0, len(self), _BLOCK):
            ends = self.arrays["key_ends"][start : start + _BLOCK + 1].tolist()
            text = self.arrays["key_text"][ends[0] : ends[-1]].tobytes()
            for first, last in itertools.pairwise(ends):
                yield decode_text(text[first - ends[0] : last - ends[0]])


def split_content_hash(content: str) -> tuple[np.uint64, np.uint64]:
    """Both halves of 32 hexadecimal digits."""
    return np.uint64(int(content[:16], 16)), np.uint64(int(content[16:32], 16))


def _check_shapes(arrays: Mapping[str, np.ndarray]) -> None:
    """Find out in no time whether the arrays fit together: ValueError if not, KeyError where one is missing."""
    records, boxes = len(arrays["key_rows"]), len(arrays["scores"])
    expected = {
        "key_hashes": (records,),
        "key_rows": (records,),
        "key_ends": (records + 1,),
        "box_ends": (records + 1,),
        "boxes": (boxes, 4),
        "scores": (boxes,),
        "labels": (boxes,),
        "sizes": (len(arrays["sizes"]) and records, 2),
        "picture_hashes": (len(arrays["picture_rows"]),),
        "picture_rests": (len(arrays["picture_rows"]),),
    }
    if "tags" in arrays or "tag_ends" in arrays:
        expected |= {"tags": (int(arrays["tag_ends"][-1]),), "tag_ends": (records + 1,)}
    shapes = {name: arrays[name].shape for name in expected}
    wrong = [f"{name} has shape {shapes[name]}" for name, shape in expected.items() if shapes[name] != shape]
    ends = {"key_ends": len(arrays["key_text"]), "box_ends": boxes, "label_ends": len(arrays["label_text"])}
    wrong += [f"{name} ends at {arrays[name][-1]}" for name, end in ends.items() if arrays[name][-1] != end]
    if wrong:
        raise ValueError("; ".join(wrong))
