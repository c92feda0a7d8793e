"""Visual Genome: regions with descriptions, and objects with relations."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mg_llava.data.records.json_stream import stream_json
from mg_llava.data.records.schema import RecordError
from mg_llava.data.synthesis.readers import SceneReader, check_entry, corners_of, entries_of, size_of
from mg_llava.data.synthesis.scenes import Link, Scene, Thing

_FILES = ("region_descriptions.json", "relationships.json")
_ABOUT = "image_data.json"


class VisualGenomeReader(SceneReader):
    """It needs ``image_data.json`` with ``region_descriptions.json`` or ``relationships.json``, and pictures.

    Pictures lie in ``VG_100K`` and ``VG_100K_2`` of the picture folder, or all in it. ``image_data.json`` has their
    sizes, and which of them are COCO's.
    """

    kind = "visual_genome"

    def __init__(self, folder: str | Path, images: str | Path) -> None:
        there = [Path(folder, name) for name in _FILES if Path(folder, name).is_file()]
        super().__init__(self.kind, [Path(folder, _ABOUT), *(there or [Path(folder, _FILES[0])])], images)

    def scenes(self) -> Iterator[Scene]:
        """See :class:`SceneReader`; regions and relations of a picture are scenes of their own."""
        about, *files = self.files
        pictures = {self._id(entry.value, about, entry.number): entry.value for entry in stream_json(about)}
        for file in files:
            is_regions = file.name == _FILES[0]
            read = self._regions if is_regions else self._relations
            for entry in stream_json(file):
                where = f"{file}: entry {entry.number}"
                number = self._id(entry.value, file, entry.number)
                if number not in pictures:
                    raise RecordError(f"{where}: picture {number} is not in {about}; get both of one release")
                key = f"{number}{'' if is_regions else '-relations'}"
                yield self._scene(key, number, pictures[number], *read(entry.value, where))

    def _scene(
        self, key: str, number: int, about: Mapping[str, Any], things: tuple[Thing, ...], links: tuple[Link, ...]
    ) -> Scene:
        where = f"{self.files[0]}: picture {number}"
        check_entry(about, where, url=str | None, coco_id=int | None, flickr_id=int | None)
        folder = Path(about.get("url") or "").parent.name
        within = self.images / folder if folder and (self.images / folder).is_dir() else self.images
        known = {name: about.get(f"{name}_id") for name in ("coco", "flickr")}
        ids = tuple(f"{name}:{own}" for name, own in known.items() if own is not None)
        return Scene(key, str(within / f"{number}.jpg"), size_of(about, where), things, links, ids=ids)

    def _regions(self, found: Any, where: str) -> tuple[tuple[Thing, ...], tuple[Link, ...]]:
        regions = entries_of(found.get("regions"), f"{where}, regions", phrase=str)
        return tuple(Thing(corners_of(one, where), "", (one["phrase"],)) for one in regions), ()

    def _relations(self, found: Any, where: str) -> tuple[tuple[Thing, ...], tuple[Link, ...]]:
        things: dict[Thing, int] = {}
        links = []
        for relation in entries_of(found.get("relationships"), f"{where}, relationships", predicate=str):
            subject, other = (_thing(relation.get(name), where) for name in ("subject", "object"))
            numbers = [things.setdefault(one, len(things)) for one in (subject, other)]
            links.append(Link(numbers[0], relation["predicate"].lower(), numbers[1]))
        return tuple(things), tuple(dict.fromkeys(links))

    def _id(self, found: Any, file: Path, number: int) -> int:
        """Number of a picture, which the files have under different names."""
        names = ("image_id", "id") if isinstance(found, Mapping) else ()
        value = next((found[name] for name in names if isinstance(found.get(name), int)), None)
        if value is None:
            raise RecordError(f"{file}: entry {number} has no image_id; get the file again")
        return value


def _thing(found: Any, where: str) -> Thing:
    names = [found.get("name"), *(found.get("names") or ())] if isinstance(found, Mapping) else []
    return Thing(corners_of(found, where), str(next((name for name in names if name), "")).lower())
