"""Picture files, each once: what is wrong with them, kept in a file so that a check that was stopped goes on."""

import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mg_llava.data.pictures.files import (
    PictureError,
    PictureProbe,
    content_hash,
    open_picture,
    probe_picture,
    verify_picture,
)
from mg_llava.inspection.doctor.findings import PICTURE_FAULTS, Found
from mg_llava.work.journal import Journal, read_journal

_VERSION = 2
_OTHER_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".JPG", ".JPEG", ".PNG")
_DEEP_MODES = ("I", "F")
_SHOWN_BYTES = 24


class PictureFacts(NamedTuple):
    """What is known of a picture file; ``fault`` is empty where it can be read, ``content`` where nobody asked."""

    width: int = 0
    height: int = 0
    mode: str = ""
    format: str = ""
    orientation: int = 1
    animated: bool = False
    expected_format: str = ""
    transparent: bool = False
    fault: str = ""
    detail: str = ""
    content: str = ""

    @property
    def probe(self) -> PictureProbe:
        """The header's part."""
        return PictureProbe(*self[:6], self.expected_format or None, self.transparent)


class CachedFacts(NamedTuple):
    """Facts of a file as it was."""

    path: str
    size: int
    changed: int
    max_pixels: int | None
    facts: PictureFacts


@dataclass
class PictureCheck:
    """What the jobs share: the facts known so far by path, the limit, and whether content hashes are needed."""

    known: dict[str, CachedFacts] = field(default_factory=dict)
    paths: Sequence[str] = ()
    limits: Sequence[int | None] = ()
    needs_content: bool = False


class PictureCache:
    """Facts in a journal.

    Args:
        path: The file; made when it is first written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def read(self) -> dict[str, CachedFacts]:
        """All facts by path; of several for one path the last."""
        found = (_decode(record.value) for record in read_journal(self.path))
        return {cached.path: cached for cached in found if cached is not None}

    def append(self, cached: Iterable[CachedFacts]) -> None:
        """Add facts; they are on disk when this returns."""
        with Journal(self.path) as journal:
            journal.append([_VERSION, *one] for one in cached)


def check_pictures(check: PictureCheck, job: tuple[int, int]) -> list[tuple[bool, CachedFacts]]:
    """Facts of a range of ``check.paths``, and whether they are new."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about metadata and sizes that become findings
        return [_look_up(check, check.paths[place], check.limits[place]) for place in range(*job)]


def examine_picture(path: str, max_pixels: int | None = None, needs_content: bool = False) -> PictureFacts:
    """Read a picture file to its end.

    Args:
        path: The file.
        max_pixels: Largest number of pixels; None for Pillow's limit.
        needs_content: Also hash the pixels, which takes decoding at full size.
    """
    try:
        if not needs_content:
            return _facts(verify_picture(path, max_pixels=max_pixels))
        facts = _facts(probe_picture(path, max_pixels=max_pixels))
        return facts._replace(content=content_hash(open_picture(path, max_pixels=max_pixels)))
    except PictureError as error:
        return PictureFacts(fault=error.fault, detail=_describe(error, path))


def picture_findings(facts: PictureFacts, name: str, record_id: str, row: int) -> Iterator[Found]:
    """What a record has to know about its picture."""
    if facts.fault:
        yield Found(PICTURE_FAULTS[facts.fault], record_id, row, f"{name}: {facts.detail}")  # type: ignore[index]
        return
    what = f"{name}: {facts.format} {facts.mode} {facts.width} x {facts.height}"
    traits = {
        "wrong_extension": facts.probe.wrong_extension,
        "exif_rotation": facts.orientation != 1,
        "deep_gray": facts.mode.startswith(_DEEP_MODES),
        "transparency": facts.transparent,
        "cmyk": facts.mode == "CMYK",
        "palette": facts.mode.startswith("P"),
        "animated": facts.animated,
    }
    for kind in (kind for kind, is_so in traits.items() if is_so):
        more = f", orientation {facts.orientation}" if kind == "exif_rotation" else ""
        yield Found(kind, record_id, row, what + more)


def _look_up(check: PictureCheck, path: str, limit: int | None) -> tuple[bool, CachedFacts]:
    """Facts of a file and whether they are new, which they are if the file is another than the one that is known."""
    known = check.known.get(path)
    size, changed = _state(path)
    if known is not None and known[:4] == (path, size, changed, limit):
        if known.facts.content or known.facts.fault or not check.needs_content:
            return False, known
    facts = examine_picture(path, limit, check.needs_content)
    # A missing file may appear at any time.
    return size >= 0, CachedFacts(path, size, changed, limit, facts)


def _facts(probe: PictureProbe) -> PictureFacts:
    return PictureFacts(
        probe.width,
        probe.height,
        sys.intern(probe.mode),
        sys.intern(probe.format),
        probe.orientation,
        probe.animated,
        sys.intern(probe.expected_format or ""),
        probe.transparent,
    )


def _describe(error: PictureError, path: str) -> str:
    if error.fault == "missing":
        return "does not exist" + _neighbor(path)
    if error.fault == "empty":
        return "0 bytes"
    if error.fault == "zero size":
        return "width or height is 0"
    if error.fault == "not a picture" and os.path.isfile(path):
        with open(path, "rb") as file:
            return f"begins with {file.read(_SHOWN_BYTES)!r}"
    cause = error.__cause__
    return f"{type(cause).__name__}: {cause}".replace(path, "the file")


def _neighbor(path: str) -> str:
    """A file beside a missing one that differs in its extension, as message."""
    stem = os.path.splitext(path)[0]
    found = next((stem + suffix for suffix in _OTHER_SUFFIXES if os.path.isfile(stem + suffix)), None)
    return f"; {os.path.basename(found)} does" if found else ""


def _state(path: str) -> tuple[int, int]:
    """Size in bytes and time of the last change in nanoseconds; -1 where there is no file."""
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _decode(values: Any) -> CachedFacts | None:
    """A record of the cache; None for one of another version."""
    try:
        if values[0] != _VERSION:
            return None
        path, size, changed, limit, facts = values[1:]
        kept = PictureFacts(*facts)
        kept = kept._replace(mode=sys.intern(kept.mode), format=sys.intern(kept.format))
        return CachedFacts(path, size, changed, limit, kept)
    except (ValueError, TypeError, IndexError, KeyError):
        return None
