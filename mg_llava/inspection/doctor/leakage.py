"""Pictures of the evaluation data by the hash of their pixels, to be found again among those of the training."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mg_llava.data.pictures.files import PictureError, content_hash, open_picture
from mg_llava.data.records.json_stream import stream_json
from mg_llava.data.records.tables import (
    LONGEST_REFERENCE,
    PATH_COLUMN,
    TablePictures,
    is_missing,
    read_table,
    texts_of,
)
from mg_llava.data.records.turns import PICTURE_SUFFIXES
from mg_llava.inspection.doctor.findings import Found
from mg_llava.work.folders import walk_files

_KEYS = ("image", "images", "image_path", "img_path", "picture", "file_name", "image_file")


class EvalPicture(NamedTuple):
    """A picture of the evaluation data: a path, or a function that opens what a table holds."""

    name: str
    path: str = ""
    opener: Callable[[], Any] | None = None


class EvalHashes(NamedTuple):
    """Names of evaluation pictures by content hash, and what could not be read."""

    names: dict[str, str]
    found: list[Found]


def list_eval_pictures(path: str | Path, folders: Sequence[str] = ()) -> list[EvalPicture]:
    """All pictures of one piece of evaluation data.

    Args:
        path: A folder, searched through; a ``.tsv`` with pictures in base64 in the column ``image`` or paths in
            ``image_path``; or a ``.json`` or ``.jsonl`` of records with a path under ``image``, ``image_path``...
        folders: Where paths may be relative to, beside the folder of the file and ``images`` in it.

    Raises:
        FileNotFoundError: There is nothing at ``path``.
        ValueError: The file is broken or of another kind.
    """
    path = Path(path)
    if path.is_dir():
        files = [os.path.join(path, name) for name in walk_files(path)]
        return [EvalPicture(file, path=file) for file in files if file.lower().endswith(PICTURE_SUFFIXES)]
    if not path.is_file():
        raise FileNotFoundError(f"evaluation data {path} does not exist; check its path")
    places = [str(path.parent), str(path.parent / "images"), *folders]
    if path.suffix == ".tsv":
        return list(_from_table(path, places))
    if path.suffix in (".json", ".jsonl"):
        return list(_from_records(path, places))
    raise ValueError(f"evaluation data {path} is of an unknown kind; a folder, .tsv, .json or .jsonl is needed")


def hash_eval_pictures(pictures: Sequence[EvalPicture], job: tuple[int, int]) -> EvalHashes:
    """Hash a range of pictures."""
    names: dict[str, str] = {}
    found: list[Found] = []
    for picture in pictures[slice(*job)]:
        try:
            opened = picture.opener() if picture.opener else open_picture(picture.path)
            for image in opened if isinstance(opened, list) else [opened]:
                names.setdefault(content_hash(image), picture.name)
        except PictureError as error:
            found.append(Found("eval_unreadable", picture.name, detail=str(error)))
    return EvalHashes(names, found)


def _from_table(path: Path, places: Sequence[str]) -> Iterator[EvalPicture]:
    rows = read_table(path)
    pictures = TablePictures(rows, owner=str(path))
    for number, row in enumerate(rows):
        name = f"{path}, row {row.get('index') or number}"
        # A short value names the row that has the picture.
        if row.picture_length > LONGEST_REFERENCE:
            yield EvalPicture(name, opener=pictures.opener(row))
        elif not is_missing(row.get(PATH_COLUMN)):
            yield from (EvalPicture(name, _locate(file, places)) for file in texts_of(row[PATH_COLUMN]))


def _from_records(path: Path, places: Sequence[str]) -> Iterator[EvalPicture]:
    for entry in stream_json(path):
        # Under a key, as "images", there may be a list of records.
        for record in entry.value if isinstance(entry.value, list) else [entry.value]:
            values = [record.get(key) for key in _KEYS] if isinstance(record, Mapping) else []
            for name in (name for value in values for name in (value if isinstance(value, list) else [value])):
                if isinstance(name, str) and name:
                    yield EvalPicture(f"{path}, {name}", _locate(name, places))


def _locate(name: str, places: Sequence[str]) -> str:
    """The first file that there is; the name beside the data where there is none."""
    candidates = [os.path.join(place, name) for place in places]
    return next((file for file in candidates if os.path.isfile(file)), candidates[0])
