"""The records of a data set without keeping them: which ones are used, how long they are, how often each comes."""

import contextlib
import hashlib
import logging
import os
import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import print_log

from mg_llava.data.boxes.store import frame_keys, picture_keys
from mg_llava.data.choices import wrong_choice
from mg_llava.data.records.formats import RecordFormat, other_format, to_llava
from mg_llava.data.records.open import fingerprint, open_records
from mg_llava.data.records.schema import SCHEMA_VERSION, LLaVARecord, RecordError, measure_record, parse_record
from mg_llava.work.arrays import load_arrays, save_arrays
from mg_llava.work.atomic import write_json
from mg_llava.work.json_text import parse_json

_SHOWN = 5
_VERSION = 1
_SETTLED = 2 * 10**9
"""Nanoseconds after which a change of a file is sure to change its times."""
_REPEAT = 1
"""Keeps what is drawn for ``repeat`` apart from what is drawn for ``limit``."""


@dataclass(frozen=True)
class RecordIndex:
    """N records that can be used, in flat arrays.

    ``rows`` are their (N,) int64 places in the record file, ascending; ``sizes`` (N, 2) int32 the characters of the
    turns that are encoded, and the pictures; ``id_text`` the ids in UTF-8, which end at (N,) int64 ``id_ends``;
    ``regions`` (N, 2) int32 the object images and the coordinates of regions in questions;
    ``videos`` (N,) bool those about a video, once :meth:`with_frames` has put its frames in place of -1 pictures.
    """

    rows: np.ndarray
    sizes: np.ndarray
    id_text: np.ndarray
    id_ends: np.ndarray
    regions: np.ndarray
    videos: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))

    def with_frames(self, frames: int) -> "RecordIndex":
        """The index with so many pictures for each video."""
        videos = self.sizes[:, 1] < 0
        sizes = np.where(videos[:, None] * [False, True], frames, self.sizes).astype(self.sizes.dtype)
        return replace(self, sizes=sizes, videos=videos)

    def ids(self) -> Iterator[str]:
        """All ids, in the order of the records."""
        text, start = self.id_text.tobytes(), 0
        for end in self.id_ends.tolist():
            yield text[start:end].decode("utf-8", "surrogatepass")
            start = end

    def box_keys(self) -> Iterator[str]:
        """Ids of the boxes of all pictures, in the order of the records and their pictures."""
        frames = dict.fromkeys(np.flatnonzero(self.videos).tolist())
        for place, (record_id, count) in enumerate(zip(self.ids(), self.sizes[:, 1].tolist(), strict=True)):
            if place in frames:
                yield from frame_keys(record_id, count)
            elif count:
                yield from picture_keys(record_id, count)

    def video_ids(self) -> Iterator[str]:
        """Ids of the records about videos."""
        if self.videos.any():
            yield from (one for one, is_video in zip(self.ids(), self.videos.tolist(), strict=True) if is_video)


def index_records(
    records: Sequence[Any], source: str, limit: int | None = None, seed: int = 0, form: RecordFormat = "llava"
) -> RecordIndex:
    """Check the records in one pass, and leave out those without an answer; ``limit`` draws so many, in their order.

    Raises:
        RecordError: Records are malformed (the first ones are named), or none can be used.
    """
    rows, sizes, regions, ends, text = array("q"), array("i"), array("i"), array("q"), bytearray()
    problems: list[str] = []
    unanswered = silent = 0
    chosen = enumerate(records) if limit is None else ((n, records[n]) for n in draw(len(records), limit, seed))
    for row, raw in chosen:
        try:
            record_id, characters, pictures, is_silent, *named = measure_record(
                to_llava(raw, form, source, row), source, row
            )
        except RecordError as error:
            problems.append(f"{error}{'' if problems else other_format(raw, form)}")
            continue
        if not characters:
            unanswered += 1
            continue
        silent += is_silent
        rows.append(row)
        sizes.extend((characters, pictures))
        regions.extend(named)
        text += record_id.encode("utf-8", "surrogatepass")
        ends.append(len(text))
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise RecordError("; ".join(problems[:_SHOWN]) + more)
    if not rows:
        what = (
            f"none of the {len(records)} records has a question with an answer" if len(records) else "found no records"
        )
        raise RecordError(f"{source}: {what}; a record needs id and conversations with a human and a gpt turn")
    for count, what in ((unanswered, "records without an answered question, left out"), (silent, "empty answers")):
        if count:
            print_log(f"{source}: {count} {what}", logger="current", level=logging.WARNING)
    return RecordIndex(
        np.frombuffer(rows, dtype=np.int64),
        np.frombuffer(sizes, dtype=np.int32).reshape(-1, 2),
        np.frombuffer(bytes(text), dtype=np.uint8),
        np.frombuffer(ends, dtype=np.int64),
        np.frombuffer(regions, dtype=np.int32).reshape(-1, 2),
    )


def draw(count: int, wanted: int | None, seed: Any) -> Sequence[int]:
    """Indices of at most ``wanted`` of ``count`` things, ascending; the same for the same seed."""
    if wanted is None or wanted >= count:
        return range(count)
    return sorted(np.random.default_rng(seed).choice(count, wanted, replace=False).tolist())


class Samples:
    """N records of a file, repeated to M samples. Holds flat arrays alone, which worker processes share.

    Args:
        path: The record file.
        limit: Use this many records, drawn with ``seed``; None for all.
        repeat: Times that each record comes; the fraction of a time is drawn with ``seed``.
        seed: For both.
        cache: Folder that keeps what was learned of the file, under its fingerprint; None for none.
        frames: Frames of a video.
        form: What the records are.

    Raises:
        FileNotFoundError: There is no such file.
        RecordError: The file is broken, records are malformed, or none can be used.
        ValueError: ``repeat`` leaves nothing.
    """

    def __init__(
        self,
        path: str | Path,
        limit: int | None = None,
        repeat: float = 1.0,
        seed: int = 0,
        cache: str | Path | None = None,
        frames: int = 1,
        form: RecordFormat = "llava",
    ) -> None:
        self.path = str(path)
        self.frames = frames
        self.form = form
        for wrong in wrong_choice("format", form, RecordFormat):
            raise ValueError(wrong)
        self.fingerprint = None
        self._records = open_records(path)
        if cache is None:
            self.index = index_records(self._records, self.path, limit, seed, form)
        else:
            self.fingerprint = _known_fingerprint(path, Path(cache))
            self.index = self._known_index(Path(cache), limit, seed)
        self.index = self.index.with_frames(frames)
        self.positions = _repeated(len(self.index.rows), repeat, seed, self.path)
        """(M,) int64: which of the N records each sample is."""

    def __len__(self) -> int:
        """Number M of samples."""
        return len(self.positions)

    @property
    def file_rows(self) -> int:
        """Number of records in the file, unused ones included."""
        return len(self._records)

    def describe(self) -> str:
        """Text that differs where the file or the frames of its videos differ, with a ``cache`` alone."""
        assert self.fingerprint is not None
        read = "" if self.form == "llava" else f" {self.form} "
        return self.fingerprint + read + (f" {self.frames} frames " if self.index.videos.any() else "")

    def picture_positions(self) -> np.ndarray:
        """Which of the N records have pictures and come in an epoch; int64, ascending."""
        used = np.unique(self.positions)
        return used[self.index.sizes[used, 1] > 0]

    def row(self, index: int) -> int:
        """Place in the file of the record of sample ``index``; the same for each of its repetitions."""
        return int(self.index.rows[self.positions[index]])

    def record(self, index: int) -> LLaVARecord:
        """The record of sample ``index``."""
        return self.at(int(self.positions[index]))

    def at(self, position: int) -> LLaVARecord:
        """Record ``position`` of the N."""
        row = int(self.index.rows[position])
        return parse_record(to_llava(self._records[row], self.form, self.path, row), self.path, row).with_frames(
            self.frames
        )

    def _known_index(self, cache: Path, limit: int | None, seed: int) -> RecordIndex:
        """The index of a former start, else a new one for the next."""
        read = () if self.form == "llava" else (self.form,)
        about = repr((_VERSION, SCHEMA_VERSION, self.fingerprint, limit, None if limit is None else seed, *read))
        path = cache / f"{hashlib.blake2b(about.encode(), digest_size=16).hexdigest()}.survey.npz"
        known, names = load_arrays(path), [one.name for one in fields(RecordIndex)]
        if known is not None and known.keys() >= set(names):
            if "places" in known:
                self._records.places = known["places"]  # type: ignore[attr-defined]
            return RecordIndex(**{name: known[name] for name in names})
        index = index_records(self._records, self.path, limit, seed, self.form)
        more = {"places": self._records.places} if hasattr(self._records, "places") else {}
        save_arrays(path, **vars(index), **more)
        return index


def _known_fingerprint(path: str | Path, cache: Path) -> str:
    """Fingerprint of a record file; read from the cache while size, times and place of the file stay the same."""
    file = Path(path)
    if not file.is_file():
        return fingerprint(path)
    status = file.stat()
    state = [_VERSION, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    memo = cache / f"{hashlib.blake2b(os.fsencode(file.resolve()), digest_size=16).hexdigest()}.fingerprint"
    with contextlib.suppress(OSError, ValueError, TypeError):
        *known, digest = parse_json(memo.read_bytes())
        if known == state:
            return digest
    digest = fingerprint(path)
    if time.time_ns() - max(state[2:4]) > _SETTLED and file.stat().st_ctime_ns == status.st_ctime_ns:
        with contextlib.suppress(OSError):
            write_json(memo, [*state, digest])
    return digest


def _repeated(count: int, repeat: float, seed: int, source: str) -> np.ndarray:
    """(M,) int64: 0 to ``count`` - 1 as often as whole repetitions go, then the ones drawn for the fraction."""
    if not repeat > 0:
        raise ValueError(f"{source}: repeat is {repeat}; it must be positive; leave the source out instead")
    whole = int(repeat)
    some = draw(count, round((repeat - whole) * count), [seed, _REPEAT])
    positions = np.concatenate([*[np.arange(count)] * whole, np.array(some, dtype=np.int64)])
    if not len(positions):
        raise ValueError(f"{source}: repeat is {repeat}, which leaves none of {count} records")
    return positions
