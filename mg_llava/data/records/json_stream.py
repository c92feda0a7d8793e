"""Values of large JSON and JSON Lines files, one after the other, in memory that does not grow with the file."""

import codecs
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from mg_llava.data.records.schema import RecordError

OnChunk = Callable[[bytes], object]

_CHUNK = 1 << 20
_LONGEST = 1 << 28
# The longest word that a chunk may end in is "-Infinity"; errors this close to the end may be due to the cut.
_MARGIN = 16
_FOLLOWING = frozenset(" \t\n\r,]}:")
_SPACE = re.compile(r"[ \t\n\r]*")


def parse_json(data: bytes) -> Any:
    """The value that UTF-8 bytes hold.

    Raises:
        ValueError: They do not, whatever is wrong; the message says what.
    """
    try:
        return json.loads(data.decode("utf-8"))
    except (RecursionError, ValueError) as error:
        raise ValueError(explain(error)) from error


def explain(error: Exception) -> str:
    """What is wrong with JSON that raised an error."""
    if isinstance(error, RecursionError):
        return "lists or objects are nested too deeply"
    return "a number has too many digits" if "digits" in str(error) else str(error)


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
    """Read the items of the list or object that a ``.json`` file holds, or the values of a ``.jsonl`` file.

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
    reader = _Reader(path, on_chunk)
    with reader.file:
        if path.suffix == ".jsonl":
            yield from _lines(reader)
            return
        start = reader.peek()
        if start != "[" and not (start == "{" and allow_objects):
            what = "an empty file" if not start else f"a file that starts with {start!r}"
            wanted = "a list or an object is needed" if allow_objects else "a list of records is needed"
            reader.fail(f"found {what}, {wanted}; JSON Lines files must end in .jsonl")
        yield from _items(reader, "]" if start == "[" else "}")
        if reader.peek():
            reader.fail("found more after the end; JSON Lines files must end in .jsonl")


class _Reader:
    """Text of the file around the present position."""

    def __init__(self, path: Path, on_chunk: OnChunk | None) -> None:
        self.path = path
        self.file = path.open("rb")
        self.number = 0
        self._on_chunk = on_chunk
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._raw_decode = json.JSONDecoder().raw_decode
        self._text = ""
        self._position = 0
        self.place = 0  # of _position in the file, in bytes
        self._line = 1
        self._ended = False
        self._broken = ""
        self._first = True

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

    def entry(self, key: str | None) -> Entry:
        """The value at the present position as the next entry."""
        start = self.place
        value = self.value()
        self.number += 1
        return Entry(self.number - 1, key, value, start, self.place)

    def value(self) -> Any:
        """Decode the value at the present position."""
        while True:
            try:
                value, end = self._raw_decode(self._text, self._position)
            except json.JSONDecodeError as error:
                if self._ended or self._is_certain(error):
                    self.fail(error.msg)
            except (RecursionError, ValueError) as error:  # a number of thousands of digits is a ValueError
                self.fail(explain(error))
            else:
                # A number may be cut at "1", "1." or "1e".
                if self._text[end : end + 1] in _FOLLOWING or self._ended or end < len(self._text) - _MARGIN:
                    self._move(end)
                    return value
            self._read()

    def fail(self, message: str) -> NoReturn:
        """Raise with file, line and record."""
        line = self._line + self._text.count("\n", 0, self._position)
        raise RecordError(
            f"{self.path} is truncated or not JSON: line {line}, record {self.number}: {message}; write the file again"
        )

    def _move(self, end: int) -> None:
        # Characters are bytes where all are ASCII, which Python strings know of themselves.
        passed = end - self._position
        self.place += passed if self._text.isascii() else len(self._text[self._position : end].encode())
        self._position = end

    def _is_certain(self, error: json.JSONDecodeError) -> bool:
        """Whether more text cannot mend the error."""
        return error.pos < len(self._text) - _MARGIN and not error.msg.startswith("Unterminated string")

    def _read(self) -> None:
        """Drop what was used and read at least as much as is left, so that long values are not decoded often."""
        if self._broken:
            self.fail(f"not UTF-8 ({self._broken})")
        left = len(self._text) - self._position
        if left > _LONGEST:
            self.fail(f"a record of more than {_LONGEST >> 20} million characters; a quote or bracket is missing")
        chunk = self.file.read(max(_CHUNK, left))
        if self._on_chunk is not None and chunk:
            self._on_chunk(chunk)
        self._ended = not chunk
        encoding = "utf-8-sig" if self._first else "utf-8"
        if self._first:
            self._first = False
            self.place = len(codecs.BOM_UTF8) if chunk.startswith(codecs.BOM_UTF8) else 0
        self._line += self._text.count("\n", 0, self._position)
        self._text = self._text[self._position :]
        self._position = 0
        try:
            self._text += self._decoder.decode(chunk, final=self._ended)
        except UnicodeDecodeError as error:  # told when what stands before it has been read
            self._text += error.object[: error.start].decode(encoding)
            self._broken, self._ended = error.reason, False


def _items(reader: _Reader, end: str) -> Iterator[Entry]:
    """Items of the list or object that begins at the present position."""
    reader.skip()
    if reader.peek() == end:
        reader.skip()
        return
    while True:
        key = _key(reader) if end == "}" else None
        if not reader.peek():
            reader.fail("the file ends in the middle")
        yield reader.entry(key)
        found = reader.peek()
        if found not in (",", end) or not found:
            reader.fail(f"found {found!r}, ',' or {end!r} is needed" if found else "the file ends in the middle")
        reader.skip()
        if found == end:
            return
        reader.peek()


def _key(reader: _Reader) -> str:
    if reader.peek() != '"':
        reader.fail("an object's key is needed")
    key = reader.value()
    if reader.peek() != ":":
        reader.fail(f"':' is needed after key {key[:80]!r}")
    reader.skip()
    return key


def _lines(reader: _Reader) -> Iterator[Entry]:
    while reader.peek():
        yield reader.entry(None)
