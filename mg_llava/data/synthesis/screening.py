"""Reads the annotations into one file of sifted scenes, and looks at the pictures: can they be used for training?"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mg_llava.data.pictures.files import PictureError, content_hash, open_picture, probe_picture
from mg_llava.data.records.open import TextRecords
from mg_llava.data.records.schema import RecordError
from mg_llava.data.synthesis.readers import SceneReader
from mg_llava.data.synthesis.reserved import Reserved
from mg_llava.data.synthesis.scenes import Scene, Sieve, sift
from mg_llava.work.atomic import replacing
from mg_llava.work.resumed import run_resumed

BY_NAME, BY_PIXELS = "a test picture, by its name", "a test picture, by its pixels"
AGAIN = "named by an earlier entry"
_BATCH = 64
_DROPPED = "in a picture that was refused"

StageProgress = Callable[[str, int, int], object]
"""Gets a stage, the items done and all of them (0 where the number is not known)."""


@dataclass
class SourceTally:
    """Counts of one source."""

    pictures: Sieve = field(default_factory=Sieve)
    objects: Sieve = field(default_factory=Sieve)
    phrases: Sieve = field(default_factory=Sieve)
    captions: Sieve = field(default_factory=Sieve)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {name: tally.to_dict() for name, tally in vars(self).items()}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> "SourceTally":
        """The counts of plain values."""
        return cls(**{name: Sieve(one["read"], one["kept"], Counter(one["dropped"])) for name, one in found.items()})

    def revoke(self, scene: Mapping[str, Any], reason: str) -> None:
        """Count a picture out again, with all that was kept of it."""
        self.pictures.revoke(reason)
        self.objects.revoke(_DROPPED, len(scene["things"]))
        self.phrases.revoke(_DROPPED, sum(len(thing["phrases"]) for thing in scene["things"]))
        self.captions.revoke(_DROPPED, len(scene["captions"]))


def write_scenes(
    readers: Sequence[SceneReader], reserved: Reserved, path: Path, progress: StageProgress
) -> dict[str, SourceTally]:
    """Write the sifted scenes of all readers, one a line, without the pictures that are reserved by name.

    Raises:
        RecordError: A source is malformed.
    """
    tallies = {reader.name: SourceTally() for reader in readers}
    with replacing(path, "w") as file:
        for reader in readers:
            seen: set[str] = set()
            for number, scene in enumerate(reader.scenes(), start=1):
                kept = _sifted(replace(scene, source=reader.name), reserved, tallies[reader.name], seen)
                if kept is not None:
                    try:
                        file.write(json.dumps(kept.to_dict(), ensure_ascii=False) + "\n")
                    except UnicodeEncodeError as error:
                        half = "half of a surrogate pair stands in its text, which is no Unicode; mend the text"
                        raise RecordError(f"{reader.files[0]}, picture {scene.key}: {half}") from error
                progress(f"reading {reader.name}", number, 0)
    return tallies


def _sifted(scene: Scene, reserved: Reserved, tally: SourceTally, seen: set[str]) -> Scene | None:
    """What is of use in a scene, None for nothing; ``seen`` are the keys before, which records are named by."""
    tally.pictures.read += 1
    if reserved.ids.intersection(scene.ids) or scene.key in seen:
        _refuse(scene, tally, AGAIN if scene.key in seen else BY_NAME)
        return None
    seen.add(scene.key)
    if scene.size is None:
        try:
            probe = probe_picture(scene.picture)
        except PictureError as error:
            _refuse(scene, tally, f"unreadable: {error.fault}")
            return None
        scene = replace(scene, size=(probe.width, probe.height))
    kept = sift(scene, tally.objects, tally.phrases, tally.captions)
    if kept is None:
        tally.pictures.drop("no objects of use")
        return None
    tally.pictures.kept += 1
    return kept


def _refuse(scene: Scene, tally: SourceTally, reason: str) -> None:
    tally.pictures.drop(reason)
    phrases = sum(len(thing.phrases) for thing in scene.things)
    counts = (tally.objects, len(scene.things)), (tally.phrases, phrases), (tally.captions, len(scene.captions))
    for part, count in counts:
        part.read += count
        part.drop(_DROPPED, count)


def screen_pictures(
    scenes: TextRecords,
    reserved: Reserved,
    tallies: Mapping[str, SourceTally],
    journal: Path,
    workers: int,
    progress: StageProgress,
) -> tuple[list[bool], dict[str, int]]:
    """Look at the pixels of all pictures.

    Args:
        scenes: The sifted scenes.
        reserved: The test pictures.
        tallies: By source; pictures that are refused now are counted out.
        journal: Keeps what was seen.
        workers: Number of processes.
        progress: Told about it.

    Returns:
        For each scene whether it may be used; and of the reserved pictures how many are known by name, how many were
        seen, and how many files are not there or unreadable.
    """
    places: dict[str, int] = {}
    for scene in scenes:
        places.setdefault(scene["picture"], len(places))
    own = len(places)
    tests = sorted(reserved.pictures)
    for path in tests:
        places.setdefault(path, len(places))
    looks: list[Any] = []
    batches = run_resumed(
        look_at_pictures,
        None,
        list(places),
        _BATCH,
        workers,
        journal,
        ["pictures", own, len(places)],
        lambda done, count: progress("looking at pictures", done, count),
    )
    for found in batches:
        looks += found
    seen = {look[0] for look in (looks[places[path]] for path in tests) if len(look) == 3}
    hashes = seen | reserved.hashes
    unseen = sum(len(looks[places[path]]) == 1 for path in tests)
    usable = []
    for scene in scenes:
        reason = _verdict(looks[places[scene["picture"]]], scene["size"], hashes)
        usable.append(not reason)
        if reason:
            tallies[scene["source"]].revoke(scene, reason)
    about = {"names": len(reserved.ids), "pictures": len(hashes), "files not there": unseen}
    return usable, about


def look_at_pictures(_: Any, paths: Sequence[str]) -> list[list[Any]]:
    """Of each picture the hash of its pixels, width and height; or what is wrong with it."""
    found: list[list[Any]] = []
    for path in paths:
        try:
            image = open_picture(path)
            found.append([content_hash(image), image.width, image.height])
        except PictureError as error:
            found.append([error.fault])
    return found


def _verdict(look: Sequence[Any], size: Sequence[int], hashes: set[str]) -> str:
    """Why a picture cannot be used; empty where it can."""
    if len(look) == 1:
        return f"unreadable: {look[0]}"
    if look[0] in hashes:
        return BY_PIXELS
    return "" if list(look[1:]) == list(size) else "annotated in another size"
