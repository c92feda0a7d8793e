"""Folders that are there whole or not at all: filled beside their place, with a manifest of all files, then moved."""

import hashlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mg_llava.work.atomic import remove, settle, write_json
from mg_llava.work.json_text import load_object

MANIFEST = "manifest.json"
MANIFEST_FORMAT = "mg_llava.conversion/1"


class ConversionError(ValueError):
    """A conversion that cannot be done; what was there before is unchanged."""


def check_room(folder: Path, needed: int) -> None:
    """Refuse before hours of work what cannot fit.

    Raises:
        ConversionError: ``folder``'s disk has fewer than ``needed`` bytes left.
    """
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ConversionError(
            f"{folder} needs {needed / 1e9:.2f} GB, but its disk has {free / 1e9:.2f} GB free; make room, or give "
            "another place or a smaller --dtype"
        )


class StagedFolder:
    """A folder that is filled beside its place; a killed run's finished files are kept for the next one.

    Args:
        target: Where the folder goes.
        fingerprint: Says from what and how it is made; files of another fingerprint are not kept.
        overwrite: Replace a folder with a manifest of this project's at ``target``.

    Raises:
        ConversionError: What is at ``target`` may not be replaced.
    """

    def __init__(self, target: Path, fingerprint: str, overwrite: bool = False) -> None:
        _check_replaceable(target, overwrite)
        self.target, self.path = target, target.with_name(f".{target.name}.partial")
        self.files: dict[str, dict[str, Any]] = {}
        """Size and hash of each finished file by its name in the folder."""
        self._finished: dict[str, dict[str, Any]] = {}
        self._fingerprint = fingerprint
        self._progress = self.path / ".progress.json"
        found = _read_json(self._progress)
        if found.get("fingerprint") == fingerprint:
            self._finished = found["files"]
        else:
            shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True, exist_ok=True)
        for unfinished in (*self.path.glob(".writing-*"), *self.path.rglob(".*.part")):
            remove(unfinished)

    def write(self, name: str, write: Callable[[Path], Any]) -> bool:
        """Let ``write`` make one file, unless an earlier run has finished it; tells whether it wrote."""
        path = self.path / name
        record = self._finished.get(name)
        is_kept = record is not None and path.is_file() and path.stat().st_size == record["bytes"]
        if not is_kept:
            write(path)
        self.files[name] = record if is_kept and record is not None else _describe(path)
        write_json(self._progress, {"fingerprint": self._fingerprint, "files": self._finished | self.files})
        return not is_kept

    def abandon(self) -> None:
        """Leave nothing behind, but for the finished files of an earlier run."""
        if not self.files and not self._finished:
            shutil.rmtree(self.path, ignore_errors=True)

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Record every file with its hash in the manifest and put the folder in its place."""
        for file in self.path.rglob("*"):
            name = file.relative_to(self.path).as_posix()
            if file.is_file() and file != self._progress and name not in (*self.files, MANIFEST):
                self.files[name] = _describe(file)
        content = {"format": MANIFEST_FORMAT, **manifest, "files": dict(sorted(self.files.items()))}
        write_json(self.path / MANIFEST, content, indent=2)
        self._progress.unlink(missing_ok=True)
        settle(self.path, self.target)


def _describe(file: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return {"bytes": file.stat().st_size, "sha256": digest.hexdigest()}


def _check_replaceable(target: Path, overwrite: bool) -> None:
    if target.is_file():
        raise ConversionError(f"{target} is a file; give a folder that is not there yet")
    if not target.exists() or not any(target.iterdir()):
        return
    if not overwrite:
        raise ConversionError(f"{target} exists and is not empty; give another folder, or --overwrite")
    if not read_manifest(target):
        raise ConversionError(
            f"{target} was not written by this tool (it has no {MANIFEST} of it); remove it yourself"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return load_object(path)
    except (OSError, ValueError):
        return {}


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
        size = file.stat().st_size
        if size != record["bytes"] or (hashes and _describe(file)["sha256"] != record["sha256"]):
            raise ConversionError(
                f"{file} differs from what {MANIFEST} says ({size} bytes here, {record['bytes']} when it was "
                "written); it is damaged or was edited, copy the folder again"
            )
