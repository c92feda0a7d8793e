"""Files and folders that are there whole or not at all: written beside their place, flushed, then moved into it.

A name that is replaced keeps its old content until the new one is on the disk, whatever ends the writer. Standard
library alone.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mg_llava.work.interrupts import expect_cleanup

_NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


class NoRoomError(OSError):
    """The disk, a quota or a limit on the size of files is full; what was there before is unchanged."""


def part_of(path: str | Path) -> Path:
    """Where this process writes a file or folder before it is whole: a hidden name beside ``path``."""
    expect_cleanup()
    path = Path(path)
    return path.with_name(f".{path.name}.{os.getpid()}.part")


@contextmanager
def replacing(path: str | Path, mode: str = "wb", newline: str | None = None) -> Iterator[IO[Any]]:
    """A file opened for writing that takes the place of ``path`` when the block ends without an error.

    Args:
        path: The file; its folder is made where it is missing.
        mode: ``"wb"`` or ``"w"`` (UTF-8).
        newline: As for ``open``.

    Raises:
        NoRoomError: If it does not fit; naming ``path`` and the free space.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(path)
    try:
        with naming_full_disks(path):
            with part.open(mode, encoding=None if "b" in mode else "utf-8", newline=newline) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
            sync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Replace a file by ``content``; errors as for :func:`replacing`."""
    with replacing(path) as file:
        file.write(content)


def write_text(path: str | Path, text: str) -> None:
    """Replace a file by UTF-8 text, without translating line ends; errors as for :func:`replacing`."""
    write_bytes(path, text.encode())


def write_between_marks(path: Path, text: str, title: str) -> None:
    """Put a text between the marks of a Markdown file; they are added at the end where there are none.

    Args:
        path: The file, which need not exist.
        text: What is written in place of what was between the marks.
        title: Of a new file.
    """
    begin, end = "<!-- measured: begin -->", "<!-- measured: end -->"
    old = path.read_text() if path.is_file() else f"# Results of {title}\n"
    if begin not in old or end not in old:
        old = f"{old.rstrip()}\n\n{begin}\n{end}\n"
    before, rest = old.split(begin, 1)
    write_text(path, f"{before}{begin}\n{text}\n{end}{rest.split(end, 1)[1]}")


def write_json(path: str | Path, content: Any, indent: int | None = 1) -> None:
    """Replace a file by JSON that ends with a newline; errors as for :func:`replacing`."""
    write_text(path, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")


@contextmanager
def replacing_folder(path: str | Path) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of ``path`` when the block ends without an error.

    Raises:
        NoRoomError: If it does not fit; naming ``path`` and the free space.
    """
    path = Path(path)
    part = part_of(path)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        with naming_full_disks(path):
            yield part
            settle(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def settle(part: str | Path, path: str | Path) -> None:
    """Flush a finished file or folder and move it to its place; a file or folder at ``path`` is replaced."""
    part, path = Path(part), Path(path)
    sync(part)
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    if path.is_dir() or (part.is_dir() and path.exists()):  # cannot be replaced in one step
        os.replace(path, old)
    try:
        os.replace(part, path)
    except OSError:
        if old.exists():
            os.replace(old, path)
        raise
    sync_folder(path.parent)
    remove(old)


def sync(path: Path) -> None:
    """Put the content of a file, or of everything in a folder, on the disk."""
    for folder, _, names in os.walk(path):
        for name in names:
            sync(Path(folder, name))
        sync_folder(Path(folder))
    if not path.is_dir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file or a folder; one that is not there is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def naming_full_disks(path: Path) -> Iterator[None]:
    """Let an error about a full disk name the file, the free space and what to do.

    Raises:
        NoRoomError: In place of such an error.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM or isinstance(error, NoRoomError):
            raise
        free = shutil.disk_usage(path.parent).free
        what = "disk" if error.errno == errno.ENOSPC else "quota or limit on the size of files"
        raise NoRoomError(
            error.errno,
            f"the {what} is full while writing {path} ({error.strerror}; {free / 1e9:.2f} GB free); make room and "
            "try again. What was there before is unchanged",
        ) from error
