"""A folder that one process at a time may use. Standard library alone."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mg_llava.work.atomic import naming_full_disks
from mg_llava.work.interrupts import expect_cleanup
from mg_llava.work.json_text import parse_json


class FolderInUseError(RuntimeError):
    """Another process uses the folder; the message says which, and what to do."""


@contextmanager
def folder_lock(folder: str | Path, use: str, name: str = ".lock") -> Iterator[int]:
    """Hold a folder while the block runs.

    The operating system releases the lock of a process that ends in any way, so that a file left by a killed one does
    not count. Where a file system has no locks, the process that the file names is looked for instead.

    Args:
        folder: The folder; it is made where it is missing.
        use: For messages, such as ``"training"``.
        name: File in the folder, which is removed at the end.

    Yields:
        The lock's descriptor; a process that inherits it holds the folder too.

    Raises:
        FolderInUseError: Another process holds it.
        NoRoomError: The disk is full.
    """
    path = Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    expect_cleanup()
    file = _open_locked(path, use)
    try:
        about = {"pid": os.getpid(), "host": socket.gethostname(), "started": process_start(os.getpid())}
        with naming_full_disks(path):
            os.truncate(file, 0)
            os.pwrite(file, json.dumps(about | {"since": time.strftime("%Y-%m-%d %H:%M:%S")}).encode(), 0)
        yield file
    finally:
        path.unlink(missing_ok=True)
        os.close(file)


def _open_locked(path: Path, use: str) -> int:
    """A locked descriptor of the file that is at ``path``."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder, is_locked = _holder(file), error.errno in (errno.EWOULDBLOCK, errno.EAGAIN)
            if is_locked or (holder and not is_gone(holder)):
                os.close(file)
                pid, host, since = (holder.get(name, "?") for name in ("pid", "host", "since"))
                who = f"another {use} (process {pid} on {host}, since {since})"
                advice = "wait for it or end it, or use another folder"
                advice += "" if is_locked else f". If that process has ended, remove {path}"
                raise FolderInUseError(f"{path.parent} is in use by {who}; {advice}") from error
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(file).st_ino == path.stat().st_ino:  # not one that its holder has just removed
                return file
        os.close(file)


def _holder(file: int) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        found = parse_json(os.pread(file, 4096, 0))
        if isinstance(found, dict):
            return found
    return {}


def is_gone(holder: dict[str, Any]) -> bool:
    """Tell whether a process has ended for certain: one of this machine that is not there, or another by that id."""
    if holder.get("host") != socket.gethostname():
        return False
    pid, started = holder.get("pid"), holder.get("started")
    return not isinstance(pid, int) or started is None or process_start(pid) != started


def process_start(pid: int) -> int | None:
    """When a process of this machine started, in the kernel's ticks; None where it is not there."""
    fields = process_fields(pid)
    return int(fields[19]) if fields else None


def process_fields(pid: int) -> list[str]:
    """What the kernel says of a process of this machine, from its state on; empty where it is not there."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
