"""Pictures that benchmarks test on, which no record may show: known by the names of data sets and by their pixels."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

_COCO = re.compile(r"(?:COCO_[a-z0-9]+_)?(\d{12})(?:_\d+)?", re.IGNORECASE)
_FLICKR = re.compile(r"\d+")


@dataclass
class Reserved:
    """Test pictures.

    Attributes:
        ids: Names as :func:`picture_ids` gives them.
        pictures: Files, whose pixels are looked at.
        hashes: Of pixels, see ``pictures.files.content_hash``.
    """

    ids: set[str] = field(default_factory=set)
    pictures: set[str] = field(default_factory=set)
    hashes: set[str] = field(default_factory=set)

    def add(self, other: "Reserved") -> None:
        """Take over those of another."""
        self.ids |= other.ids
        self.pictures |= other.pictures
        self.hashes |= other.hashes


def picture_ids(path: str) -> tuple[str, ...]:
    """What a file name says: ``coco:17`` of 12 digits, with or without the split; ``flickr:17`` in such a folder."""
    place = PurePosixPath(Path(path).as_posix())
    coco = _COCO.fullmatch(place.stem)
    found = [f"coco:{int(coco[1])}"] if coco else []
    if _FLICKR.fullmatch(place.stem) and any("flickr" in part.lower() for part in place.parts[:-1]):
        found.append(f"flickr:{int(place.stem)}")
    return tuple(found)


def reserved_names(names: Iterable[str], folders: Sequence[str] = ()) -> Reserved:
    """The pictures with some file names, which lie in one of the folders or are known by their names alone."""
    reserved = Reserved()
    for name in names:
        reserved.ids |= set(picture_ids(name))
        reserved.pictures |= {str(Path(folder, name)) for folder in folders}
    return reserved
