"""Builds the arrays of a box table record by record, in the narrowest types that keep every value."""

import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mg_llava.data.boxes._reader import Problems
from mg_llava.data.boxes._table import BoxTable, decode_text, encode_text, hash_key, split_content_hash
from mg_llava.data.records.schema import BoxRecord

DUPLICATE = "with an id that comes again with different boxes"
UNREADABLE = "with a picture that cannot be read"

_BOX_TYPES = (np.int16, np.int32, np.float32, np.float64)
_SCORE_TYPES = (np.float32, np.float64)
_LABEL_TYPES = (np.uint16, np.int32)
# Numbers that are in memory at a time.
_BLOCK = 1 << 16


class _Numbers:
    """Numbers of one kind, appended; the first of ``types`` that keeps all of them is theirs, else the last."""

    def __init__(self, code: str, types: Sequence[type], folder: Path | None) -> None:
        self._new, self._types = array(code), types
        self._folder, self._file = folder, None if folder is None else tempfile.TemporaryFile(dir=folder)

    def append(self, data: bytes) -> None:
        self._new.frombytes(data)
        if self._file is not None and len(self._new) > _BLOCK:
            self._new.tofile(self._file)
            del self._new[:]

    def whole(self) -> np.ndarray:
        if self._file is None:
            return _narrow(np.array(self._new), self._types)
        self._new.tofile(self._file)
        return _narrow(_mapped(self._file, np.dtype(self._new.typecode)), self._types, self._folder)


class BoxWriter:
    """Takes records in any order and number, with ids that may come again.

    Args:
        folder: Where boxes, scores and labels are kept meanwhile, in files without a name, so that many take little
            memory; None for memory.

    Attributes:
        repeated: Number of repetitions of an id with the same boxes, which are no fault.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._boxes, self._scores = _Numbers("d", _BOX_TYPES, folder), _Numbers("d", _SCORE_TYPES, folder)
        self._labels, self._tags = _Numbers("i", _LABEL_TYPES, folder), _Numbers("i", _LABEL_TYPES, folder)
        self._tag_counts = array("q")
        self._keys, self._hashes = bytearray(), array("Q")
        self._counts, self._lengths, self._sizes = array("q"), array("q"), array("i")
        self._vocabulary: dict[str, int] = {}
        self.repeated = 0

    def add(self, key: str, record: BoxRecord, size: tuple[int, int] | None = None) -> None:
        """Append a record; of several with one key, the last counts."""
        text = encode_text(key)
        self._hashes.append(hash_key(text))
        self._lengths.append(len(text))
        self._counts.append(len(record))
        self._keys += text
        self._boxes.append(record.boxes.tobytes())
        self._scores.append(record.scores.tobytes())
        self._labels.append(self._numbers_of(record.labels))
        self._tags.append(self._numbers_of(record.tags))
        self._tag_counts.append(len(record.tags))
        self._sizes.extend(size or (0, 0))

    def _numbers_of(self, words: Sequence[str]) -> bytes:
        known = self._vocabulary
        return array("i", [known.setdefault(word, len(known)) for word in words]).tobytes()

    def arrays(self, problems: Problems) -> dict[str, np.ndarray]:
        """The arrays of ``BoxTable``, without pictures; of several records with one key, the last.

        Args:
            problems: Gets ids that come again with different boxes.
        """
        hashes, counts, lengths = (np.array(values) for values in (self._hashes, self._counts, self._lengths))
        parts = self._boxes.whole().reshape(-1, 4), self._scores.whole(), self._labels.whole()  # (4 B,) -> (B, 4)
        text = np.frombuffer(bytes(self._keys), dtype=np.uint8)
        sizes = np.array(self._sizes, dtype=np.int32).reshape(-1, 2)  # (2 R,) -> (R, 2)
        tags, tag_counts = self._tags.whole(), np.array(self._tag_counts)
        live = self._find_live(hashes, _ends(lengths), _ends(counts), parts, problems)
        if not live.all():
            kept = np.repeat(live, counts)
            boxes, scores, numbers = (_picked(part, kept, self._folder) for part in parts)
            parts, text = (boxes, scores, numbers), text[np.repeat(live, lengths)]
            tags, tag_counts = tags[np.repeat(live, tag_counts)], tag_counts[live]
            hashes, counts, lengths, sizes = (values[live] for values in (hashes, counts, lengths, sizes))
        order = np.argsort(hashes, kind="stable")
        labels = [encode_text(label) for label in self._vocabulary]
        return {
            "key_hashes": hashes[order],
            "key_rows": order.astype(np.int32),
            "key_text": text,
            "key_ends": _ends(lengths),
            "box_ends": _ends(counts),
            "boxes": _narrow(parts[0], _BOX_TYPES, self._folder),
            "scores": _narrow(parts[1], _SCORE_TYPES, self._folder),
            "labels": _narrow(parts[2], _LABEL_TYPES, self._folder),
            "label_text": np.frombuffer(b"".join(labels), dtype=np.uint8),
            "label_ends": _ends(list(map(len, labels))),
            **({"tags": _narrow(tags, _LABEL_TYPES), "tag_ends": _ends(tag_counts)} if len(tags) else {}),
            "sizes": sizes if sizes.any() else sizes[:0],
            **_picture_arrays(*(np.zeros(0, kind) for kind in ("u8", "u8", "i4"))),
        }

    def _find_live(
        self, hashes: np.ndarray, key_ends: np.ndarray, box_ends: np.ndarray, parts: Any, problems: Problems
    ) -> np.ndarray:
        """Which records stay: (n,) bool; not those whose key comes again later."""
        live = np.ones(len(hashes), dtype=bool)
        order = np.argsort(hashes, kind="stable")
        again = np.isin(hashes, hashes[order[1:]][hashes[order[1:]] == hashes[order[:-1]]])
        by_key: dict[bytes, list[int]] = {}
        for row in np.flatnonzero(again).tolist():
            by_key.setdefault(bytes(self._keys[key_ends[row] : key_ends[row + 1]]), []).append(row)
        for key, rows in by_key.items():
            live[rows[:-1]] = False
            different = sum(not _same(parts, box_ends, row, rows[-1]) for row in rows[:-1])
            self.repeated += len(rows) - 1 - different
            if different:
                message = f"id {decode_text(key)!r}: found {len(rows)} times, with different boxes"
                problems.add(DUPLICATE, message, different)
        return live


def index_pictures(
    arrays: dict[str, np.ndarray], pictures: Iterable[tuple[str, str, str | None]], problems: Problems
) -> int:
    """Let records be found by their pictures; of several records of one picture, the first in the file is taken.

    Args:
        arrays: Of ``BoxTable``; gets the index.
        pictures: Key, path and content hash (None where it cannot be read) of pictures; keys without a record are
            ignored.
        problems: Gets pictures that cannot be read.

    Returns:
        Number of records whose picture has other boxes under another id.
    """
    table, found = BoxTable(arrays, {}), (array("Q"), array("Q"), array("q"))
    for key, path, content in pictures:
        row = table.find(key)
        if content is None:
            problems.add(UNREADABLE, f"id {key!r}: picture {path} cannot be read; the log says why")
        elif row is not None:
            for values, value in zip(found, (*map(int, split_content_hash(content)), row), strict=True):
                values.append(value)
    first, rest, rows = map(np.array, found)
    order = np.lexsort((rows, rest, first))
    first, rest, rows = first[order], rest[order], rows[order]
    again = np.zeros(len(rows), dtype=bool)
    again[1:] = (first[1:] == first[:-1]) & (rest[1:] == rest[:-1])
    before = np.maximum.accumulate(np.where(again, 0, np.arange(len(rows))))
    parts = arrays["boxes"], arrays["scores"], arrays["labels"]
    places = np.flatnonzero(again).tolist()
    arrays.update(_picture_arrays(first[~again], rest[~again], rows[~again].astype(np.int32)))
    return sum(not _same(parts, arrays["box_ends"], int(rows[at]), int(rows[before[at]])) for at in places)


def describe_arrays(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The counts of a store's metadata."""
    sizes = arrays["sizes"][arrays["sizes"][:, 0] > 0]
    ranges = {"smallest": sizes.min(axis=0).tolist(), "largest": sizes.max(axis=0).tolist()} if len(sizes) else {}
    return {
        "records": len(arrays["key_rows"]),
        "boxes": len(arrays["scores"]),
        "labels": len(arrays["label_ends"]) - 1,
        "pictures": len(arrays["picture_rows"]),
        "image_sizes": {"known": len(sizes), **ranges},
    }


def _picture_arrays(hashes: np.ndarray, rests: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
    return {"picture_hashes": hashes, "picture_rests": rests, "picture_rows": rows}


def _same(parts: Iterable[np.ndarray], ends: np.ndarray, first: int, second: int) -> bool:
    """Whether two records have the same boxes, scores and labels."""
    one, other = (slice(ends[row], ends[row + 1]) for row in (first, second))
    return all(np.array_equal(part[one], part[other]) for part in parts)


def _narrow(values: np.ndarray, types: Sequence[Any], folder: Path | None = None) -> np.ndarray:
    """Numbers in the first type that keeps every value, or the last; in a file of ``folder`` if it is given."""
    fitting = (kind for kind in types[:-1] if all(_fits(block, kind) for block in _blocks_of(values)))
    kind = np.dtype(next(fitting, types[-1]))
    if values.dtype == kind:
        return values
    return _laid_down((block.astype(kind) for block in _blocks_of(values)), values.shape[1:], kind, folder)


def _fits(values: np.ndarray, kind: Any) -> bool:
    # Values out of range come back changed; numpy's warnings about them say nothing new.
    with np.errstate(invalid="ignore", over="ignore"):
        return np.array_equal(values.astype(kind), values)


def _picked(values: np.ndarray, kept: np.ndarray, folder: Path | None) -> np.ndarray:
    """The rows that ``kept`` says."""
    blocks = (block[part] for block, part in zip(_blocks_of(values), _blocks_of(kept), strict=True))
    return _laid_down(blocks, values.shape[1:], values.dtype, folder)


def _blocks_of(values: np.ndarray) -> Iterator[np.ndarray]:
    return (values[start : start + _BLOCK] for start in range(0, len(values), _BLOCK))


def _laid_down(
    blocks: Iterable[np.ndarray], shape: tuple[int, ...], kind: np.dtype, folder: Path | None
) -> np.ndarray:
    """Blocks of rows of a shape as one array, in a file of ``folder`` without a name if it is given."""
    if folder is None:
        return np.concatenate([np.zeros((0, *shape), kind), *blocks])
    with tempfile.TemporaryFile(dir=folder) as file:
        for block in blocks:
            block.tofile(file)
        return _mapped(file, kind).reshape(-1, *shape)


def _mapped(file: Any, kind: np.dtype) -> np.ndarray:
    """The numbers in a file; plain, as slices of np.memmap are slow."""
    file.flush()
    return np.asarray(np.memmap(file, kind)) if file.tell() else np.zeros(0, kind)


def _ends(lengths: Any) -> np.ndarray:
    """(n + 1,) int64, where n parts of these lengths begin and end."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(np.asarray(lengths, dtype=np.int64))])
