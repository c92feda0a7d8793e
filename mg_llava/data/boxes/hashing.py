"""Content hashes of the pictures of a record file, in parallel; goes on where it was stopped."""

import hashlib
import itertools
import logging
import os
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mmengine.logging import print_log

from mg_llava.data.boxes.store import picture_keys
from mg_llava.data.pictures import files as pictures
from mg_llava.data.records.open import open_records
from mg_llava.data.records.schema import RecordError
from mg_llava.work.journal import Journal, read_journal
from mg_llava.work.pool import Pool, available_cores, split

Progress = Callable[[int, int], object]

_DIGEST = 16
_UNREADABLE = bytes(_DIGEST)
_BATCH = 2048
_TASK = 16


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
    progress: Progress | None = None,
) -> Iterator[PictureHash]:
    """Hash every picture that a record file names, each file once.

    Args:
        records: Record file whose records have ``id`` and ``image``, a path or a list of paths.
        folder: Folder that the paths are relative to.
        journal: File that keeps the hashes made so far; if it exists and belongs to the same record file and folder,
            the work goes on from there. Pictures that were changed in between are not noticed; remove it then.
        workers: Number of processes; None for one per core.
        progress: Called with the number of pictures done and of all.

    Yields:
        Each picture of each record; what is wrong with unreadable ones goes to the log.

    Raises:
        FileNotFoundError: The record file or the folder does not exist.
        RecordError: The record file is broken, or a record has no id or no paths.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"picture folder {folder} does not exist; check --images")
    content = open_records(records)
    # Of the paths only hashes are kept, so that millions of records fit.
    hashes = np.array(array("Q", (_hash_path(path) for _, path in _pairs(content, records))), dtype=np.uint64)
    _, firsts, places = np.unique(hashes, return_index=True, return_inverse=True)
    # Numbers of the different pictures in order of appearance.
    rank = np.empty(len(firsts), dtype=np.int64)
    rank[np.argsort(firsts)] = np.arange(len(firsts))
    digests = _all_digests(content, records, folder, journal, np.sort(firsts), workers, progress)
    for number, (key, path) in enumerate(_pairs(content, records)):
        start = int(rank[places[number]]) * _DIGEST
        digest = digests[start : start + _DIGEST]
        yield PictureHash(key, path, None if digest == _UNREADABLE else digest.hex())


def _pairs(content: Sequence[Any], source: str | Path) -> Iterator[tuple[str, str]]:
    """Box id and path of every picture."""
    for number in range(len(content)):
        raw = content[number]
        record_id = raw.get("id") if isinstance(raw, Mapping) else None
        if not isinstance(record_id, str | int) or isinstance(record_id, bool):
            raise RecordError(f"{source}, record {number}: id is {record_id!r}; a string or an integer is needed")
        images = raw.get("image") or []
        paths = [images] if isinstance(images, str) else images
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise RecordError(f"{source}, record {number}: image is {images!r}; a path or a list of paths is needed")
        yield from zip(picture_keys(str(record_id), len(paths)), paths, strict=True)


def _hash_path(path: str) -> int:
    return int.from_bytes(hashlib.blake2b(os.fsencode(path), digest_size=8).digest(), "little")


def _all_digests(
    content: Sequence[Any],
    source: str | Path,
    folder: str | Path,
    journal: str | Path,
    firsts: np.ndarray,
    workers: int | None,
    progress: Progress | None,
) -> bytes:
    """Hashes of the different pictures, 16 bytes each; ``firsts`` says where each comes first."""
    about = _describe(source, folder, len(firsts))
    known = _known_digests(Path(journal), about)
    wanted = _wanted_paths(content, source, firsts)
    with Journal(journal) as file, Pool(str(folder), workers or available_cores()) as pool:
        if not known:
            file.append([about])
        for start in range(0, len(firsts), _BATCH):
            batch = list(itertools.islice(wanted, _BATCH))
            if start not in known:
                tasks = [batch[first:last] for first, last in split(len(batch), _TASK)]
                known[start] = "".join(pool.run(_digests, tasks))
                file.append([[start, known[start]]])
            if progress is not None:
                progress(start + len(batch), len(firsts))
    return bytes.fromhex("".join(known[start] for start in range(0, len(firsts), _BATCH)))


def _wanted_paths(content: Sequence[Any], source: str | Path, firsts: np.ndarray) -> Iterator[str]:
    """Paths of the different pictures."""
    chosen = iter(firsts.tolist())
    following = next(chosen, None)
    for number, (_, path) in enumerate(_pairs(content, source)):
        if number == following:
            yield path
            following = next(chosen, None)
        if following is None:
            return


def _digests(folder: str, paths: Sequence[str]) -> str:
    """32 hexadecimal digits for each picture; zeros if it cannot be read."""
    return "".join(_digest(folder, path) for path in paths)


def _digest(folder: str, path: str) -> str:
    try:
        return pictures.content_hash(pictures.open_picture(os.path.join(folder, path)))
    except pictures.PictureError as error:
        print_log(str(error), logger="current", level=logging.WARNING)
        return _UNREADABLE.hex()


def _describe(source: str | Path, folder: str | Path, count: int) -> dict[str, Any]:
    """The first record of a journal: which work it belongs to."""
    status = Path(source).stat()
    return {
        "records": str(source),
        "bytes": status.st_size,
        "changed": status.st_mtime_ns,
        "folder": str(folder),
        "pictures": count,
        "batch": _BATCH,
    }


def _known_digests(journal: Path, about: Mapping[str, Any]) -> dict[int, str]:
    """Hashes in the journal by the number of their first picture; a journal of other work is removed."""
    records = [record.value for record in read_journal(journal)]
    if records[:1] == [about]:
        return {start: digests for start, digests in records[1:] if isinstance(digests, str)}
    journal.unlink(missing_ok=True)
    return {}
