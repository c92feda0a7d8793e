"""Append-only files of binary contents, for many writers and readers at a time.

Every writer has two files of its own: its contents one after the other, and fixed-size entries that say where they
lie. An entry is written after its content and has its checksum and one of itself, so that after a kill, on a full disk
or with a flipped bit a content is either whole or not found.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mg_llava.work.atomic import naming_full_disks
from mg_llava.work.journal import check_is_there, write_all, writer_name

_OWN = [("key", "<u8"), ("offset", "<i8"), ("bytes", "<i8"), ("checksum", "<u8")]
_SEED = np.uint64(0x9E3779B97F4A7C15)

Field = tuple[str, str]
"""Name and type of what an entry says beside the place of its content; eight bytes wide together."""


class BlobWriter:
    """The two files of this writer; they exist from the first content on.

    Args:
        folder: Where they are; made if needed.
        suffix: Of the file of contents, such as ``".ids"``.
        fields: What entries say of their contents.
        limit: Bytes of contents after which new files are begun; None for no limit.

    Attributes:
        written: Bytes of contents so far.
    """

    def __init__(
        self, folder: str | Path, suffix: str, fields: Sequence[Field] = (), limit: int | None = None
    ) -> None:
        self._files: tuple[int, ...] = ()
        self.folder, self.suffix, self.limit = Path(folder), suffix, limit
        self.written = self._offset = 0
        self._dtype, self._path = entry_dtype(fields), self.folder

    def add(self, key: int, content: np.ndarray, *values: Any) -> None:
        """Append (bytes,) uint8 that is found by ``key``, with the values of the fields.

        Raises:
            NoRoomError: It does not fit on the disk; what was added before stays whole.
            FileNotFoundError: The files were removed meanwhile.
        """
        if self.limit is not None and self._offset >= self.limit:
            self.close()
        if not self._files:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._path, self._offset = self.folder / f"{writer_name()}{self.suffix}", 0
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND
            self._files = tuple(os.open(path, flags, 0o666) for path in (self._path, _index_of(self._path)))
        entry = np.zeros(1, self._dtype)
        entry[0] = (key, self._offset, len(content), checksum(content, key), *values, 0)
        entry["seal"] = _seals(entry)
        try:
            with naming_full_disks(self._path):
                for descriptor, data in zip(self._files, (content, entry), strict=True):
                    write_all(descriptor, data.tobytes())
                    check_is_there(descriptor, self._path)
        except OSError:
            self._abandon()  # the next content begins files anew, so that nothing is misplaced
            raise
        self._offset += len(content)
        self.written += len(content)

    def close(self) -> None:
        """Put all that was added on the disk; the next content begins files anew.

        Raises:
            FileNotFoundError: The files were removed meanwhile.
        """
        try:
            with naming_full_disks(self._path):
                for descriptor in self._files:
                    os.fsync(descriptor)
                    check_is_there(descriptor, self._path)
        finally:
            self._abandon()

    def _abandon(self) -> None:
        for descriptor in self._files:
            os.close(descriptor)
        self._files = ()

    def __del__(self) -> None:
        self._abandon()


class BlobReader:
    """All contents that were in a folder when it was opened; arguments as of the writers.

    Attributes:
        entries: (n,) entries whose contents are all there, those of files begun earlier first.
    """

    def __init__(self, folder: str | Path, suffix: str, fields: Sequence[Field] = ()) -> None:
        self._paths = [path.with_suffix(suffix) for path in sorted(Path(folder).glob("*.index"))]
        dtype = entry_dtype(fields)
        found = [_whole_entries(path, dtype) for path in self._paths]
        self.entries = np.concatenate([np.zeros(0, dtype), *found])
        self._files = np.repeat(np.arange(len(found), dtype=np.int32), list(map(len, found)))
        self._open: dict[int, int] = {}

    def path_of(self, number: int) -> Path:
        """The file that an entry's content is in."""
        return self._paths[self._files[number]]

    def read(self, number: int) -> np.ndarray | None:
        """(bytes,) uint8, the content of an entry; None where it is damaged."""
        entry = self.entries[number]
        content = self.peek(number, int(entry["bytes"]))
        fits = len(content) == entry["bytes"] and checksum(content, int(entry["key"])) == int(entry["checksum"])
        return content if fits else None

    def peek(self, number: int, count: int) -> np.ndarray:
        """(count,) uint8, the first bytes of a content, unchecked; fewer where the file ends before or is gone."""
        file, content = int(self._files[number]), np.empty(count, np.uint8)
        try:
            if file not in self._open:
                self._open[file] = os.open(self._paths[file], os.O_RDONLY)
            # leaves the file's position alone, which forked processes share
            return content[: os.preadv(self._open[file], [content.data], int(self.entries[number]["offset"]))]
        except OSError:
            return content[:0]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}

    def __del__(self) -> None:
        for descriptor in self.__dict__.get("_open", {}).values():
            os.close(descriptor)


def entry_dtype(fields: Sequence[Field]) -> np.dtype:
    """An entry: key, place and checksum of a content, the fields, and a checksum of them all."""
    dtype = np.dtype([*_OWN, *fields, ("seal", "<u8")])
    assert dtype.itemsize % 8 == 0, "fields have to fill words of eight bytes"
    return dtype


def checksum(content: np.ndarray, key: int) -> int:
    """Sum of 64-bit words, key and length: finds a flipped bit and what was not written, at the speed of memory."""
    words, tail = np.split(content, [len(content) // 8 * 8])
    total = int(np.add.reduce(words.view("<u8"), initial=np.uint64(0)))
    return (total + int.from_bytes(tail.tobytes(), "little") + key + (len(content) << 32)) & 0xFFFFFFFFFFFFFFFF


def _seals(entries: np.ndarray) -> np.ndarray:
    """(n,) uint64 checksums of entries; one flipped bit always changes it, and zeros do not fit."""
    words = entries.view("<u8").reshape(len(entries), entries.itemsize // 8)[:, :-1]
    weights = np.arange(1, 2 * words.shape[1], 2, dtype=np.uint64) * _SEED | np.uint64(1)
    return (words * weights).sum(axis=1, dtype=np.uint64) + _SEED


def _index_of(contents: Path) -> Path:
    return contents.with_suffix(".index")


def _whole_entries(contents: Path, dtype: np.dtype) -> np.ndarray:
    """The undamaged entries of a writer's contents that end within their file."""
    data = _index_of(contents).read_bytes()
    entries = np.frombuffer(data[: len(data) // dtype.itemsize * dtype.itemsize], dtype)
    size = contents.stat().st_size if contents.is_file() else 0
    fits = (entries["seal"] == _seals(entries)) & (entries["offset"] + entries["bytes"] <= size)
    return entries[fits]
