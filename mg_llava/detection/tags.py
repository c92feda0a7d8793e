"""Tags that need no model: lists by name, lists of the user, and files with tags for each picture.

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
    """The names of a picture: id of its record, and its path in the record; empty where there is none."""

    id: str = ""
    path: str = ""

    def __str__(self) -> str:
        return self.path or self.id


class Tagger(Protocol):
    """Says what may be in a picture."""

    def __call__(self, images: Sequence[Image.Image], names: Sequence[PictureName] | None = None) -> list[Tags]:
        """Tags of each RGB picture; ``names`` are what they are known as, for taggers that look them up."""


def clean_tags(tags: Iterable[str]) -> Tags:
    """Tags in lower case without surrounding space, without empty ones, each once, in their order."""
    return tuple(dict.fromkeys(tag for raw in tags if (tag := " ".join(raw.split()).lower())))


def split_tags(text: str) -> Tags:
    """Tags of a text that separates them by ``|``, commas or line ends."""
    return clean_tags(text.replace("|", "\n").replace(",", "\n").split("\n"))


def read_tag_list(tags: str | Path | Sequence[str]) -> Tags:
    """The tags of a list.

    Args:
        tags: ``coco80``, ``common``, a text file with a tag a line (lines that begin with ``#`` are comments), or the
            tags themselves.

    Raises:
        FileNotFoundError: There is no such list.
        ValueError: The list is empty.
    """
    if not isinstance(tags, str | Path):
        return clean_tags(tags)
    known = sorted(path.stem for path in LISTS.glob("*.txt"))
    path = LISTS / f"{tags}.txt" if str(tags) in known else Path(tags)
    if not path.is_file():
        raise FileNotFoundError(f"tag list {tags} does not exist; give a text file, or one of {', '.join(known)}")
    found = clean_tags(line for line in path.read_text(encoding="utf-8-sig").splitlines() if not line.startswith("#"))
    if not found:
        raise ValueError(f"tag list {path} is empty; write a tag on each line")
    return found


def check_missing(missing: str) -> str:
    """A policy about pictures that a file lacks: ``error`` or ``empty``.

    Raises:
        ValueError: It is something else.
    """
    if missing not in ("error", "empty"):
        raise ValueError(f"missing is {missing!r}; allowed: 'error', 'empty'")
    return missing


@TAGGERS.register_module()
class FixedTags:
    """The same tags for every picture.

    Args:
        tags: See :func:`read_tag_list`; ``coco80`` is the paper's ablation.
    """

    def __init__(self, tags: str | Path | Sequence[str] = "coco80") -> None:
        self.tags = read_tag_list(tags)

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
        self.path, self.missing = Path(path), check_missing(missing)
        self._tags = _read_tag_file(self.path)

    def __call__(self, images: Sequence[Image.Image], names: Sequence[PictureName] | None = None) -> list[Tags]:
        """See :class:`Tagger`.

        Raises:
            RecordError: The file lacks a picture, and ``missing`` is ``error``.
        """
        names = names or [PictureName()] * len(images)
        absent = [name.id for name in names if name.id not in self._tags]
        if absent and self.missing == "error":
            raise RecordError(f"{self.path} has no tags for id {absent[0]!r}; add them, or use missing='empty'")
        return [self._tags.get(name.id, ()) for name in names]


class _Pairs(list[tuple[str, Any]]):
    """The entries of a JSON object, those of a key that comes again too."""

    def items(self) -> list[tuple[str, Any]]:
        """As those of a dict."""
        return self


def _read_tag_file(path: Path) -> dict[str, Tags]:
    if not path.is_file():
        raise FileNotFoundError(f"tag file {path} does not exist")
    found: dict[str, Tags] = {}
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
            pairs = [(row["id"], row["tags"]) for row in rows]
        else:
            pairs = list(json.loads(text, object_pairs_hook=_Pairs).items())
        cleaned = [(str(key), split_tags(tags) if isinstance(tags, str) else clean_tags(tags)) for key, tags in pairs]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(
            f"{path} is no tag file ({type(error).__name__}: {error}); .json holds {{id: [tag, ...]}}, .jsonl holds "
            '{"id": ..., "tags": [...]} a line'
        ) from error
    for key, tags in cleaned:
        if found.setdefault(key, tags) != tags:
            raise RecordError(f"{path}: id {key!r} comes again with other tags; leave one of them")
    return found
