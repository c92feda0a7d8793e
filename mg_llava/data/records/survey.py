"""What a data set knows of its records without keeping them: which ones are used, and how long they are."""

import hashlib
import logging
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import print_log

from mg_llava.data.boxes.store import picture_keys
from mg_llava.data.records.schema import SCHEMA_VERSION, RecordError, measure_record
from mg_llava.work.arrays import load_arrays, save_arrays

_SHOWN = 5
_VERSION = 1


@dataclass(frozen=True)
class Survey:
    """N records that can be used, in flat arrays.

    Attributes:
        rows: (N,) int64 places in the record file, ascending.
        sizes: (N, 2) int32: characters of the turns that are encoded, and pictures.
        id_text: uint8, the ids in UTF-8, one after the other.
        id_ends: (N,) int64, where each id ends.
    """

    rows: np.ndarray
    sizes: np.ndarray
    id_text: np.ndarray
    id_ends: np.ndarray

    def ids(self) -> Iterator[str]:
        """All ids, in the order of the records."""
        text, start = self.id_text.tobytes(), 0
        for end in self.id_ends.tolist():
            yield text[start:end].decode("utf-8", "surrogatepass")
            start = end

    def box_keys(self) -> Iterator[str]:
        """Ids of the boxes of all pictures, in the order of the records and their pictures."""
        for record_id, count in zip(self.ids(), self.sizes[:, 1].tolist(), strict=True):
            if count:
                yield from picture_keys(record_id, count)

    def save(self, path: str | Path, **more: np.ndarray) -> None:
        """Write to a file, at once or not at all, with further arrays."""
        save_arrays(path, **vars(self), **more)


def load_survey(path: str | Path) -> tuple[Survey, dict[str, np.ndarray]] | None:
    """A survey that was saved, and the arrays beside it; None where there is none, or a damaged one."""
    arrays = load_arrays(path)
    if arrays is None or not {"rows", "sizes", "id_text", "id_ends"} <= arrays.keys():
        return None
    return Survey(*(arrays.pop(name) for name in ("rows", "sizes", "id_text", "id_ends"))), arrays


def survey_path(folder: str | Path, fingerprint: str, limit: int | None, seed: int) -> Path:
    """Where the survey of a record file with this fingerprint lies in a folder of caches."""
    key = repr((_VERSION, SCHEMA_VERSION, fingerprint, limit, None if limit is None else seed))
    return Path(folder) / f"{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}.survey.npz"


def survey_records(records: Sequence[Any], source: str, limit: int | None = None, seed: int = 0) -> Survey:
    """Check the records in one pass, and leave out those without an answer.

    Args:
        records: The records of the file.
        source: The file, for messages.
        limit: Draw this many records with ``seed``, keeping their order; None for all.
        seed: For ``limit``.

    Raises:
        RecordError: Records are malformed (the first ones are named), or none can be used.
    """
    rows, sizes, ends, text = array("q"), array("i"), array("q"), bytearray()
    problems: list[str] = []
    unanswered = silent = 0
    for row, raw in _drawn(records, limit, seed):
        try:
            record_id, characters, pictures, is_silent = measure_record(raw, source, row)
        except RecordError as error:
            problems.append(str(error))
            continue
        if not characters:
            unanswered += 1
            continue
        silent += is_silent
        rows.append(row)
        sizes.extend((characters, pictures))
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
    return Survey(
        np.frombuffer(rows, dtype=np.int64),
        np.frombuffer(sizes, dtype=np.int32).reshape(-1, 2),
        np.frombuffer(bytes(text), dtype=np.uint8),
        np.frombuffer(ends, dtype=np.int64),
    )


def draw(count: int, wanted: int | None, seed: Any) -> Sequence[int]:
    """Indices of at most ``wanted`` of ``count`` things, ascending; the same for the same seed."""
    if wanted is None or wanted >= count:
        return range(count)
    return sorted(np.random.default_rng(seed).choice(count, wanted, replace=False).tolist())


def _drawn(records: Sequence[Any], limit: int | None, seed: int) -> Iterable[tuple[int, Any]]:
    if limit is None:
        return enumerate(records)
    return ((row, records[row]) for row in draw(len(records), limit, seed))
