"""Append-only files of records: one JSON value a line, after its checksum.

A record is on the disk when :meth:`Journal.append` returns. Whatever ends a writer, a file holds whole lines and at
most one that was cut, which readers pass over and the next writer removes; lines that a disk changed do not fit their
checksums and are passed over too. A file has one writer at a time; several writers have a file each, named by
:func:`writer_name`, in one folder.

A line: the CRC-32 of the JSON text as eight hexadecimal digits, a space, the JSON text, a line feed.
"""

import json
import logging
import os
import secrets
import socket
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mg_llava.work.atomic import naming_full_disks

_HEAD = 9
_BLOCK = 1 << 16


class Record(NamedTuple):
    """A value and the place of its line: file, first byte, bytes."""

    value: Any
    path: Path
    start: int
    size: int


class Journal:
    """Appends records to a file, which exists from the first one on; what is there already stays.

    Args:
        path: The file; its folder is made where it is missing.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._descriptor: int | None = None

    def append(self, values: Iterable[Any]) -> None:
        """Write values that fit into JSON to the disk, together.

        Raises:
            NoRoomError: They do not fit on the disk; what was written before stays whole.
            FileNotFoundError: The file was removed meanwhile.
        """
        data = b"".join(map(_encode, values))
        if not data:
            return
        if self._descriptor is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o666)
            os.ftruncate(self._descriptor, _end_of_lines(self._descriptor))
        size = os.fstat(self._descriptor).st_size
        try:
            with naming_full_disks(self.path):
                write_all(self._descriptor, data)
                os.fsync(self._descriptor)
        except OSError:
            os.ftruncate(self._descriptor, size)
            raise
        check_is_there(self._descriptor, self.path)

    def close(self) -> None:
        """Close the file; it is opened again by the next ``append``."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_journal(path: str | Path) -> Iterator[Record]:
    """The whole records of a file, oldest first; none if there is no file. Damaged lines are counted in the log."""
    path = Path(path)
    if not path.is_file():
        return
    start = damaged = 0
    with path.open("rb") as file:
        for line in file:
            found = _decode(line)
            if found:
                yield Record(found[0], path, start, len(line))
            damaged += not found and line.endswith(b"\n")
            start += len(line)
    if damaged:
        logging.getLogger(__name__).warning(
            "%s: %d damaged records are passed over; what they held is done again", path, damaged
        )


def read_journals(folder: str | Path) -> Iterator[Record]:
    """The whole records of all ``.journal`` files in a folder, file by file."""
    for path in sorted(Path(folder).glob("*.journal")):
        yield from read_journal(path)


def read_record(record: Record) -> Any:
    """The value of a record, by its place.

    Raises:
        ValueError: The file was changed since.
    """
    with open(record.path, "rb") as file:
        file.seek(record.start)
        found = _decode(file.read(record.size))
    if not found:
        raise ValueError(
            f"{record.path} is damaged at byte {record.start}; start again, and what it held is done again"
        )
    return found[0]


def writer_name() -> str:
    """A name that no other writer has; later ones come later in alphabetical order on one host."""
    return f"{time.time_ns():020d}-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


def write_all(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    """Write all bytes, in as many steps as the disk takes."""
    with memoryview(data) as rest:
        start = 0
        while start < len(rest):
            start += os.write(descriptor, rest[start:])


def check_is_there(descriptor: int, path: Path) -> None:
    """See that an open file still has a name.

    Raises:
        FileNotFoundError: It was removed, so that all that is written to it is lost.
    """
    if not os.fstat(descriptor).st_nlink:
        raise FileNotFoundError(f"{path} was removed while it was written; leave its folder alone and start again")


def _end_of_lines(descriptor: int) -> int:
    """Bytes of a file up to the end of its last line that has one."""
    end = os.fstat(descriptor).st_size
    while end:
        start = max(0, end - _BLOCK)
        place = os.pread(descriptor, end - start, start).rfind(b"\n")
        if place >= 0:
            return start + place + 1
        end = start
    return 0


def _encode(value: Any) -> bytes:
    text = json.dumps(value, separators=(",", ":")).encode()
    return b"%08x %b\n" % (zlib.crc32(text), text)


def _decode(line: bytes) -> tuple[Any] | None:
    """The value of a line; None where it does not fit its checksum."""
    text = line[_HEAD:-1]
    is_whole = line.endswith(b"\n") and line[:_HEAD] == b"%08x " % zlib.crc32(text)
    return (json.loads(text),) if is_whole else None
