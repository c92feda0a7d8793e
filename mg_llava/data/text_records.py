"""Records of JSON and JSON Lines files by their places: each is read from the file when it is asked for.

So memory, in worker processes too, does not grow with the size of the records.
"""

import codecs
import json
import os
import re
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from .schema import RecordError

_CHUNK = 1 << 20
_LONGEST = 1 << 28
# The longest word that the text at hand may be cut in is "-Infinity".
_MARGIN = 16
_SPACE = re.compile(r"[ \t\n\r]*")
# With what follows it, so that nothing is cut off.
_COMMA = re.compile(r"[ \t\n\r]*,[ \t\n\r]*(?=[^ \t\n\r])")
_FOLLOWING = tuple(",] \t\n\r")
_DECODER = json.JSONDecoder()


class _Span(NamedTuple):
    """A record and its place in the file, in bytes."""

    start: int
    end: int
    value: Any


class TextRecords(Sequence[Any]):
    """Records of a text file by their places; subclasses find them."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        # (N, 2): first byte and number of bytes of each record
        self._places: np.ndarray | None = None
        self._file: BinaryIO | None = None

    def __iter__(self) -> Iterator[Any]:
        """All records in order, in one pass over the file."""
        places = array("q")
        for span in self._scan():
            places.extend((span.start, span.end - span.start))
            yield span.value
        self._places = np.frombuffer(places, dtype=np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        start, size = self.places[index].tolist()
        if self._file is None:
            self._file = open(self.path, "rb", buffering=0)
        # Leaves the file's position alone, which forked processes share.
        text = os.pread(self._file.fileno(), size, start)
        try:
            return json.loads(text.decode("utf-8"))
        except ValueError as error:
            raise RecordError(
                f"{self.path}, record {index}: {error}; the file was changed while it was in use, start again"
            ) from error

    @property
    def places(self) -> np.ndarray:
        """(N, 2) int64: first byte and number of bytes of each record; can be set where they are known."""
        if self._places is None:
            for _ in self:
                pass
        assert self._places is not None
        return self._places

    @places.setter
    def places(self, places: np.ndarray) -> None:
        self._places = places

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None}

    def __del__(self) -> None:
        if self.__dict__.get("_file") is not None:
            self._file.close()  # type: ignore[union-attr]

    def _scan(self) -> Iterator[_Span]:
        raise NotImplementedError


class JsonLinesRecords(TextRecords):
    """One record per line; empty lines are passed over."""

    def _scan(self) -> Iterator[_Span]:
        start = 0
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, 1):
                end = start + len(line)
                if not line.isspace():
                    yield _Span(start, end, self._parse(line, number))
                start = end

    def _parse(self, line: bytes, number: int) -> Any:
        try:
            return json.loads(line.decode("utf-8"))
        except ValueError as error:
            raise RecordError(f"{self.path} is truncated or not JSON: line {number} of the file: {error}") from error


class JsonRecords(TextRecords):
    """The elements of a JSON list, decoded one by one as the file is read."""

    def _scan(self) -> Iterator[_Span]:
        with open(self.path, "rb") as file:
            window = _Window(file)
            try:
                yield from window.elements()
            except (ValueError, RecursionError) as error:
                raise RecordError(
                    f"{self.path} is truncated or not JSON: line {self._line(window.place)}: {error}"
                ) from error

    def _line(self, place: int) -> int:
        """Number of the line in which a byte of the file lies."""
        line = 1
        with open(self.path, "rb") as file:
            while place > 0 and (chunk := file.read(min(_CHUNK, place))):
                line += chunk.count(b"\n")
                place -= len(chunk)
        return line


class _Window:
    """The part of a JSON file around the present place."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._text = ""
        self._at = 0
        self._ended = False
        self.place = 0  # of _at in the file, in bytes

    def elements(self) -> Iterator[_Span]:
        """The elements of the list that the file holds.

        Raises:
            ValueError: The file holds something else.
        """
        if self._peek() != "[":
            raise ValueError("a list of records is needed; JSON Lines files must end in .jsonl")
        self._advance(1)
        if self._peek() == "]":
            self._finish()
            return
        while True:
            start = self.place
            value = self._value()
            yield _Span(start, self.place, value)
            if not self._step():
                self._finish()
                return

    def _step(self) -> bool:
        """Step to the next element; whether there is one."""
        match = _COMMA.match(self._text, self._at)
        if match is not None:
            self._advance(match.end() - self._at)
            return True
        found = self._peek()
        if found == "]":
            return False
        if found != ",":
            raise ValueError(f"found {found!r} after a record, ',' or ']' is needed" if found else "the file ends")
        self._advance(1)
        self._peek()
        return True

    def _finish(self) -> None:
        self._advance(1)
        if self._peek():
            raise ValueError("more follows after the list; JSON Lines files must end in .jsonl")

    def _peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            self._advance(_SPACE.match(self._text, self._at).end() - self._at)  # type: ignore[union-attr]
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._read()

    def _value(self) -> Any:
        """Decode the value at the present place and step over it."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._ended or self._is_certain(error):
                    raise
            else:
                # A number may be cut after "1", "1." and "1e".
                if self._text[end : end + 1] in _FOLLOWING or end < len(self._text) - _MARGIN or self._ended:
                    self._advance(end - self._at)
                    return value
            self._read()

    def _is_certain(self, error: json.JSONDecodeError) -> bool:
        """Whether the error is not due to the end of the text at hand."""
        if len(self._text) > _LONGEST:
            return True
        return error.pos < len(self._text) - _MARGIN and not error.msg.startswith("Unterminated string")

    def _advance(self, characters: int) -> None:
        end = self._at + characters
        # Characters are bytes where all are ASCII, which Python strings know of themselves.
        self.place += characters if self._text.isascii() else len(self._text[self._at : end].encode("utf-8"))
        self._at = end

    def _read(self) -> None:
        """Drop what was used and read at least as much as is left, so that long values are not decoded often."""
        left = self._text[self._at :]
        chunk = self._file.read(max(_CHUNK, len(left)))
        self._ended = not chunk
        self._text, self._at = left + self._decode(chunk, self._ended), 0
