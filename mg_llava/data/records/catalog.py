"""The records of a data set: which ones are used, how often and in which order; each is read when it is asked for."""

from pathlib import Path
from typing import Any

import numpy as np

from mg_llava.data.records.open import fingerprint, open_records
from mg_llava.data.records.schema import LLaVARecord, parse_record
from mg_llava.data.records.survey import Survey, draw, load_survey, survey_path, survey_records

_REPEAT = 1
"""Keeps what is drawn for ``repeat`` apart from what is drawn for ``limit``."""


class RecordCatalog:
    """N records of a file, repeated to M samples. Holds flat arrays alone, which worker processes share.

    Args:
        path: The record file.
        limit: Use this many records, drawn with ``seed``; None for all.
        repeat: Times that each record comes; the fraction of a time is drawn with ``seed``.
        seed: For both.
        cache: Folder that keeps what was learned of the file, under its fingerprint; None for none.

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
    ) -> None:
        self.path = str(path)
        self.fingerprint = None
        self._records = open_records(path)
        if cache is None:
            self.survey = survey_records(self._records, self.path, limit, seed)
        else:
            self.fingerprint = fingerprint(path)
            self.survey = self._known_survey(Path(cache), limit, seed)
        self.positions = _repeated(len(self.survey.rows), repeat, seed, self.path)
        """(M,) int64: which of the N records each sample is."""

    def __len__(self) -> int:
        """Number M of samples."""
        return len(self.positions)

    @property
    def file_rows(self) -> int:
        """Number of records in the file, unused ones included."""
        return len(self._records)

    def picture_positions(self) -> np.ndarray:
        """Which of the N records have pictures and come in an epoch; int64, ascending."""
        used = np.unique(self.positions)
        return used[self.survey.sizes[used, 1] > 0]

    def row(self, index: int) -> int:
        """Place in the file of the record of sample ``index``; the same for each of its repetitions."""
        return int(self.survey.rows[self.positions[index]])

    def record(self, index: int) -> LLaVARecord:
        """The record of sample ``index``."""
        return self.at(int(self.positions[index]))

    def at(self, position: int) -> LLaVARecord:
        """Record ``position`` of the N."""
        row = int(self.survey.rows[position])
        return parse_record(self._records[row], self.path, row)

    def _known_survey(self, cache: Path, limit: int | None, seed: int) -> Survey:
        """The survey of a former start, else a new one for the next."""
        assert self.fingerprint is not None
        path = survey_path(cache, self.fingerprint, limit, seed)
        known = load_survey(path)
        if known is not None:
            if "places" in known[1]:
                self._records.places = known[1]["places"]  # type: ignore[attr-defined]
            return known[0]
        survey = survey_records(self._records, self.path, limit, seed)
        places: dict[str, Any] = {}
        if hasattr(self._records, "places"):
            places["places"] = self._records.places
        survey.save(path, **places)
        return survey


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
