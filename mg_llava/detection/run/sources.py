"""Inputs of a box run: records, tables, folders and lists, as keys of boxes and the pictures they belong to."""

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from PIL import Image

from mg_llava.data.boxes.store import frame_keys, picture_keys
from mg_llava.data.pictures.files import open_picture, picture_path, to_rgb
from mg_llava.data.pictures.geometry import BoxMode
from mg_llava.data.pictures.video import is_video, read_frames
from mg_llava.data.records.formats import RecordFormat, to_llava
from mg_llava.data.records.open import open_records
from mg_llava.data.records.schema import RecordError
from mg_llava.data.records.tables import TablePictures, read_table
from mg_llava.work.folders import walk_files
from mg_llava.work.urls import local_file

_RECORDS = (".json", ".jsonl", ".parquet")
_TABLES = (".tsv", ".csv")
_IDS = ("id", "question_id", "index")
_ADVICE = "use --outside-pictures allow"


class PictureSource(NamedTuple):
    """A picture file, a video file, or the pictures in a row of a table.

    Attributes:
        kind: Which of them.
        path: Path as the input names it; of a row, that of the table.
        id: The first record that names it.
        parts: Number of pictures in it.
        row: Number of the row, from 0.
        content: The same for all rows with the same picture.
    """

    kind: Literal["picture", "video", "row"]
    path: str
    id: str = ""
    parts: int = 1
    row: int = 0
    content: str = ""

    @property
    def identity(self) -> tuple[str, ...]:
        """The same for all sources with the same pictures."""
        return (self.kind, self.path, self.content)


class BoxEntry(NamedTuple):
    """Keys of boxes (one for each picture, or for each frame) and where their pictures are."""

    keys: list[str]
    source: PictureSource


class SourceReader:
    """Opens sources; paths are relative to a folder, and pictures outside of it are refused; see ``JobSettings``."""

    def __init__(
        self, folder: str | Path, frames: int, apply_exif: bool, allow_outside: bool, mode: BoxMode = "reference"
    ) -> None:
        self.folder, self.frames = str(folder), frames
        self._to_rgb = partial(to_rgb, mode=mode, apply_exif=apply_exif)
        self._path_of = partial(picture_path, self.folder, allow_outside=allow_outside, advice=_ADVICE)
        self._tables: dict[str, tuple[Any, TablePictures]] = {}
        self._reading = threading.Lock()

    def open(self, source: PictureSource) -> list[Image.Image]:
        """The RGB pictures of a source.

        Raises:
            PictureError: A picture cannot be read, or lies outside of the folder.
            ImportError: PyAV is needed and not installed.
        """
        owner = f"id {source.id!r}"
        if source.kind == "row":
            images = self._row_pictures(source, owner)
        else:
            path = self._path_of(source.path, owner)
            if source.kind == "video":
                return read_frames(path, self.frames, owner)
            images = [open_picture(path, owner)]
        return [self._to_rgb(image) for image in images]

    def _row_pictures(self, source: PictureSource, owner: str) -> list[Image.Image]:
        with self._reading:
            if source.path not in self._tables:
                rows = read_table(source.path)
                self._tables[source.path] = rows, TablePictures(rows, self.folder, source.path, self._path_of)
        rows, pictures = self._tables[source.path]
        row = rows[source.row]
        opener = pictures.opener(row)
        assert opener is not None  # rows without pictures are no sources
        found = opener()
        return found if isinstance(found, list) else [found]


def list_entries(
    inputs: Sequence[str | Path], folder: str | Path, frames: int = 8, form: RecordFormat = "llava"
) -> Iterator[BoxEntry]:
    """The pictures that inputs name, in their order.

    Args:
        inputs: Record files (``.json``, ``.jsonl``, ``.parquet``) with ``id`` (or ``question_id``, ``index``) and
            ``image``, a path or a list, or ``video``, of which text-only records are passed over; tables of benchmarks
            (``.tsv``, ``.csv``); folders of pictures and videos; text files with a path a line. Keys are the records'
            ids, in folders and lists the paths.
        folder: What paths are relative to.
        frames: Frames of a video.
        form: What the records of record files are; keys of those without ids are their places.

    Raises:
        FileNotFoundError: An input does not exist.
        RecordError: A record has no id, or is malformed.
        ValueError: An input is of an unknown kind.
    """
    for path in map(local_file, inputs):
        if path.is_dir():
            yield from (_file_entry(name, name, frames) for name in _walk(path))
        elif not path.exists():
            raise FileNotFoundError(f"input {path} does not exist")
        elif path.suffix in _RECORDS:
            yield from _record_entries(path, frames, form)
        elif path.suffix in _TABLES:
            yield from _table_entries(path, folder)
        elif path.suffix == ".txt":
            lines = (line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines())
            yield from (_file_entry(line, line, frames) for line in lines if line and not line.startswith("#"))
        else:
            known = ", ".join([*_RECORDS, *_TABLES, ".txt"])
            raise ValueError(f"input {path} is of an unknown kind; known: {known} and folders")


def default_folder(inputs: Sequence[str | Path]) -> Path:
    """Where pictures are if nothing is said: in the folder that is given, else beside the file."""
    first = Path(inputs[0])
    return first if first.is_dir() else first.parent


def _file_entry(key: str, name: str, frames: int, is_film: bool = False) -> BoxEntry:
    if is_film or is_video(name):
        return BoxEntry(frame_keys(key, frames), PictureSource("video", name, key, frames))
    return BoxEntry([key], PictureSource("picture", name, key))


def _walk(folder: Path) -> Iterator[str]:
    """Relative paths of pictures and videos below a folder, in order."""
    known = Image.registered_extensions()
    yield from (one for one in walk_files(folder) if os.path.splitext(one)[1].lower() in known or is_video(one))


def _record_entries(path: Path, frames: int, form: RecordFormat) -> Iterator[BoxEntry]:
    for number, given in enumerate(open_records(path)):
        raw, where = to_llava(given, form, str(path), number), f"{path}, record {number}"
        if not isinstance(raw, Mapping):
            raise RecordError(f"{where}: found a {type(raw).__name__}; a record is an object")
        images, video = raw.get("image") or [], raw.get("video")
        images = [images] if isinstance(images, str) else images
        if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
            raise RecordError(f"{where}: image is {raw['image']!r}; a path or a list of paths is needed")
        if not images and not video:
            continue
        key = next((raw[name] for name in _IDS if raw.get(name) is not None), None)
        if not isinstance(key, str | int) or isinstance(key, bool):
            names = ", ".join(_IDS)
            raise RecordError(f"{where}: id is {key!r}; a string or an integer under one of {names} is needed")
        if video:
            yield _file_entry(str(key), str(video), frames, is_film=True)
            continue
        for name, image in zip(picture_keys(str(key), len(images)), images, strict=True):
            yield BoxEntry([name], PictureSource("picture", image, name))


def _table_entries(path: Path, folder: str | Path) -> Iterator[BoxEntry]:
    rows = read_table(path)
    pictures = TablePictures(rows, folder, str(path))
    for number, row in enumerate(rows):
        if pictures.opener(row) is None:
            continue
        key = next((row[name] for name in reversed(_IDS) if row.get(name)), None)
        if key is None:
            raise RecordError(f"{path}, row {number + 1}: there is no index; name a column index, question_id or id")
        count = pictures.count(row)
        yield BoxEntry(
            picture_keys(key, count), PictureSource("row", str(path), key, count, number, pictures.key(row))
        )
