"""Pictures of the evaluation data by the hash of their pixels, to be found again among those of the training."""

import base64
import binascii
import csv
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from mg_llava.data.pictures.files import PictureError, content_hash, open_picture
from mg_llava.data.records.json_stream import stream_json
from mg_llava.inspection.doctor.findings import Found

_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff")
_KEYS = ("image", "images", "image_path", "img_path", "picture", "file_name", "image_file")
_SHORTEST_BASE64 = 64
_LONGEST_FIELD = 1 << 30


class EvalPicture(NamedTuple):
    """A picture of the evaluation data: a path, or the encoded bytes."""

    name: str
    path: str = ""
    data: str = ""


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
        files = sorted(os.path.join(root, name) for root, _, names in os.walk(path) for name in names)
        return [EvalPicture(file, path=file) for file in files if file.lower().endswith(_SUFFIXES)]
    if not path.is_file():
        raise FileNotFoundError(f"evaluation data {path} does not exist; check --eval")
    places = [str(path.parent), str(path.parent / "images"), *folders]
    if path.suffix == ".tsv":
        return list(_from_tsv(path, places))
    if path.suffix in (".json", ".jsonl"):
        return list(_from_records(path, places))
    raise ValueError(f"evaluation data {path} is of an unknown kind; a folder, .tsv, .json or .jsonl is needed")


def hash_eval_pictures(pictures: Sequence[EvalPicture], job: tuple[int, int]) -> EvalHashes:
    """Hash a range of pictures."""
    names: dict[str, str] = {}
    found: list[Found] = []
    for picture in pictures[slice(*job)]:
        try:
            names.setdefault(content_hash(_open(picture)), picture.name)
        except (PictureError, binascii.Error) as error:
            found.append(Found("eval_unreadable", picture.name, detail=str(error)))
    return EvalHashes(names, found)


def _open(picture: EvalPicture) -> Image.Image:
    if picture.path:
        return open_picture(picture.path)
    try:
        with Image.open(io.BytesIO(base64.b64decode(picture.data))) as image:
            image.load()
            return image
    except (OSError, SyntaxError, ValueError) as error:
        raise PictureError(f"{picture.name} cannot be read ({type(error).__name__}: {error})") from error


def _from_tsv(path: Path, places: Sequence[str]) -> Iterator[EvalPicture]:
    csv.field_size_limit(_LONGEST_FIELD)
    with path.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file, delimiter="\t")):
            name = f"{path}, row {row.get('index') or number}"
            data = row.get("image") or ""
            # A short value names the row that has the picture.
            if len(data) >= _SHORTEST_BASE64:
                yield EvalPicture(name, data=data)
            elif row.get("image_path"):
                yield EvalPicture(name, path=_locate(str(row["image_path"]), places))


def _from_records(path: Path, places: Sequence[str]) -> Iterator[EvalPicture]:
    for entry in stream_json(path):
        # Under a key, as "images", there may be a list of records.
        for record in entry.value if isinstance(entry.value, list) else [entry.value]:
            for name in _names_in(record):
                yield EvalPicture(f"{path}, {name}", path=_locate(name, places))


def _names_in(record: Any) -> list[str]:
    """Paths of the pictures of a record."""
    if not isinstance(record, Mapping):
        return []
    values = [record[key] for key in _KEYS if key in record]
    names = [name for value in values for name in (value if isinstance(value, list) else [value])]
    return [name for name in names if isinstance(name, str) and name]


def _locate(name: str, places: Sequence[str]) -> str:
    """The first file that there is; the name beside the data where there is none."""
    candidates = [os.path.join(place, name) for place in places]
    return next((file for file in candidates if os.path.isfile(file)), candidates[0])
