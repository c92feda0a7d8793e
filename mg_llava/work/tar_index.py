"""Places of the members of tar files, so that any of them is read without those before it.

An index is kept beside its tar file, or in the user's cache where that cannot be written. It belongs to the tar file
as long as this has its size; every read compares the member's header with the one that was indexed, so that another
tar file of the same size is noticed. Nothing is unpacked. Links, devices and sparse files are not followed: their
size is -1 here. M members.
"""

import hashlib
import logging
import os
import posixpath
import tarfile
import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from mg_llava.work.arrays import load_arrays, save_arrays
from mg_llava.work.urls import cache_folder, file_system, is_url, local_file, read_url, url_about

_VERSION = 1
_BLOCK = 512
_PADDING = 1 << 20
"""Most bytes of zeros that a tar file may end in."""
LARGEST = 1 << 30
"""Bytes of the largest member that is read."""


class TarError(ValueError):
    """A tar file that is damaged, or of a kind whose members cannot be read by their places."""


@dataclass(frozen=True)
class TarIndex:
    """The members of a tar file, in its order, without folders.

    Attributes:
        names: Their names in UTF-8, one after the other; they end at (M,) int64 ``ends``.
        keys: (M, 2) uint64 hashes of their names.
        starts: (M,) int64 first bytes of their contents.
        sizes: (M,) int64 bytes of their contents; -1 of what is no file.
        checks: (M,) uint32 checksums of their headers.
    """

    names: np.ndarray
    ends: np.ndarray
    keys: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    checks: np.ndarray

    def list_names(self) -> Iterator[str]:
        """All names."""
        text, start = self.names.tobytes(), 0
        for end in self.ends.tolist():
            yield text[start:end].decode("utf-8", "surrogatepass")
            start = end


def name_key(name: str) -> tuple[int, int]:
    """Hash of a member's name, as in ``TarIndex.keys``; ``./a`` and ``a`` are the same."""
    name = posixpath.normpath(name)
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def open_index(path: str) -> TarIndex:
    """The index of a tar file, a path or a URL; it is made where there is none.

    Raises:
        FileNotFoundError: There is no such file.
        TarError: It is compressed, truncated or damaged, or a name comes twice.
        TransferError: It cannot be read now.
    """
    size = url_about(path).get("size") if is_url(path) else os.stat(path).st_size
    if size is None:
        raise TarError(f"the server does not say how large {path} is; take it from another one, or make a copy")
    about = np.array([_VERSION, size], dtype=np.int64)
    places = _places_of(path)
    for place in places:
        found = load_arrays(place)
        if found is not None and np.array_equal(found.pop("about", ()), about):
            return TarIndex(**found)
    index = _scan(path, size)
    for place in places:
        try:
            save_arrays(place, about=about, **vars(index))
            break
        except OSError as error:
            logging.getLogger(__name__).info("no index is kept at %s: %s", place, error)
    return index


def read_member(path: str, start: int, size: int, check: int) -> bytes:
    """The content of a member, by its entry in the index.

    Raises:
        TarError: It is no file, is too large, or another one is there than was indexed.
        FileNotFoundError: There is no such tar file.
        TransferError: It cannot be read now.
    """
    if size < 0:
        raise TarError("it is a link, a device or a sparse file; store the file itself")
    if size > LARGEST:
        raise TarError(f"it has {size} bytes, of at most {LARGEST}")
    first, end = start - _BLOCK, start + size
    if is_url(path):
        found = read_url(path, start=first, end=end)
    else:
        with open(path, "rb", buffering=0) as file:
            found = os.pread(file.fileno(), end - first, first)
    if len(found) < end - first or zlib.crc32(found[:_BLOCK]) != check:
        raise TarError(f"{path} was changed or cut off while it was in use; start again")
    return found[_BLOCK:]


def _places_of(path: str) -> list[Path]:
    """Where the index of a tar file may be, the best place first."""
    key = hashlib.blake2b(path.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    own = cache_folder("tars") / f"{key}.index"
    if not is_url(path):
        return [Path(f"{path}.index"), cache_folder("tars") / f"{key}-{os.stat(path).st_mtime_ns}.index"]
    try:
        return [own, local_file(f"{path}.index")]
    except OSError:  # nobody has put one there
        return [own]


def _scan(path: str, size: int) -> TarIndex:
    if is_url(path):
        system, place = file_system(os.getpid(), path)
        opened: Any = system.open(place, "rb")
    else:
        opened = open(path, "rb")
    with opened as file:
        try:
            return _make_index(path, _members(file, size))
        except (tarfile.TarError, EOFError, OverflowError, RecursionError) as error:
            advice = "it is damaged or cut off, or compressed, which has no places; make or download it again"
            raise TarError(f"{path} is no plain tar file ({error}): {advice}") from error


def _members(file: IO[bytes], size: int) -> list[tuple[str, int, int, int]]:
    """Name, first byte, size and header's checksum of all members but folders.

    Raises:
        tarfile.TarError: The file does not end as tar files do, or no header is where one should be.
    """
    members = []
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # they would all stay in memory
            if member.isdir():
                continue
            is_file = member.isreg() and not member.issparse()
            if is_file and member.offset_data + member.size > size:
                raise tarfile.ReadError(f"member {member.name!r} goes beyond its end")
            file.seek(member.offset_data - _BLOCK)
            check = zlib.crc32(file.read(_BLOCK))
            members.append((member.name, member.offset_data, member.size if is_file else -1, check))
        end = tar.offset  # type: ignore[attr-defined]
    file.seek(end)
    rest = file.read(_PADDING + 1)
    if len(rest) < _BLOCK or len(rest) > _PADDING or rest.strip(b"\0"):
        raise tarfile.ReadError(f"after byte {end} there is neither a member nor the end of the archive")
    return members


def _make_index(path: str, members: Sequence[tuple[str, int, int, int]]) -> TarIndex:
    text, ends, keys = bytearray(), array("q"), array("Q")
    for name, *_ in members:
        text += name.encode("utf-8", "surrogatepass")
        ends.append(len(text))
        keys.extend(name_key(name))
    numbers = np.array([member[1:] for member in members], dtype=np.int64).reshape(-1, 3)
    index = TarIndex(
        names=np.frombuffer(bytes(text), dtype=np.uint8),
        ends=np.frombuffer(ends, dtype=np.int64),
        keys=np.frombuffer(keys, dtype=np.uint64).reshape(-1, 2),
        starts=numbers[:, 0].copy(),
        sizes=numbers[:, 1].copy(),
        checks=numbers[:, 2].astype(np.uint32),
    )
    if (twice := repeated(index.keys)) is not None:
        raise TarError(f"{path} has the member {members[twice[1]][0]!r} twice; leave one of them out")
    return index


def repeated(keys: np.ndarray) -> tuple[int, int] | None:
    """Numbers of two of (M, 2) keys that are the same, the lower one first; None where all differ."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    same = (keys[order[1:]] == keys[order[:-1]]).all(axis=1)
    if not same.any():
        return None
    place = int(same.argmax())
    first, second = sorted(order[[place, place + 1]].tolist())
    return first, second
