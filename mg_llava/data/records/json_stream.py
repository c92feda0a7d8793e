"""Values of large JSON and JSON Lines files, one after the other, in memory that does not grow with the file."""

import codecs
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

from mg_llava.data.records.schema import RecordError
from mg_llava.work.json_text import explain_json, parse_json

OnChunk = Callable[[bytes], object]

_CHUNK = 1 << 20
_LONGEST = 1 << 28
# The longest word that a chunk may end in is "-Infinity"; errors this close to the end may be due to the cut.
_MARGIN = 16
_FOLLOWING = frozenset(" \t\n\r,]}:")
_SPACE = re.compile(r"[ \t\n\r]*")
_MARK = codecs.BOM_UTF8


class Entry(NamedTuple):
    """One value: ``key`` is None in lists and JSON Lines, ``number`` counts from 0.

    The value's bytes in the file go from ``start`` to ``end``.
    """

    number: int
    key: str | None
    value: Any
    start: int
    end: int


def stream_json(path: str | Path, on_chunk: OnChunk | None = None, allow_objects: bool = True) -> Iterator[Entry]:
    """Read the items of the list or object that a ``.json`` file holds, or the lines of a ``.jsonl`` file.

    A key that comes twice in an object is given twice, unlike ``json.load``, which keeps the last.

    Args:
        path: The file, in UTF-8.
        on_chunk: Gets every piece of the file as it is read, for progress bars and checksums.
        allow_objects: Whether a ``.json`` file may hold an object instead of a list.

    Raises:
        FileNotFoundError: There is no such file.
        RecordError: The file is truncated, not JSON, or neither list nor object; the message names file, line and
            record.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"file {path} does not exist; check the path")
    if path.suffix != ".jsonl":
        with path.open("rb") as file:
            yield from _items(_Reader(path, file, on_chunk), allow_objects)
        return
    for number, (line, text, start) in enumerate(json_lines(path, on_chunk)):
        try:
            value = parse_json(text)
        except ValueError as error:
            _fail(path, line, number, str(error))
        yield Entry(number, None, value, start, start + len(text))


def json_lines(path: Path, on_chunk: OnChunk | None = None) -> Iterator[tuple[int, bytes, int]]:
    """Number from 1, bytes and first byte of each line that is not blank, without a byte order mark."""
    start = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if on_chunk is not None:
                on_chunk(line)
            mark = len(_MARK) if number == 1 and line.startswith(_MARK) else 0
            if line[mark:].strip():
                yield number, line[mark:], start + mark
            start += len(line)


class _Reader:
    """Text of the file around the present position; ``place`` is that position in bytes."""

    def __init__(self, path: Path, file: IO[bytes], on_chunk: OnChunk | None) -> None:
        self._path, self._file, self._on_chunk = path, file, on_chunk
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._raw_decode = json.JSONDecoder().raw_decode
        self._text, self._broken = "", ""
        self._position, self._line, self._number = 0, 1, 0
        self._ended = False
        self._is_first = True
        self.place = 0

    def peek(self) -> str:
        """The next character that is not white space, or an empty string at the end."""
        while True:
            match = _SPACE.match(self._text, self._position)
            assert match is not None
            self._move(match.end())
            if self._position < len(self._text):
                return self._text[self._position]
            if self._ended:
                return ""
            self._read()

    def skip(self) -> None:
        """Step over the character that ``peek`` gave."""
        self._move(self._position + 1)

    def key(self) -> str:
        """The key of an object at the present position, and its colon."""
        if self.peek() != '"':
            self.fail("an object's key is needed")
        key = self.value()
        if self.peek() != ":":
            self.fail(f"':' is needed after key {key[:80]!r}")
        self.skip()
        return key

    def entry(self, key: str | None) -> Entry:
        """The value at the present position as the next entry."""
        if not self.peek():
            self.fail("the file ends in the middle")
        start = self.place
        value = self.value()
        self._number += 1
        return Entry(self._number - 1, key, value, start, self.place)

    def value(self) -> Any:
        """Decode the value at the present position."""
        while True:
            try:
                value, end = self._raw_decode(self._text, self._position)
            except json.JSONDecodeError as error:
                may_be_cut = error.pos >= len(self._text) - _MARGIN or error.msg.startswith("Unterminated string")
                if self._ended or not may_be_cut:
                    self.fail(error.msg)
            except (RecursionError, ValueError) as error:  # a number of thousands of digits is a ValueError
                self.fail(explain_json(error))
            else:
                # A number may be cut at "1", "1." or "1e".
                if self._text[end : end + 1] in _FOLLOWING or self._ended or end < len(self._text) - _MARGIN:
                    self._move(end)
                    return value
            self._read()

    def fail(self, message: str) -> NoReturn:
        """Raise with file, line and record."""
        _fail(self._path, self._line + self._text.count("\n", 0, self._position), self._number, message)

    def _move(self, end: int) -> None:
        # Characters are bytes where all are ASCII, which Python strings know of themselves.
        passed = end - self._position
        self.place += passed if self._text.isascii() else len(self._text[self._position : end].encode())
        self._position = end

    def _read(self) -> None:
        """Drop what was used and read at least as much as is left, so that long values are not decoded often."""
        if self._broken:
            self.fail(f"not UTF-8 ({self._broken})")
        left = len(self._text) - self._position
        if left > _LONGEST:
            self.fail(f"a record of more than {_LONGEST >> 20} million characters; a quote or bracket is missing")
        chunk = self._file.read(max(_CHUNK, left, len(_MARK)))
        if self._on_chunk is not None and chunk:
            self._on_chunk(chunk)
        self._ended = not chunk
        if self._is_first and chunk.startswith(_MARK):
            self.place, chunk = len(_MARK), chunk[len(_MARK) :]
        self._is_first = False
        self._line += self._text.count("\n", 0, self._position)
        self._text = self._text[self._position :]
        self._position = 0
        try:
            self._text += self._decoder.decode(chunk, final=self._ended)
        except UnicodeDecodeError as error:  # told when what stands before it has been read
            self._text += error.object[: error.start].decode()
            self._broken, self._ended = error.reason, False


def _items(reader: _Reader, allow_objects: bool) -> Iterator[Entry]:
    """Items of the list or object that a file holds."""
    start = reader.peek()
    if start != "[" and not (start == "{" and allow_objects):
        what = "an empty file" if not start else f"a file that starts with {start!r}"
        wanted = "a list or an object is needed" if allow_objects else "a list of records is needed"
        reader.fail(f"found {what}, {wanted}; JSON Lines files must end in .jsonl")
    end = "]" if start == "[" else "}"
    reader.skip()
    found = reader.peek()
    while found != end or not found:
        yield reader.entry(reader.key() if end == "}" else None)
        found = reader.peek()
        if found not in (",", end) or not found:
            reader.fail(f"found {found!r}, ',' or {end!r} is needed" if found else "the file ends in the middle")
        if found == ",":
            reader.skip()
    reader.skip()
    if reader.peek():
        reader.fail("found more after the end; JSON Lines files must end in .jsonl")


def _fail(path: Path, line: int, number: int, message: str) -> NoReturn:
    raise RecordError(
        f"{path} is truncated or not JSON: line {line}, record {number}: {message}; write the file again"
    )
