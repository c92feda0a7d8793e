"""Box files in the reference's layout, record by record, with every fault counted and named."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mg_llava.data.records.json_stream import Entry, OnChunk, stream_json
from mg_llava.data.records.schema import BoxRecord, RecordError, make_box_record

_KEPT_MESSAGES = 1000
_SHOWN = 5
_SHOWN_CHARACTERS = 80


class SourceRecord(NamedTuple):
    """The boxes of one picture; ``size`` is its (width, height) where the file has it."""

    key: str
    record: BoxRecord
    size: tuple[int, int] | None


@dataclass
class Problems:
    """Faults of box files: how many of each kind, and the first messages, which name the ids."""

    counts: Counter[str] = field(default_factory=Counter)
    messages: list[str] = field(default_factory=list)

    def add(self, kind: str, message: str, count: int = 1) -> None:
        """Note a fault that concerns ``count`` records."""
        self.counts[kind] += count
        if len(self.messages) < _KEPT_MESSAGES:
            self.messages.append(message)

    def __len__(self) -> int:
        return self.counts.total()

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.counts.items()))
        more = "; ..." if len(self.messages) > _SHOWN else ""
        return f"{len(self)} bad box records ({kinds}): {'; '.join(self.messages[:_SHOWN])}{more}"


def read_box_records(path: str | Path, problems: Problems, on_chunk: OnChunk | None = None) -> Iterator[SourceRecord]:
    """Read the good records of a box file; bad ones are added to ``problems`` and left out.

    A ``.json`` file holds a list of ``{"id", "boxes", "scores", "labels"}`` or an object of such records by id, a
    ``.jsonl`` file one such record a line. A record may have the size of its picture in pixels as ``width`` and
    ``height``, or as ``image_size``, a list of both; and ``tags`` of its picture, a list. A video is one of ``{"id",
    "frames"}``, a list of such records: that of frame 0 gets the id ``ID#0``. ``on_chunk`` is as of ``stream_json``.

    Raises:
        FileNotFoundError: There is no such file.
        RecordError: The file is truncated or not JSON.
    """
    for entry in stream_json(path, on_chunk):
        key = _key_of(entry)
        if key is None:
            found = str(entry.value)[:_SHOWN_CHARACTERS]
            problems.add("without an id", f"record {entry.number}: found {found}; every box record needs an id")
            continue
        for own, raw in _pictures(key, entry.value):
            try:
                record = _parse(raw, f"id {own!r}")
            except RecordError as error:
                problems.add(error.kind, str(error))
                continue
            yield SourceRecord(own, record, _size(raw))


def _pictures(key: str, raw: Any) -> list[tuple[str, Any]]:
    """The record of a picture with its key; those of all frames of a video with the keys that training asks for."""
    frames = raw.get("frames") if isinstance(raw, Mapping) and "boxes" not in raw else None
    return [(f"{key}#{n}", frame) for n, frame in enumerate(frames)] if isinstance(frames, list) else [(key, raw)]


def _key_of(entry: Entry) -> str | None:
    """The id as a string, so that 17 and ``"17"`` are one key."""
    if entry.key is not None:
        return entry.key
    value = entry.value.get("id") if isinstance(entry.value, Mapping) else None
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None


def _parse(raw: Any, owner: str) -> BoxRecord:
    if not isinstance(raw, Mapping) or not isinstance(raw.get("boxes"), list):
        found = str(raw)[:_SHOWN_CHARACTERS]
        raise RecordError(f"{owner}: found {found}; a box record has boxes, scores and labels")
    for name in ("scores", "labels", "tags"):
        if not isinstance(raw.get(name), list | None):
            raise RecordError(f"{owner}: {name} is a {type(raw[name]).__name__}; a list is needed")
    return make_box_record(raw["boxes"], raw.get("scores"), raw.get("labels"), owner, raw.get("tags"))


def _size(raw: Mapping[str, Any]) -> tuple[int, int] | None:
    found: Any = raw.get("image_size") or (raw.get("width"), raw.get("height"))
    is_pair = isinstance(found, list | tuple) and len(found) == 2
    fits = is_pair and all(isinstance(side, int) and 0 < side < 2**31 for side in found)
    return (int(found[0]), int(found[1])) if fits else None
