"""Picture files, each once: what is wrong with them, kept in a file so that a stopped check can be continued."""

import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
from mg_llava.data.pictures.places import is_there, state_of, with_suffix
from mg_llava.data.pictures.video import is_video, read_frames
from mg_llava.inspection.doctor.findings import PICTURE_FAULTS, Found
from mg_llava.work.journal import Journal, read_journal

_VERSION = 2
_OTHER_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".JPG", ".JPEG", ".PNG")
_DEEP_MODES = ("I", "F")
_SHOWN_BYTES = 24


@dataclass(frozen=True)
class PictureFacts(PictureProbe):
    """Facts about a picture file; ``fault`` is empty where it can be read, ``content`` where nobody asked."""

    width: int = 0
    height: int = 0
    mode: str = ""
    format: str = ""
    fault: str = ""
    detail: str = ""
    content: str = ""


class CachedFacts(NamedTuple):
    """Facts of a file as it was: its size in bytes, and the time of its last change in nanoseconds."""

    path: str
    size: int
    changed: int
    max_pixels: int | None
    facts: PictureFacts


class PictureCheck(NamedTuple):
    """Facts known so far by path, wanted paths with their limits of pixels, whether hashes of contents are needed."""

    known: Mapping[str, CachedFacts]
    wanted: Sequence[tuple[str, int | None]]
    needs_content: bool


def read_cache(path: str | Path) -> dict[str, CachedFacts]:
    """All facts of a journal by path; of several for one path the last."""
    found = (_decode(record.value) for record in read_journal(path))
    return {cached.path: cached for cached in found if cached is not None}


def append_cache(path: str | Path, cached: Iterable[CachedFacts]) -> None:
    """Add facts to a journal; they are on disk when this returns."""
    with Journal(path) as journal:
        journal.append(
            [_VERSION, *one[:-1], ["" if value is None else value for value in vars(one.facts).values()]]
            for one in cached
        )


def check_pictures(check: PictureCheck, job: tuple[int, int]) -> list[tuple[bool, CachedFacts]]:
    """Facts of a range of ``check.wanted``, and whether they are new."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about metadata and sizes that become findings
        return [_look_up(check, *wanted) for wanted in check.wanted[slice(*job)]]


def examine_picture(path: str, max_pixels: int | None = None, needs_content: bool = False) -> PictureFacts:
    """Read a picture file to its end, of a video the first frame; hashing its content takes decoding at full size."""
    try:
        if is_video(path):
            width, height = read_frames(path, 1)[0].size
            return PictureFacts(width, height, "RGB", "video")
        if not needs_content:
            return PictureFacts(**vars(verify_picture(path, max_pixels=max_pixels)))
        probe = probe_picture(path, max_pixels=max_pixels)
        return PictureFacts(**vars(probe), content=content_hash(open_picture(path, max_pixels=max_pixels)))
    except PictureError as error:
        return PictureFacts(fault=error.fault, detail=_describe(error, path))


def picture_findings(facts: PictureFacts, name: str, record_id: str, row: int) -> Iterator[Found]:
    """Findings of a record about its picture."""
    if facts.fault:
        yield Found(PICTURE_FAULTS[facts.fault], record_id, row, f"{name}: {facts.detail}")  # type: ignore[index]
        return
    traits = {
        "wrong_extension": facts.wrong_extension,
        "exif_rotation": facts.orientation != 1,
        "deep_gray": facts.mode.startswith(_DEEP_MODES),
        "transparency": facts.transparent,
        "cmyk": facts.mode == "CMYK",
        "palette": facts.mode.startswith("P"),
        "animated": facts.animated,
    }
    for kind in (kind for kind, is_so in traits.items() if is_so):
        more = f", orientation {facts.orientation}" if kind == "exif_rotation" else ""
        what = f"{name}: {facts.format} {facts.mode} {facts.width} x {facts.height}{more}"
        yield Found(kind, record_id, row, what)


def _look_up(check: PictureCheck, path: str, limit: int | None) -> tuple[bool, CachedFacts]:
    """Facts of a file and whether they are new, which they are if the file is another than the one that is known."""
    try:
        state = path, *state_of(path), limit
    except OSError:
        state = path, -1, -1, limit
    known = check.known.get(path)
    if known is not None and known[:4] == state:
        if known.facts.content or known.facts.fault or not check.needs_content:
            return False, known
    # A missing file may appear at any time.
    return state[1] >= 0, CachedFacts(*state, examine_picture(path, limit, check.needs_content))


def _describe(error: PictureError, path: str) -> str:
    if error.fault == "missing":
        # A file beside it that differs in its extension helps.
        others = (with_suffix(path, suffix) for suffix in _OTHER_SUFFIXES)
        found = next((other for other in others if is_there(other)), None)
        return "does not exist" + (f"; {os.path.basename(found)} does" if found else "")
    if error.fault in ("empty", "zero size"):
        return "0 bytes" if error.fault == "empty" else "width or height is 0"
    if error.fault == "not a picture" and os.path.isfile(path):
        with open(path, "rb") as file:
            return f"begins with {file.read(_SHOWN_BYTES)!r}"
    cause = error.__cause__
    return f"{type(cause).__name__}: {cause}".replace(path, "the file")


def _decode(values: Any) -> CachedFacts | None:
    """A record of the cache; None for one of another version."""
    try:
        if values[0] != _VERSION:
            return None
        path, size, changed, limit, facts = values[1:]
        kept = PictureFacts(*facts)
        mode, kind = sys.intern(kept.mode), sys.intern(kept.format)
        kept = replace(kept, mode=mode, format=kind, expected_format=kept.expected_format or None)
        return CachedFacts(path, size, changed, limit, kept)
    except (ValueError, TypeError, IndexError, KeyError):
        return None
