"""Builds a box table record by record: in memory for small files, over temporary files for large ones."""

from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mg_llava.data.boxes._file import Column, as_column
from mg_llava.data.boxes._reader import Problems
from mg_llava.data.boxes._spool import Spool, live_column
from mg_llava.data.boxes._table import BoxTable, decode_text, encode_text, hash_key, split_content_hash
from mg_llava.data.records.schema import BoxRecord

DUPLICATE = "with an id that comes again with different boxes"
UNREADABLE = "with a picture that cannot be read"

_BOX_TYPES = (np.int16, np.int32, np.float32, np.float64)
_SCORE_TYPES = (np.float32, np.float64)
_TEXT_TYPES = (np.uint8,)
_LABEL_TYPES = (np.uint16, np.int32)


class BoxWriter:
    """Takes records in any order and number, with ids that may come again.

    Args:
        folder: Where boxes are kept until the end, in files without a name, which vanish with the process; None to
            keep them in memory.

    Attributes:
        repeated: Number of repetitions of an id with the same boxes, which are no fault.
        picture_conflicts: Number of records whose picture has other boxes under another id.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self._boxes, self._scores, self._labels, self._keys = (Spool(folder, t) for t in ("<f8", "<f8", "<i4", "u1"))
        self._hashes, self._counts, self._lengths, self._sizes = array("Q"), array("q"), array("q"), array("i")
        self._vocabulary: dict[str, int] = {}
        self._has_sizes = False
        # Filled by remove_duplicates: which records stay; their numbers sorted by hash, before and after the removal.
        self._live = np.zeros(0, dtype=bool)
        self._rows = self._new_rows = np.zeros(0, dtype=np.int64)
        self._sorted_hashes = np.zeros(0, dtype=np.uint64)
        self._box_ends = self._key_ends = np.zeros(1, dtype=np.int64)
        self.repeated = 0
        self.picture_conflicts = 0

    def add(self, key: str, record: BoxRecord, size: tuple[int, int] | None = None) -> None:
        """Append a record; of several with one key, the last counts."""
        text = encode_text(key)
        self._hashes.append(hash_key(text))
        self._lengths.append(len(text))
        self._counts.append(len(record))
        self._keys.append(text)
        self._boxes.append(record.boxes.astype("<f8", copy=False).tobytes())
        self._scores.append(record.scores.astype("<f8", copy=False).tobytes())
        known = self._vocabulary
        self._labels.append(array("i", [known.setdefault(label, len(known)) for label in record.labels]).tobytes())
        self._sizes.extend(size or (0, 0))
        self._has_sizes = self._has_sizes or size is not None

    def remove_duplicates(self, problems: Problems) -> None:
        """End the adding: of several records with one key, leave the last.

        Args:
            problems: Gets ids that come again with different boxes.
        """
        self._box_ends = _ends(self._counts)
        self._key_ends = _ends(self._lengths)
        self._live = self._find_live(problems)
        self._new_rows = np.cumsum(self._live) - 1
        hashes = np.array(self._hashes, dtype=np.uint64)
        order = np.argsort(hashes, kind="stable")
        self._rows = order[self._live[order]]
        self._sorted_hashes = hashes[self._rows]

    def finish(
        self, problems: Problems, pictures: Iterable[tuple[str, str, str | None]] = ()
    ) -> tuple[dict[str, Column], dict[str, Any]]:
        """Lay out the arrays, after ``remove_duplicates``.

        Args:
            problems: Gets pictures that cannot be read.
            pictures: Key, path and content hash (None where it cannot be read) of pictures; keys without a record
                are ignored.

        Returns:
            The columns of ``BoxTable`` and the counts of its metadata. The columns read this writer's files.
        """
        live = self._live
        picture_columns = self._picture_columns(pictures, problems)
        columns = {
            "key_hashes": as_column(self._sorted_hashes),
            "key_rows": as_column(self._new_rows[self._rows].astype(np.int32)),
            "key_text": live_column(self._keys, self._key_ends, live, _TEXT_TYPES),
            "key_ends": as_column(_ends(np.array(self._lengths, dtype=np.int64)[live])),
            "box_ends": as_column(_ends(np.array(self._counts, dtype=np.int64)[live])),
            "boxes": live_column(self._boxes, self._box_ends, live, _BOX_TYPES, 4),
            "scores": live_column(self._scores, self._box_ends, live, _SCORE_TYPES),
            "labels": live_column(self._labels, self._box_ends, live, _LABEL_TYPES),
            **self._label_columns(),
            "sizes": as_column(self._live_sizes(live)),
            **picture_columns,
        }
        counts = {
            "records": len(self._rows),
            "boxes": columns["boxes"].shape[0],
            "labels": len(self._vocabulary),
            "pictures": columns["picture_rows"].shape[0],
            "image_sizes": self._describe_sizes(live),
        }
        return columns, counts

    def _find_live(self, problems: Problems) -> np.ndarray:
        """Which records stay: (n,) bool; not those whose key comes again later."""
        hashes = np.array(self._hashes, dtype=np.uint64)
        live = np.ones(len(hashes), dtype=bool)
        order = np.argsort(hashes, kind="stable")
        same = hashes[order[1:]] == hashes[order[:-1]]
        # Runs of equal hashes: [start, stop)
        edges = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]]).astype(np.int8)))
        for start, stop in zip(edges[::2].tolist(), (edges[1::2] + 1).tolist(), strict=True):
            by_key: dict[bytes, list[int]] = {}
            for row in order[start:stop].tolist():
                by_key.setdefault(self._key(row), []).append(row)
            for key, rows in by_key.items():
                live[rows[:-1]] = False
                self._note_duplicates(key, rows, problems)
        return live

    def _note_duplicates(self, key: bytes, rows: list[int], problems: Problems) -> None:
        different = sum(not self._same(row, rows[-1]) for row in rows[:-1])
        self.repeated += len(rows) - 1 - different
        if different:
            message = f"id {decode_text(key)!r}: found {len(rows)} times, with different boxes"
            problems.add(DUPLICATE, message, different)

    def _key(self, row: int) -> bytes:
        return self._keys.read(self._key_ends[row], self._key_ends[row + 1]).tobytes()

    def _same(self, first: int, second: int) -> bool:
        """Whether two records have the same boxes, scores and labels."""
        if self._counts[first] != self._counts[second]:
            return False
        spools = ((self._boxes, 4), (self._scores, 1), (self._labels, 1))
        return all(np.array_equal(self._part(spool, first, n), self._part(spool, second, n)) for spool, n in spools)

    def _part(self, spool: Spool, row: int, width: int) -> np.ndarray:
        return spool.read(int(self._box_ends[row]) * width, int(self._box_ends[row + 1]) * width)

    def _label_columns(self) -> dict[str, Column]:
        texts = [encode_text(label) for label in self._vocabulary]
        return {
            "label_text": as_column(np.frombuffer(b"".join(texts), dtype=np.uint8)),
            "label_ends": as_column(_ends(list(map(len, texts)))),
        }

    def _live_sizes(self, live: np.ndarray) -> np.ndarray:
        """(R, 2) int32, or (0, 2) where no record has a size."""
        if not self._has_sizes:
            return np.zeros((0, 2), dtype=np.int32)
        return np.array(self._sizes, dtype=np.int32).reshape(-1, 2)[live]  # (2 R,) -> (R, 2)

    def _describe_sizes(self, live: np.ndarray) -> dict[str, Any]:
        sizes = self._live_sizes(live)
        sizes = sizes[sizes[:, 0] > 0]
        if not len(sizes):
            return {"known": 0}
        return {"known": len(sizes), "smallest": sizes.min(axis=0).tolist(), "largest": sizes.max(axis=0).tolist()}

    def _picture_columns(
        self, pictures: Iterable[tuple[str, str, str | None]], problems: Problems
    ) -> dict[str, Column]:
        """Index of the pictures; of several records of one picture, the first in the file is taken."""
        found = array("Q"), array("Q"), array("q")
        for key, path, content in pictures:
            row = self._find(encode_text(key))
            if content is None:
                problems.add(UNREADABLE, f"id {key!r}: picture {path} cannot be read; the log says why")
            elif row is not None:
                for values, value in zip(found, (*map(int, split_content_hash(content)), row), strict=True):
                    values.append(value)
        first, rest = np.array(found[0], dtype=np.uint64), np.array(found[1], dtype=np.uint64)
        rows = np.array(found[2], dtype=np.int64)
        order = np.lexsort((rows, rest, first))
        first, rest, rows = first[order], rest[order], rows[order]
        again = np.zeros(len(rows), dtype=bool)
        again[1:] = (first[1:] == first[:-1]) & (rest[1:] == rest[:-1])
        before = np.maximum.accumulate(np.where(again, 0, np.arange(len(rows))))
        for place in np.flatnonzero(again).tolist():
            self.picture_conflicts += not self._same(int(rows[place]), int(rows[before[place]]))
        return {
            "picture_hashes": as_column(first[~again]),
            "picture_rests": as_column(rest[~again]),
            "picture_rows": as_column(self._new_rows[rows[~again]].astype(np.int32)),
        }

    def _find(self, key: bytes) -> int | None:
        """The live record of a key, by its number before duplicates were removed."""
        hashed = np.uint64(hash_key(key))
        place = int(self._sorted_hashes.searchsorted(hashed))
        while place < len(self._rows) and self._sorted_hashes[place] == hashed:
            row = int(self._rows[place])
            if self._key(row) == key:
                return row
            place += 1
        return None


def table_in_memory(writer: BoxWriter, problems: Problems, metadata: dict[str, Any] | None = None) -> BoxTable:
    """The table of a writer's records."""
    writer.remove_duplicates(problems)
    columns, counts = writer.finish(problems)
    arrays = {name: column.load() for name, column in columns.items()}
    return BoxTable(arrays, {**(metadata or {}), **counts})


def _ends(lengths: Any) -> np.ndarray:
    """(n + 1,) int64, where n parts of these lengths begin and end."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(np.asarray(lengths, dtype=np.int64))])
