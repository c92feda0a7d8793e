"""Tags that need no model: lists by name, lists of yours, and files with tags for each picture.

A tagger takes RGB pictures and, where its tags depend on them, their names; it gives a list of tags for each.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from PIL import Image

from mg_llava.data.records.schema import RecordError
from mg_llava.registry import TAGGERS

Tags = tuple[str, ...]

LISTS = Path(__file__).parent / "names"
"""Folder of the lists that can be named: ``coco80`` and ``common``."""


class PictureName(NamedTuple):
    """What a picture is known as: id of its record, and its path in the record; empty where there is none."""

    id: str = ""
    path: str = ""

    def __str__(self) -> str:
        return self.path or self.id


class Tagger(Protocol):
    """Says what may be in a picture."""

    def __call__(self, images: Sequence[Image.Image], names: Sequence[PictureName] | None = None) -> list[Tags]:
        """Tags of each picture.

        Args:
            images: RGB pictures.
            names: What the pictures are known as, for taggers that look them up.
        """


def clean_tags(tags: Iterable[str]) -> Tags:
    """Tags in lower case without surrounding space, without empty ones, each once, in their order."""
    return tuple(dict.fromkeys(tag for raw in tags if (tag := " ".join(raw.split()).lower())))


def split_tags(text: str) -> Tags:
    """Tags of a text that separates them by ``|``, commas or line ends."""
    return clean_tags(text.replace("|", "\n").replace(",", "\n").split("\n"))


def read_tag_list(name: str | Path) -> Tags:
    """The tags of a list.

    Args:
        name: ``coco80``, ``common``, or a text file with a tag a line (lines that begin with ``#`` are comments).

    Raises:
        FileNotFoundError: There is no such list.
        ValueError: The list is empty.
    """
    known = sorted(path.stem for path in LISTS.glob("*.txt"))
    path = LISTS / f"{name}.txt" if str(name) in known else Path(name)
    if not path.is_file():
        raise FileNotFoundError(f"tag list {name} does not exist; give a text file, or one of {', '.join(known)}")
    tags = clean_tags(line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    if not tags:
        raise ValueError(f"tag list {path} is empty; write a tag on each line")
    return tags


@TAGGERS.register_module()
class FixedTags:
    """The same tags for every picture.

    Args:
        tags: The tags, or the name of a list: ``coco80`` (the paper's ablation), ``common`` or a text file.
    """

    def __init__(self, tags: str | Path | Sequence[str] = "coco80") -> None:
        self.tags = read_tag_list(tags) if isinstance(tags, str | Path) else clean_tags(tags)

    def __call__(self, images: Sequence[Image.Image], names: Sequence[PictureName] | None = None) -> list[Tags]:
        """See :class:`Tagger`."""
        return [self.tags] * len(images)


@TAGGERS.register_module()
class TagFile:
    """Tags for each picture from a file, by record id.

    Args:
        path: ``.json`` with an object of ids and tags, or ``.jsonl`` with ``{"id", "tags"}`` a line. Tags are a list,
            or a text that separates them by ``|`` or commas.
        missing: ``empty`` gives pictures that the file lacks no tags; ``error`` refuses them.

    Raises:
        FileNotFoundError: There is no such file.
        RecordError: The file is malformed.
        ValueError: ``missing`` is unknown.
    """

    needs_names = True

    def __init__(self, path: str | Path, missing: str = "error") -> None:
        if missing not in ("empty", "error"):
            raise ValueError(f"missing is {missing!r}; allowed: 'empty', 'error'")
        self.path = Path(path)
        self.missing = missing
        self._tags = _read_tag_file(self.path)

    def __call__(self, images: Sequence[Image.Image], names: Sequence[PictureName] | None = None) -> list[Tags]:
        """See :class:`Tagger`.

        Raises:
            RecordError: The file lacks a picture, and ``missing`` is ``error``.
        """
        found = []
        for name in names or [PictureName()] * len(images):
            if name.id not in self._tags and self.missing == "error":
                raise RecordError(f"{self.path} has no tags for id {name.id!r}; add them, or use missing='empty'")
            found.append(self._tags.get(name.id, ()))
        return found


def _read_tag_file(path: Path) -> dict[str, Tags]:
    if not path.is_file():
        raise FileNotFoundError(f"tag file {path} does not exist")
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
            pairs = [(row["id"], row["tags"]) for row in rows]
        else:
            pairs = list(json.loads(text).items())
        found: dict[str, Tags] = {}
        for key, tags in ((str(key), _as_tags(tags)) for key, tags in pairs):
            if found.setdefault(key, tags) != tags:
                raise RecordError(f"{path}: id {key!r} comes again with other tags; leave one of them")
        return found
    except RecordError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(
            f"{path} is no tag file ({type(error).__name__}: {error}); .json holds {{id: [tag, ...]}}, .jsonl holds "
            '{"id": ..., "tags": [...]} a line'
        ) from error


def _as_tags(value: Any) -> Tags:
    return split_tags(value) if isinstance(value, str) else clean_tags(value)
