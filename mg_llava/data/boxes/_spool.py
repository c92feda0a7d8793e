"""Numbers collected one record at a time, in memory or in a temporary file, and laid out as columns at the end."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from mg_llava.data.boxes._file import Column
from mg_llava.work.atomic import naming_full_disks
from mg_llava.work.journal import write_all

_BUFFER = 1 << 20
# Records at a time where columns are copied.
_BLOCK = 1 << 13


class Spool:
    """Numbers of one type, appended at the end and read anywhere.

    Args:
        folder: Where they are kept, in a file without a name, which vanishes with the process; None for memory.
        dtype: Their type.
    """

    def __init__(self, folder: str | Path | None, dtype: str) -> None:
        self._dtype = np.dtype(dtype)
        self._memory = bytearray()
        self._file = None
        if folder is not None:
            self._folder = Path(folder)
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)

    def append(self, data: bytes) -> None:
        """Append numbers as bytes."""
        self._memory += data
        if len(self._memory) > _BUFFER:
            self._flush()

    def read(self, start: int, stop: int) -> np.ndarray:
        """Numbers ``start`` to ``stop``."""
        first, last = int(start) * self._dtype.itemsize, int(stop) * self._dtype.itemsize
        self._flush()
        data = bytes(self._memory[first:last]) if self._file is None else self._read_file(first, last)
        return np.frombuffer(data, dtype=self._dtype)

    def _read_file(self, first: int, last: int) -> bytes:
        assert self._file is not None
        # Without moving the position at which is written.
        data = os.pread(self._file.fileno(), last - first, first)
        assert len(data) == last - first, (first, last, len(data))
        return data

    def _flush(self) -> None:
        if self._file is not None and self._memory:
            with naming_full_disks(self._folder / "boxes"):
                write_all(self._file.fileno(), self._memory)
            self._memory.clear()


def live_column(spool: Spool, ends: np.ndarray, live: np.ndarray, types: Sequence[type], width: int = 0) -> Column:
    """The numbers of those records that stay.

    Args:
        spool: The numbers of all records.
        ends: (n + 1,) where the records begin and end, in rows.
        live: (n,) bool, which records stay.
        types: The column gets the first type that keeps every value, or the last.
        width: Numbers in a row; 0 for a column with one axis.
    """
    chunks = partial(_live_chunks, spool, ends, live, width)
    rows = int(np.diff(ends)[live].sum())
    return Column(_first_exact(chunks, types), (rows, width) if width else (rows,), chunks)


def _live_chunks(spool: Spool, ends: np.ndarray, live: np.ndarray, width: int) -> Iterator[np.ndarray]:
    scale = width or 1
    for start in range(0, len(live), _BLOCK):
        stop = min(start + _BLOCK, len(live))
        values = spool.read(ends[start] * scale, ends[stop] * scale)
        if width:
            values = values.reshape(-1, width)  # (rows * width,) -> (rows, width)
        if not live[start:stop].all():
            values = values[np.repeat(live[start:stop], np.diff(ends[start : stop + 1]))]
        yield values


def _first_exact(chunks: Callable[[], Iterator[np.ndarray]], types: Sequence[type]) -> np.dtype:
    left = list(types)
    if len(left) == 1:
        return np.dtype(left[0])
    for chunk in chunks():
        # Values out of range come back changed; numpy's warnings about them say nothing new.
        with np.errstate(invalid="ignore", over="ignore"):
            left = [kind for kind in left[:-1] if np.array_equal(chunk.astype(kind), chunk)] + left[-1:]
    return np.dtype(left[0])
