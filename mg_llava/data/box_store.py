"""Boxes by record id, from a box file in the reference's layout (a list of records, or a dict keyed by id)."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from mmengine.logging import print_log

from .records import read_json
from .schema import NO_BOXES, BoxRecord, RecordError, make_box_record

MissingBox = Literal["error", "empty"]
BadRecord = Literal["error", "drop"]

_SHOWN = 5


class BoxStore:
    """Boxes in original pixels by id; ids are strings, so that 17 and ``"17"`` are one key. Kept in flat arrays.

    Args:
        records: Pairs of id and boxes, without duplicates.
        source: Name of the file, for messages.
        missing: What ``get`` does for an unknown id: ``error`` or ``empty`` (no boxes, so that the picture
            processor's policy for "no box" applies).
    """

    def __init__(
        self, records: Iterable[tuple[str, BoxRecord]], source: str = "boxes", missing: MissingBox = "error"
    ) -> None:
        if missing not in ("error", "empty"):
            raise ValueError(f"missing is {missing!r}; allowed: 'error', 'empty'")
        self.source = source
        self.missing = missing
        self._rows: dict[str, int] = {}
        vocabulary: dict[str, int] = {}
        boxes, scores, labels, ends = [NO_BOXES.boxes], [NO_BOXES.scores], [], [0]
        for record_id, record in records:
            self._rows[record_id] = len(self._rows)
            boxes.append(record.boxes)
            scores.append(record.scores)
            labels += [vocabulary.setdefault(label, len(vocabulary)) for label in record.labels]
            ends.append(ends[-1] + len(record))
        self._ends = np.array(ends, dtype=np.int64)
        self._boxes = np.concatenate(boxes)
        self._scores = np.concatenate(scores)
        self._labels = np.array(labels, dtype=np.int32)
        self._vocabulary = list(vocabulary)
        for array in (self._boxes, self._scores):
            array.setflags(write=False)

    @classmethod
    def from_json(cls, path: str | Path, missing: MissingBox = "error", bad_record: BadRecord = "error") -> "BoxStore":
        """Read a box file.

        Args:
            path: A list of ``{"id", "boxes", "scores", "labels"}``, or a dict of such records keyed by id.
            missing: See the class.
            bad_record: ``error`` refuses the file when a record is malformed (unequal lengths, values that are not
                finite, inverted boxes) or an id comes twice with different boxes. ``drop`` leaves malformed records
                out, takes the last of several, and logs how many.

        Raises:
            FileNotFoundError: There is no such file.
            RecordError: The file is broken, or holds bad records; the message names the first ids.
        """
        records: dict[str, BoxRecord] = {}
        problems: list[str] = []
        for record_id, raw in _iterate(read_json(path), path):
            try:
                record = _parse_box_record(raw, f"id {record_id!r}")
            except RecordError as error:
                problems.append(str(error))
                continue
            if record_id in records and not _same(records[record_id], record):
                problems.append(f"id {record_id!r}: found twice, with different boxes")
            records[record_id] = record
        if problems:
            message = f"{path}: {len(problems)} bad box records: {'; '.join(problems[:_SHOWN])}"
            if bad_record == "error":
                raise RecordError(f"{message}; correct the file or leave them out with bad_box_record='drop'")
            print_log(f"{message}; left out", logger="current", level=logging.WARNING)
        return cls(records.items(), source=str(path), missing=missing)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, record_id: object) -> bool:
        return str(record_id) in self._rows

    def get(self, record_id: str | int) -> BoxRecord:
        """The boxes of one picture, in original pixels.

        Raises:
            RecordError: The id is unknown and ``missing`` is ``error``.
        """
        row = self._rows.get(str(record_id))
        if row is None:
            if self.missing == "empty":
                return NO_BOXES
            raise RecordError(f"{self.source} has no boxes for id {str(record_id)!r}; {self._advice()}")
        part = slice(self._ends[row], self._ends[row + 1])
        labels = tuple(self._vocabulary[label] for label in self._labels[part])
        return BoxRecord(self._boxes[part], self._scores[part], labels)

    def check(self, record_ids: Iterable[str]) -> int:
        """Count the ids without boxes, and log or refuse as ``missing`` says.

        Returns:
            The number of ids without boxes.

        Raises:
            RecordError: An id is unknown and ``missing`` is ``error``.
        """
        unknown = [record_id for record_id in record_ids if record_id not in self]
        if unknown:
            ids = ", ".join(map(repr, unknown[:_SHOWN]))
            message = f"{self.source} has no boxes for {len(unknown)} pictures, such as id {ids}"
            if self.missing == "error":
                raise RecordError(f"{message}; {self._advice()}")
            print_log(f"{message}; they are used without boxes", logger="current", level=logging.WARNING)
        return len(unknown)

    @staticmethod
    def _advice() -> str:
        return "make boxes for it, or use such pictures without boxes with missing_box='empty'"


def picture_keys(record_id: str, count: int) -> list[str]:
    """Box ids of a record's pictures: the record's id, or ``id#0``, ``id#1``... where it has several pictures."""
    return [record_id] if count == 1 else [f"{record_id}#{number}" for number in range(count)]


def _iterate(content: Any, path: str | Path) -> Iterator[tuple[str, Any]]:
    if isinstance(content, Mapping):
        yield from ((str(key), value) for key, value in content.items())
    elif isinstance(content, list):
        for number, raw in enumerate(content):
            if not isinstance(raw, Mapping) or not isinstance(raw.get("id"), str | int):
                raise RecordError(f"{path}, record {number}: found {str(raw)[:80]}; every box record needs an id")
            yield str(raw["id"]), raw
    else:
        raise RecordError(f"{path} holds a {type(content).__name__}; a list of box records or a dict by id is needed")


def _parse_box_record(raw: Any, owner: str) -> BoxRecord:
    if not isinstance(raw, Mapping) or not isinstance(raw.get("boxes"), list):
        raise RecordError(f"{owner}: found {str(raw)[:80]}; a box record has boxes, scores and labels")
    return make_box_record(raw["boxes"], raw.get("scores"), raw.get("labels"), owner)


def _same(first: BoxRecord, second: BoxRecord) -> bool:
    return (
        np.array_equal(first.boxes, second.boxes)
        and np.array_equal(first.scores, second.scores)
        and first.labels == second.labels
    )
