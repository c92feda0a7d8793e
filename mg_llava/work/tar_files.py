"""The members of many tar files as one folder, read by their places: shards, as WebDataset writes them."""

import glob
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from mg_llava.work.tar_index import TarError, TarIndex, name_key, open_index, read_member, repeated
from mg_llava.work.urls import glob_urls, is_url, without_scheme

TAR = ".tar"
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST = 1_000_000


class Member(NamedTuple):
    """A member: number of its tar file, its first byte, its bytes, and the checksum of its header."""

    tar: int
    start: int
    size: int
    check: int


def is_tar(path: object) -> bool:
    """Tell whether a path names tar files: ``a.tar``, ``shards/*.tar``, ``https://host/{0000..0099}.tar``."""
    return isinstance(path, str) and path.endswith(TAR) and not os.path.isdir(path)


def list_tars(pattern: str) -> list[str]:
    """The tar files that a pattern names: ranges in braces as they are, ``*`` by what is there, sorted.

    Raises:
        FileNotFoundError: None is there.
        ValueError: A range has too many numbers.
    """
    paths = []
    for path in _expand(without_scheme(pattern)):
        if "*" not in path:
            paths.append(path)
            continue
        paths += glob_urls(path) if is_url(path) else sorted(glob.glob(path))
    if not paths:
        raise FileNotFoundError(f"no tar file fits {pattern}; check the pattern")
    return paths


def _expand(pattern: str) -> Iterator[str]:
    """All that a pattern with ranges such as ``{0000..0099}`` stands for; numbers are as wide as the first."""
    found = _RANGE.search(pattern)
    if found is None:
        yield pattern
        return
    first, last = found.groups()
    if not int(first) <= int(last) < int(first) + _MOST:
        raise ValueError(f"{pattern}: {found.group()} is no range of up to {_MOST} rising numbers")
    for number in range(int(first), int(last) + 1):
        yield from _expand(f"{pattern[: found.start()]}{number:0{len(first)}}{pattern[found.end() :]}")


class TarFiles:
    """All members of some tar files; flat arrays alone, which forked workers share.

    Args:
        pattern: See :func:`list_tars`.

    Attributes:
        paths: The tar files.

    Raises:
        FileNotFoundError: A tar file is not there.
        TarError: One is damaged, or two have members of one name.
        TransferError: One cannot be read now.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.paths = list_tars(pattern)
        indices = [open_index(path) for path in self.paths]
        keys = np.concatenate([index.keys for index in indices])
        counts = [len(index.keys) for index in indices]
        if (twice := repeated(keys)) is not None:
            places = np.searchsorted(np.cumsum(counts), twice, side="right").tolist()
            number = twice[0] - sum(counts[: places[0]])
            name = next(name for place, name in enumerate(indices[places[0]].list_names()) if place == number)
            first, second = (self.paths[place] for place in places)
            raise TarError(f"{first} and {second} both have the member {name!r}; leave one of them out")
        order = np.argsort(keys[:, 0], kind="stable")
        tars = np.repeat(np.arange(len(indices), dtype=np.int32), counts)
        self._keys, self._tars = keys[order], tars[order]
        self._starts = np.concatenate([index.starts for index in indices])[order]
        self._sizes = np.concatenate([index.sizes for index in indices])[order]
        self._checks = np.concatenate([index.checks for index in indices])[order]

    def __len__(self) -> int:
        """Number of members, without folders."""
        return len(self._keys)

    def find(self, name: str) -> Member | None:
        """The member of a name; None where there is none."""
        first, second = name_key(name)
        place = int(np.searchsorted(self._keys[:, 0], np.uint64(first)))
        while place < len(self) and int(self._keys[place, 0]) == first:
            if int(self._keys[place, 1]) == second:
                columns = self._tars, self._starts, self._sizes, self._checks
                return Member(*(int(column[place]) for column in columns))
            place += 1
        return None

    def read(self, member: Member) -> bytes:
        """The content of a member.

        Raises:
            TarError: It is no file or too large, or its tar file was changed or removed.
            TransferError: It cannot be read now.
        """
        try:
            return read_member(self.paths[member.tar], *member[1:])
        except FileNotFoundError as error:
            raise TarError(f"{self.paths[member.tar]} was removed while it was in use; start again") from error

    def list_members(self) -> Iterator[tuple[str, Member]]:
        """Name and place of every member, in the order of the tar files; their indices are read again."""
        for number, path in enumerate(self.paths):
            index: TarIndex = open_index(path)
            places = zip(index.starts.tolist(), index.sizes.tolist(), index.checks.tolist(), strict=True)
            for name, place in zip(index.list_names(), places, strict=True):
                yield name, Member(number, *place)


@lru_cache(maxsize=1024)
def open_tars(pattern: str) -> TarFiles:
    """Tar files, opened once in a process and those that are forked from it; errors as of :class:`TarFiles`."""
    return TarFiles(pattern)
