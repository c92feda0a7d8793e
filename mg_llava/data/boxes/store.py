"""Boxes by record id or by picture: of box files in the reference's layout, or of stores converted from them once.

Small ``.json`` and ``.jsonl`` files are read into memory. Large ones are converted with ``tools/convert_boxes.py``
to a store, a file that opens at once and is shared by all workers (see ``boxes.table`` for its layout).
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import print_log
from PIL import Image

from mg_llava.data.boxes._table import BoxTable
from mg_llava.data.boxes.convert import BadRecord, read_box_table
from mg_llava.data.boxes.policy import MissingBox, MissingBoxes, Picture, advice
from mg_llava.data.choices import wrong_choice
from mg_llava.data.pictures import files as pictures
from mg_llava.data.records.schema import BoxRecord, RecordError
from mg_llava.work.urls import local_file

__all__ = [
    *("BadRecord", "BoxStore", "MissingBox", "check_frames", "frame_keys", "frame_problem", "open_box_store"),
    "picture_keys",
]

_SHOWN = 5
_LARGE = 100 << 20
_PART = 1 << 18
_JSON = (".json", ".jsonl")


class BoxStore:
    """Boxes in original pixels by id; ids are strings, so that 17 and ``"17"`` are one key.

    Made by ``open_box_store``; ``source`` names the file in messages.
    """

    def __init__(self, table: BoxTable, source: str, missing: MissingBoxes) -> None:
        self.source, self._table, self._missing = source, table, missing

    @property
    def missing(self) -> MissingBox:
        """Name of the policy for unknown pictures."""
        return self._missing.policy

    @property
    def metadata(self) -> dict[str, Any]:
        """``detector``, ``settings`` and ``image_size`` of the box run, ``sources`` with their checksums, counts."""
        return self._table.metadata

    @property
    def missed(self) -> int:
        """Number of times that ``get`` fell back on the policy so far, in all workers."""
        return self._missing.count

    def __len__(self) -> int:
        return len(self._table)

    def __contains__(self, key: object) -> bool:
        return self._table.find(str(key)) is not None

    def keys(self) -> Iterator[str]:
        """All keys, in the order of the file."""
        return self._table.keys()

    def find(self, key: str | int | None, picture: Picture | None = None) -> BoxRecord | None:
        """The boxes of one picture in original pixels, or None; no policy is applied. Arguments as for ``get``."""
        row = None if key is None else self._table.find(str(key))
        if row is None and picture is not None and self._table.has_pictures:
            picture = picture if isinstance(picture, Image.Image) else picture()
            row = self._table.find_picture(pictures.content_hash(picture))
        return None if row is None else self._table.record(row)

    def image_size(self, key: str | int) -> tuple[int, int] | None:
        """Width and height of the picture that the boxes were made on, where the box file says it."""
        row = self._table.find(str(key))
        return None if row is None else self._table.image_size(row)

    def counts(self, keys: Iterable[str]) -> np.ndarray:
        """Numbers of boxes of many pictures, fast: (n,) int64, 0 for unknown keys."""
        return np.concatenate([self._table.counts(rows) for _, rows in self._look_up(keys)] or [np.zeros(0, np.int64)])

    def get(self, key: str | int | None, picture: Picture | None = None) -> BoxRecord:
        """The boxes of one picture, in original pixels.

        Args:
            key: Record id; None to look the picture up by content alone.
            picture: The picture, or a function that opens it: for unknown ids, if the store has content hashes, and
                for the policy ``detect``.

        Raises:
            RecordError: The picture is unknown and the policy is ``error``.
        """
        record = self.find(key, picture)
        if record is not None:
            return record
        wanted = "this picture" if key is None else f"id {str(key)!r}"
        return self._missing(f"{self.source} has no boxes for {wanted}", picture)

    def check(self, keys: Iterable[str]) -> int:
        """The number of keys without boxes; they are logged or refused as the policy says.

        A store with content hashes may know such pictures by their content, so that they are not refused here.

        Raises:
            RecordError: A key is unknown, the policy is ``error`` and there are no content hashes.
        """
        unknown: list[str] = []
        total = 0
        for part, rows in self._look_up(keys):
            absent = np.flatnonzero(rows < 0)
            unknown += [part[place] for place in absent[: _SHOWN - len(unknown)].tolist()]
            total += len(absent)
        if total:
            message = f"{self.source} has no boxes for {total} pictures, such as id {', '.join(map(repr, unknown))}"
            if self._table.has_pictures:
                message += "; they are looked up by their content"
            elif self.missing == "error":
                raise RecordError(f"{message}; {advice()}")
            else:
                message += f"; {self._missing.meaning}"
            print_log(message, logger="current", level=logging.WARNING)
        return total

    def _look_up(self, keys: Iterable[str]) -> Iterator[tuple[list[str], np.ndarray]]:
        """Keys and their rows, part by part, so that memory does not grow with their number."""
        rest = iter(keys)
        while part := list(islice(rest, _PART)):
            yield part, self._table.rows(part)


def open_box_store(
    path: str | Path,
    missing: MissingBox = "error",
    bad: BadRecord = "error",
    *,
    proposer: Any = None,
    to_frame: Callable[[Image.Image], Image.Image] | None = None,
    detector: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> BoxStore:
    """Open a store, or read a small box file into memory.

    Args:
        path: A store of ``tools/convert_boxes.py``, or its URL; or a ``.json`` or ``.jsonl`` file with a list of
            ``{"id", "boxes", "scores", "labels"}``, or an object of such records by id.
        missing: What pictures without a record get (see ``boxes.policy.MissingBoxes``).
        bad: For ``.json`` and ``.jsonl``: ``error`` refuses the file if a record is malformed (unequal lengths, values
            that are not finite, inverted boxes) or an id comes again with different boxes. ``drop`` leaves malformed
            records out, takes the last of several, and logs how many.
        proposer: For ``missing="detect"``, as ``to_frame``.
        to_frame: See ``boxes.policy.MissingBoxes``.
        detector: What must have found the boxes; None for anything.
        settings: The settings that it must have had; None for any.

    Raises:
        FileNotFoundError: There is no such file.
        RecordError: The file is broken, holds bad records, or the boxes are of another detector or other settings.
        ValueError: An unknown policy.
    """
    policy, file = MissingBoxes(missing, proposer, to_frame), local_file(path)
    table = _read_json(file, bad) if file.suffix in _JSON else BoxTable.open(file)
    for name, wanted in (("detector", detector), ("settings", settings)):
        found = table.metadata.get(name)
        if wanted is not None and found != wanted:
            raise RecordError(f"{path} was made with {name} {found!r}, not {wanted!r}; use boxes made alike")
    return BoxStore(table, str(path), policy)


def picture_keys(record_id: str, count: int) -> list[str]:
    """Box ids of a record's pictures: the record's id, or ``id#0``, ``id#1``... where it has several pictures."""
    return [record_id] if count == 1 else [f"{record_id}#{number}" for number in range(count)]


def frame_keys(record_id: str, frames: int) -> list[str]:
    """Box ids of the frames of a record's video: ``id#0``, ``id#1``..."""
    return [f"{record_id}#{number}" for number in range(frames)]


def check_frames(store: BoxStore, ids: Iterable[str], frames: int) -> None:
    """Refuse boxes of videos that were found on another number of frames.

    Args:
        store: The boxes.
        ids: Of records about videos; those without any boxes are left to the policy.
        frames: Frames that are taken of each.

    Raises:
        RecordError: A video has boxes for another number of frames; names both.
    """
    for record_id in ids:
        if problem := frame_problem(store.find, record_id, frames):
            raise RecordError(
                f"{store.source} has {problem}; make boxes with tools/generate_boxes.py --frames {frames}, or set "
                "another number of frames in the picture processor's video"
            )


def frame_problem(find: Callable[[str], Any], record_id: str, frames: int) -> str | None:
    """Both numbers, where boxes of a video are for another number of frames; ``find`` gives None for no boxes."""
    first, last, more = (find(f"{record_id}#{number}") is not None for number in (0, frames - 1, frames))
    if not first or (last and not more):
        return None
    found = next(number for number in count() if find(f"{record_id}#{number}") is None)
    return f"boxes for {found} frames of video {record_id!r}, and {frames} frames are taken"


def _read_json(path: str | Path, bad: BadRecord) -> BoxTable:
    for wrong in wrong_choice("bad_box_record", bad, BadRecord):
        raise ValueError(wrong)
    if Path(path).is_file() and Path(path).stat().st_size > _LARGE:
        message = f"{path} is large; convert it once with tools/convert_boxes.py, then it opens at once"
        print_log(message, logger="current", level=logging.WARNING)
    table, problems = read_box_table(path, bad)
    if problems:
        print_log(f"{path}: {problems}; left out", logger="current", level=logging.WARNING)
    return table
