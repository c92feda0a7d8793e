"""Content hashes of the pictures of a record file, in parallel; goes on where it was stopped."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mmengine.logging import print_log

from mg_llava.data.boxes.store import picture_keys
from mg_llava.data.pictures import files as pictures
from mg_llava.data.pictures.places import check_folder, place_of
from mg_llava.data.records.formats import RecordFormat, to_llava
from mg_llava.data.records.open import open_records
from mg_llava.data.records.schema import RecordError
from mg_llava.work.pool import available_cores
from mg_llava.work.resumed import run_resumed
from mg_llava.work.urls import local_file

HashProgress = Callable[[int, int], object]

_DIGITS = 32
_UNREADABLE = "0" * _DIGITS
_BATCH = 64


class PictureHash(NamedTuple):
    """Box id and path of a picture, and its content hash, or None where it cannot be read."""

    key: str
    path: str
    content: str | None


def hash_pictures(
    records: str | Path,
    folder: str | Path,
    journal: str | Path,
    workers: int | None = None,
    progress: HashProgress | None = None,
    form: RecordFormat = "llava",
) -> Iterator[PictureHash]:
    """Hash every picture that a record file names, each file once; what is wrong with unreadable ones goes to the log.

    Args:
        records: Record file whose records have ``id`` and ``image``, a path or a list of paths.
        folder: Folder that the paths are relative to.
        journal: File that keeps the hashes made so far; if it exists and belongs to the same record file and folder,
            the work goes on from there. Pictures that were changed in between are not noticed; remove it then.
        workers: Number of processes; None for one per core.
        progress: Called with the number of pictures done and of all.
        form: What the records are.

    Raises:
        FileNotFoundError: The record file or the folder does not exist.
        RecordError: The record file is broken, or a record has no id or no paths.
    """
    check_folder(str(folder))
    numbers: dict[str, int] = {}
    for _, path in _pairs(records, form):
        numbers.setdefault(path, len(numbers))
    digests = _all_digests(list(numbers), records, folder, Path(journal), workers, progress)
    for key, path in _pairs(records, form):
        digest = digests[numbers[path] * _DIGITS :][:_DIGITS]
        yield PictureHash(key, path, None if digest == _UNREADABLE else digest)


def _pairs(source: str | Path, form: RecordFormat) -> Iterator[tuple[str, str]]:
    """Box id and path of every picture."""
    for number, given in enumerate(open_records(source)):
        raw = to_llava(given, form, str(source), number)
        record_id = raw.get("id") if isinstance(raw, Mapping) else None
        if not isinstance(record_id, str | int) or isinstance(record_id, bool):
            raise RecordError(f"{source}, record {number}: id is {record_id!r}; a string or an integer is needed")
        images = raw.get("image") or []
        paths = [images] if isinstance(images, str) else images
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise RecordError(f"{source}, record {number}: image is {images!r}; a path or a list of paths is needed")
        yield from zip(picture_keys(str(record_id), len(paths)), paths, strict=True)


def _all_digests(
    paths: Sequence[str],
    source: str | Path,
    folder: str | Path,
    journal: Path,
    workers: int | None,
    progress: HashProgress | None,
) -> str:
    """Hashes of pictures, 32 hexadecimal digits each; those in a journal of the same work are taken from it."""
    status = local_file(source).stat()
    about = {
        "records": str(source),
        "bytes": status.st_size,
        "changed": status.st_mtime_ns,
        "folder": str(folder),
        "pictures": len(paths),
        "batch": _BATCH,
    }
    work = workers or available_cores()
    return "".join(run_resumed(_digests, str(folder), paths, _BATCH, work, journal, about, progress))


def _digests(folder: str, paths: Sequence[str]) -> str:
    """32 hexadecimal digits for each picture; zeros if it cannot be read."""
    return "".join(_digest(folder, path) for path in paths)


def _digest(folder: str, path: str) -> str:
    try:
        return pictures.content_hash(pictures.open_picture(place_of(folder, path)))
    except pictures.PictureError as error:
        print_log(str(error), logger="current", level=logging.WARNING)
        return _UNREADABLE
