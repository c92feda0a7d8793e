"""Records of JSON and JSON Lines files by their places: each is read from the file when it is asked for.

So memory, in worker processes too, does not grow with the size of the records.
"""

import codecs
import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mg_llava.data.records.json_stream import Entry, parse_json, stream_json
from mg_llava.data.records.schema import RecordError


class TextRecords(Sequence[Any]):
    """Records of a text file by their places; subclasses find them."""

    _advice = "the file was changed while it was in use, start again"

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        # (N, 2): first byte and number of bytes of each record
        self._places: np.ndarray | None = None

    def __iter__(self) -> Iterator[Any]:
        """All records in order, in one pass over the file."""
        places = array("q")
        for entry in self._scan():
            places.extend((entry.start, entry.end - entry.start))
            yield entry.value
        self._places = np.frombuffer(places, dtype=np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        start, size = self.places[index].tolist()
        file = self.__dict__.get("_file")
        if file is None:
            # Of threads that open it at once one wins, and nobody reads from the others' files, which are closed.
            file = self.__dict__.setdefault("_file", open(self.path, "rb", buffering=0))
        # Leaves the file's position alone, which forked processes share.
        text = os.pread(file.fileno(), size, start)
        try:
            return parse_json(text)
        except ValueError as error:
            raise RecordError(f"{self.path}, record {index}: {error}; {self._advice}") from error

    @property
    def places(self) -> np.ndarray:
        """(N, 2) int64: first byte and number of bytes of each record; can be set where they are known."""
        if self._places is None:
            self._places = self._find_places()
        return self._places

    @places.setter
    def places(self, places: np.ndarray) -> None:
        self._places = places

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_file"}

    def __del__(self) -> None:
        if "_file" in self.__dict__:
            self.__dict__["_file"].close()

    def _find_places(self) -> np.ndarray:
        for _ in self:
            pass
        assert self._places is not None
        return self._places

    def _scan(self) -> Iterator[Entry]:
        raise NotImplementedError


class JsonLinesRecords(TextRecords):
    """One record per line; empty lines are passed over.

    Places are found without decoding, so that a broken record costs nothing but itself when it is asked for.
    """

    _advice = "write the record again"

    def _scan(self) -> Iterator[Entry]:
        for number, line, start in self._lines():
            try:
                value = parse_json(line)
            except ValueError as error:
                raise RecordError(
                    f"{self.path} is truncated or not JSON: line {number} of the file: {error}"
                ) from error
            yield Entry(number - 1, None, value, start, start + len(line))

    def _find_places(self) -> np.ndarray:
        places = array("q")
        for _, line, start in self._lines():
            places.extend((start, len(line)))
        return np.frombuffer(places, dtype=np.int64).reshape(-1, 2)

    def _lines(self) -> Iterator[tuple[int, bytes, int]]:
        """Number from 1, bytes and first byte of each line that is not blank, without a byte order mark."""
        start = 0
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, 1):
                mark = len(codecs.BOM_UTF8) if number == 1 and line.startswith(codecs.BOM_UTF8) else 0
                if line[mark:].strip():
                    yield number, line[mark:], start + mark
                start += len(line)


class JsonRecords(TextRecords):
    """The elements of a JSON list, decoded one by one as the file is read."""

    def _scan(self) -> Iterator[Entry]:
        return stream_json(self.path, allow_objects=False)
