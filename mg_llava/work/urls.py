"""Files at URLs, as fsspec opens them: parts of them, and copies of whole ones on this machine.

Connections are made anew in every process, so that forked workers share none.
"""

import hashlib
import os
import re
import shutil
import time
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, urlsplit

from mg_llava.work.atomic import replacing

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(://|::[A-Za-z])")
_LOCAL = re.compile(r"(file|local)://")
_WAITS = (0.5, 2.0)
"""Seconds before reading is tried again."""


class TransferError(OSError):
    """What is at a URL cannot be read now; nothing is said of whether it is there."""


def is_url(path: Any) -> bool:
    """Tell whether a path is a URL (``s3://bucket/a.tar``, ``zip://::/data/a.zip``), other than that of a file."""
    return isinstance(path, str) and bool(_URL.match(path)) and not _LOCAL.match(path)


def without_scheme(path: Any) -> Any:
    """The path of a ``file://`` URL; anything else as it is."""
    return _LOCAL.sub("", path, count=1) if isinstance(path, str) else path


def read_url(url: str, name: str = "", start: int | None = None, end: int | None = None) -> bytes:
    """Bytes ``start`` to ``end`` of what is at a URL, or of the file ``name`` below it.

    Raises:
        FileNotFoundError: There is no such file.
        TransferError: It cannot be read, after three tries.
        ImportError: fsspec needs another package for such URLs.
        ValueError: It knows no such URLs.
    """
    return _tried(lambda: _cat(url, name, start, end), url, name)


def url_about(url: str, name: str = "") -> dict[str, Any]:
    """What a server says of a file, its ``size`` and more; arguments and errors as for :func:`read_url`."""

    def ask() -> dict[str, Any]:
        system, path = _place_of(url, name)
        return dict(system.info(path))

    return _tried(ask, url, name)


def glob_urls(pattern: str) -> list[str]:
    """URLs of the files that a pattern with ``*`` fits, sorted; errors as for :func:`read_url`."""
    system, root = file_system(os.getpid(), pattern)
    return sorted(system.unstrip_protocol(path) for path in _tried(lambda: system.glob(root), pattern))


def local_file(path: str | Path) -> Path:
    """A path as it is; of a URL a copy on this machine, which is kept until something else is at the URL.

    Change is noticed by what the server says of a file: its size, and its time or tag where it gives one.

    Raises:
        FileNotFoundError: There is nothing at the URL.
        TransferError: It cannot be read.
        NoRoomError: The copy does not fit on the disk.
    """
    if not is_url(path):
        return Path(without_scheme(path))
    url = str(path)
    about = url_about(url)
    key = hashlib.blake2b(repr((url, sorted(about.items(), key=str))).encode(), digest_size=16).hexdigest()
    copy = cache_folder("files") / f"{key}{PurePosixPath(urlsplit(url).path).suffix}"
    if not copy.is_file():
        _tried(lambda: _fetch(url, copy, about.get("size")), url)
    return copy


def cache_folder(name: str) -> Path:
    """Folder of this user for what can be made again, below ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "mg_llava", name)


@lru_cache(maxsize=4096)
def file_system(process: int, url: str) -> tuple[Any, str]:
    """Fsspec's file system of a URL and the path in it; ``process`` is this one's id."""
    from fsspec.core import url_to_fs

    return url_to_fs(url)


def _place_of(url: str, name: str) -> tuple[Any, str]:
    """The file system of a URL, and there the path of a file below it; the URL itself where there is no name."""
    system, path = file_system(os.getpid(), url)
    if name:
        name = quote(name) if url.startswith(("http://", "https://")) else name
        path = f"{path.rstrip('/')}/{name}" if path else name
    return system, path


def _cat(url: str, name: str, start: int | None, end: int | None) -> bytes:
    system, path = _place_of(url, name)
    return system.cat_file(path, start=start, end=end)


def _fetch(url: str, copy: Path, size: int | None) -> None:
    system, path = file_system(os.getpid(), url)
    with replacing(copy) as file:
        with system.open(path, "rb") as source:
            shutil.copyfileobj(source, file, 1 << 20)
        if size is not None and file.tell() != size:
            raise OSError(f"{file.tell()} of {size} bytes came")


def _tried(read: Any, url: str, name: str = "") -> Any:
    """What ``read`` gives, tried again where it fails for another reason than that nothing is there."""
    what = f"{url}, {name}" if name else url
    for wait in (*_WAITS, None):
        try:
            return read()
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{what} does not exist; check the URL") from error
        except (ImportError, ValueError, IsADirectoryError):
            raise
        except Exception as error:  # file systems raise errors of their own, which need not be an OSError
            if wait is None:
                found = f"{type(error).__name__}: {error}"
                raise TransferError(
                    f"{what} cannot be read ({found}); see that the server is there, start again"
                ) from error
            time.sleep(wait)
