"""Where pictures come from: a folder, tar files (shards), or a folder at a URL.

All three are named by the ``image_folder`` of a source. What lies in the last two has a :class:`StoredPath`, which
only :func:`stored_path` makes of such a folder: a name that a record gives never leads to the net by itself.
"""

import hashlib
import os
import posixpath
from pathlib import Path
from typing import Any

from mg_llava.work.tar_files import Member, is_tar, open_tars
from mg_llava.work.tar_index import TarError
from mg_llava.work.urls import file_system, is_url, read_url, url_about, without_scheme

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


class StoredPath(str):
    """The place of a file in tar files or at a URL; ``folder`` are these, ``name`` is the path in them."""

    folder: str
    name: str

    def __new__(cls, folder: str, name: str) -> "StoredPath":
        """The text of a path names both."""
        path = super().__new__(cls, f"{folder}: {name}")
        path.folder, path.name = folder, name
        return path

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]
        return self.folder, self.name

    def read(self) -> bytes:
        """The content of the file.

        Raises:
            FileNotFoundError: There is no such file.
            TarError: It cannot be read; see ``work.tar_files``.
            TransferError: It cannot be read now.
        """
        if not is_tar(self.folder):
            return read_url(self.folder, self.name)
        return open_tars(self.folder).read(self._member())

    def state(self) -> tuple[int, int]:
        """Size in bytes, and a number that differs where the file was changed; errors as for :meth:`read`."""
        if is_tar(self.folder):
            member = self._member()
            return member.size, member.check
        about = url_about(self.folder, self.name)
        digest = hashlib.blake2b(repr(sorted(about.items(), key=str)).encode(), digest_size=7).digest()
        return int(about.get("size") or 0), int.from_bytes(digest, "little")

    def _member(self) -> Member:
        member = open_tars(self.folder).find(self.name)
        if member is None:
            raise FileNotFoundError(f"{self.folder} has no member {self.name}")
        return member


def is_stored(folder: Any) -> bool:
    """Tell whether an image folder is tar files or a URL."""
    return is_url(folder) or is_tar(folder)


def stored_path(folder: str, name: str) -> StoredPath | None:
    """The place of a file below tar files or a URL; None where the name leads out of them."""
    path = posixpath.normpath(name)
    is_outside = path in ("", ".", "..") or path.startswith(("/", "../")) or "\0" in path
    return None if is_outside or (is_url(folder) and not is_tar(folder) and "::" in path) else StoredPath(folder, path)


def place_of(folder: str | Path, name: str) -> str:
    """The place of a file below an image folder, wherever it leads; ``files.picture_path`` refuses what is outside."""
    folder = without_scheme(os.fspath(folder))
    if not is_stored(folder):
        return os.path.join(folder, name)
    return stored_path(str(folder), name) or f"{folder}: {name}"


def state_of(path: str | os.PathLike) -> tuple[int, int]:
    """Size of a file in bytes, and what else changes with it: the time of its last change in nanoseconds.

    Raises:
        OSError: There is no such file, or it cannot be reached.
    """
    if isinstance(path, StoredPath):
        try:
            return path.state()
        except TarError as error:
            raise FileNotFoundError(str(error)) from error
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def is_there(path: str | os.PathLike) -> bool:
    """Tell whether there is a file."""
    if not isinstance(path, StoredPath):
        return os.path.isfile(path)
    try:
        state_of(path)
    except FileNotFoundError:
        return False
    return True


def with_suffix(path: str, suffix: str) -> str:
    """The path beside a file whose name ends differently."""
    if isinstance(path, StoredPath):
        return StoredPath(path.folder, os.path.splitext(path.name)[0] + suffix)
    return os.path.splitext(path)[0] + suffix


def check_folder(folder: str) -> None:
    """See that an image folder is there; tar files are opened.

    Raises:
        FileNotFoundError: It, or one of the tar files, is not there.
        TarError: A tar file is compressed or damaged, or two have members of one name.
        TransferError: Tar files at a URL cannot be read now.
    """
    folder = without_scheme(folder)
    if is_tar(folder):
        open_tars(folder)
    elif is_url(folder):
        file_system(os.getpid(), folder)
    elif folder.endswith(_COMPRESSED) and os.path.isfile(folder):
        raise TarError(
            f"image_folder {folder} is compressed, so that its members have no places; make it a plain .tar"
        )
    elif not os.path.isdir(folder):
        raise FileNotFoundError(f"image_folder {folder} does not exist; check the path in the config")


def join_path(root: str | Path | None, path: str | Path) -> str:
    """A path that may be relative to a root; either may be a URL."""
    own = without_scheme(os.fspath(path))
    if root is None or is_url(own) or own.startswith("/"):
        return own
    start = without_scheme(os.fspath(root))
    return f"{start.rstrip('/')}/{own}" if is_url(start) else os.path.join(start, own)
