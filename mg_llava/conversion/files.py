"""Files and folders that are there whole or not at all: written beside their place, then moved into it."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mg_llava.work.atomic import NoRoomError, naming_full_disks, settle

MANIFEST = "manifest.json"
MANIFEST_FORMAT = "mg_llava.conversion/1"
BLOCK = 1 << 20


class ConversionError(ValueError):
    """A conversion that cannot be done; what was there before is unchanged."""


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A file opened for writing that takes its place when everything is on the disk.

    Raises:
        ConversionError: If the disk is full; whatever was at ``path`` is as it was.
    """
    part = path.with_name(f".{path.name}.part")  # what a killed run left of it is written over
    try:
        with naming_full_disks(path):
            with part.open("wb") as file:
                yield file
            settle(part, path)
    except NoRoomError as error:
        raise ConversionError(error.strerror) from error
    finally:
        part.unlink(missing_ok=True)


def check_room(folder: Path, needed: int) -> None:
    """Refuse before hours of work what cannot fit.

    Raises:
        ConversionError: If ``folder``'s disk has fewer than ``needed`` bytes left.
    """
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ConversionError(
            f"{folder} needs {needed / 1e9:.2f} GB, but its disk has {free / 1e9:.2f} GB free; make room, or give "
            "another place or a smaller --dtype"
        )


def hash_file(path: Path) -> str:
    """SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


class StagedFolder:
    """A folder that is filled beside its place; a killed run's finished files are kept for the next one.

    Args:
        target: Where the folder goes.
        fingerprint: Says from what and how it is made; files of another fingerprint are not kept.
        overwrite: Replace a folder with a manifest of this project's at ``target``.

    Raises:
        ConversionError: If something is at ``target`` that may not be replaced.
    """

    def __init__(self, target: Path, fingerprint: str, overwrite: bool = False) -> None:
        _check_replaceable(target, overwrite)
        self.target = target
        self.path = target.with_name(f".{target.name}.partial")
        self._progress = self.path / ".progress.json"
        self.files: dict[str, dict[str, Any]] = {}
        """Size and hash of each finished file by its name in the folder."""
        found = _read_json(self._progress)
        if found.get("fingerprint") == fingerprint:
            self._finished: dict[str, dict[str, Any]] = found["files"]
        else:
            shutil.rmtree(self.path, ignore_errors=True)
            self._finished = {}
        self.path.mkdir(parents=True, exist_ok=True)
        for leftover in self.path.glob(".writing-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        self._fingerprint = fingerprint

    def write(self, name: str, write: Callable[[Path], Any]) -> bool:
        """Let ``write`` make one file, unless an earlier run has finished it; tells whether it wrote."""
        path = self.path / name
        record = self._finished.get(name)
        kept = record is not None and path.is_file() and path.stat().st_size == record["bytes"]
        if not kept:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path)
            record = {"bytes": path.stat().st_size, "sha256": hash_file(path)}
        assert record is not None
        self.files[name] = record
        progress = {"fingerprint": self._fingerprint, "files": self._finished | self.files}
        write_json(self._progress, progress)
        return not kept

    def abandon(self) -> None:
        """Leave nothing behind, but for the finished files of an earlier run."""
        if not self.files and not self._finished:
            shutil.rmtree(self.path, ignore_errors=True)

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Record every file with its hash in the manifest and put the folder in its place."""
        for file in sorted(self.path.rglob("*")):
            name = file.relative_to(self.path).as_posix()
            if file.is_file() and file != self._progress and name not in (*self.files, MANIFEST):
                self.files[name] = {"bytes": file.stat().st_size, "sha256": hash_file(file)}
        files = dict(sorted(self.files.items()))
        write_json(self.path / MANIFEST, {"format": MANIFEST_FORMAT, **manifest, "files": files})
        self._progress.unlink(missing_ok=True)
        settle(self.path, self.target)


def _check_replaceable(target: Path, overwrite: bool) -> None:
    if target.is_file():
        raise ConversionError(f"{target} is a file; give a folder that is not there yet")
    if not target.exists() or not any(target.iterdir()):
        return
    if not overwrite:
        raise ConversionError(f"{target} exists and is not empty; give another folder, or --overwrite")
    if _read_json(target / MANIFEST).get("format") != MANIFEST_FORMAT:
        raise ConversionError(
            f"{target} was not written by this tool (it has no {MANIFEST} of it); remove it yourself"
        )


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file in one piece."""
    with atomic_file(path) as file:
        file.write((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder that this project wrote; empty where there is none."""
    manifest = _read_json(folder / MANIFEST)
    return manifest if manifest.get("format") == MANIFEST_FORMAT else {}


def check_files(folder: Path, hashes: bool = False) -> None:
    """Compare a folder with its manifest: sizes, and hashes where asked for.

    Raises:
        ConversionError: Naming the first file that is absent or differs.
    """
    for name, record in read_manifest(folder).get("files", {}).items():
        file = folder / name
        if not file.is_file():
            raise ConversionError(f"{folder} lacks {name}, which its {MANIFEST} lists; copy the folder again")
        if file.stat().st_size != record["bytes"] or (hashes and hash_file(file) != record["sha256"]):
            raise ConversionError(
                f"{file} differs from what {MANIFEST} says ({file.stat().st_size} bytes here, {record['bytes']} "
                "when it was written); it is damaged or was edited, copy the folder again"
            )
