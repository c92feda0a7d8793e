"""Pictures and videos of records into tar files (shards), each file once, in the order in which records name them.

What goes into which tar file is planned before anything is written, so that a stopped run goes on with the tar files
that are not whole, and any number of processes gives the same files, byte for byte.
"""

import io
import os
import posixpath
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mg_llava.data.pictures.files import PictureError, picture_path
from mg_llava.data.pictures.places import StoredPath, check_folder, state_of
from mg_llava.data.records.formats import RecordFormat, to_llava
from mg_llava.data.records.open import open_records
from mg_llava.data.records.schema import RecordError
from mg_llava.work.atomic import replacing
from mg_llava.work.pool import run_jobs
from mg_llava.work.tar_files import TAR
from mg_llava.work.tar_index import LARGEST, TarError, open_index

_SHOWN = 5


class ShardMember(NamedTuple):
    """A file of a shard: name of the member, where it is read, and its bytes."""

    name: str
    place: str
    size: int


@dataclass(frozen=True)
class Shards:
    """What goes into which tar file of a folder."""

    out: Path
    parts: Sequence[Sequence[ShardMember]]

    @property
    def pattern(self) -> str:
        """What names all tar files, as ``image_folder`` of a source."""
        width, last = self._width, len(self.parts) - 1
        return str(self.out / (f"{{{0:0{width}}..{last:0{width}}}}{TAR}" if last else f"{0:0{width}}{TAR}"))

    @property
    def _width(self) -> int:
        return max(5, len(str(len(self.parts) - 1)))

    def path(self, number: int) -> Path:
        """A tar file."""
        return self.out / f"{number:0{self._width}}{TAR}"

    def is_whole(self, number: int) -> bool:
        """Tell whether a tar file has its members already."""
        if not self.path(number).is_file():
            return False
        try:
            index = open_index(str(self.path(number)))
        except TarError:
            return False
        found = zip(index.list_names(), index.sizes.tolist(), strict=True)
        return [*found] == [(member.name, member.size) for member in self.parts[number]]


def plan_picture_shards(
    records: Iterable[str | Path],
    folder: str,
    out: str | Path,
    size: int,
    form: RecordFormat = "llava",
    allow_outside: bool = False,
) -> Shards:
    """Plan tar files of about ``size`` bytes; a file larger than that has one of its own.

    Args:
        records: Record files.
        folder: Folder of their pictures and videos, or tar files or a URL (see ``places``).
        out: Folder of the tar files.
        size: Bytes of files in a tar file.
        form: What the records are.
        allow_outside: Whether links may lead out of the folder.

    Raises:
        FileNotFoundError: Record file or folder is not there.
        PictureError: Files are missing, empty, too large or outside of the folder; the first ones are named.
        RecordError: Records are malformed, or name no files.
        ValueError: The folder for the tar files has others.
    """
    check_folder(folder)
    members: dict[str, ShardMember] = {}
    wrong: list[str] = []
    for name, owner in _names(records, form):
        if name not in members:
            try:
                members[name] = _measure(folder, name, owner, allow_outside)
            except PictureError as error:
                members[name] = ShardMember(name, "", 0)
                wrong.append(str(error))
    if wrong:
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise PictureError("; ".join(wrong[:_SHOWN]) + more, "missing")
    if not members:
        raise ValueError("the records name no pictures or videos; there is nothing to write")
    shards = Shards(Path(out), list(_parts(members.values(), size)))
    ours = {shards.path(number).name for number in range(len(shards.parts))}
    strange = sorted(path.name for path in Path(out).glob(f"*{TAR}") if path.name not in ours)
    if strange:
        raise ValueError(f"{out} has other tar files, such as {strange[0]}; remove them or take another folder")
    return shards


def write_picture_shards(shards: Shards, workers: int = 1, progress: Callable[[int], object] | None = None) -> int:
    """Write the tar files that are not whole; ``progress`` gets the number of files in each. How many were written.

    Raises:
        PictureError: A file was changed since the plan.
        NoRoomError: The disk is full; what is whole stays.
    """
    written = 0
    numbers = range(len(shards.parts))
    for number, is_new in zip(numbers, run_jobs(_write, numbers, shards, workers), strict=True):
        written += is_new
        if progress is not None:
            progress(len(shards.parts[number]))
    return written


def _names(records: Iterable[str | Path], form: RecordFormat) -> Iterator[tuple[str, str]]:
    """Member name of every picture and video of records, and its owner."""
    for path in records:
        for row, raw in enumerate(open_records(path)):
            record, owner = to_llava(raw, form, str(path), row), f"record {row} of {path}"
            if not isinstance(record, Mapping):
                raise RecordError(f"{owner}: found a {type(record).__name__}; a record is an object")
            for field in ("image", "video"):
                found = record.get(field) or []
                for name in [found] if isinstance(found, str) else found:
                    if not isinstance(name, str):
                        raise RecordError(f"{owner}: {field} is {name!r}; a path or a list of paths is needed")
                    yield posixpath.normpath(name), owner


def _measure(folder: str, name: str, owner: str, allow_outside: bool) -> ShardMember:
    if name.startswith(("/", "../")):  # the tar file could not give it back under this name
        raise PictureError(f"picture {name} of {owner} lies outside of image_folder {folder}; put it there", "outside")
    place = picture_path(folder, name, owner, allow_outside, "use --outside-pictures allow")
    try:
        size = state_of(place)[0]
        if not size and isinstance(place, StoredPath):  # a server need not say it
            size = len(place.read())
    except OSError as error:
        raise PictureError(f"picture {place} of {owner} cannot be read ({error})", "missing") from error
    if not 0 < size <= LARGEST:
        fault = f"has {size} bytes; 1 to {LARGEST} are allowed"
        raise PictureError(f"picture {place} of {owner} {fault}", "too large" if size > 0 else "empty")
    return ShardMember(name, place, size)


def _parts(members: Iterable[ShardMember], size: int) -> Iterator[list[ShardMember]]:
    part: list[ShardMember] = []
    total = 0
    for member in members:
        if part and total + member.size > size:
            yield part
            part, total = [], 0
        part.append(member)
        total += member.size
    yield part


def _write(shards: Shards, number: int) -> bool:
    """Write a tar file and its index, unless it is whole."""
    if shards.is_whole(number):
        return False
    path = shards.path(number)
    with replacing(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for member in shards.parts[number]:
            content = _read(member)
            about = tarfile.TarInfo(member.name)
            about.size, about.mode = len(content), 0o644
            tar.addfile(about, io.BytesIO(content))
    open_index(str(path))  # reads the whole structure, and keeps it beside the file
    return True


def _read(member: ShardMember) -> bytes:
    place = member.place
    try:
        content = place.read() if isinstance(place, StoredPath) else Path(place).read_bytes()
    except FileNotFoundError:
        content = b""
    if len(content) != member.size:
        found = f"{len(content)} bytes in place of {member.size}"
        raise PictureError(f"picture {os.fspath(place)} was changed meanwhile ({found}); start again")
    return content
