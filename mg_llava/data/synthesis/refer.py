"""COCO's instances, and the referring expressions of RefCOCO, RefCOCO+ and RefCOCOg about them."""

import pickle
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from mg_llava.data.records.schema import RecordError
from mg_llava.data.synthesis.readers import SceneReader, corners_of, entries_of, load_plain_json, size_of, text_of
from mg_llava.data.synthesis.reserved import Reserved, picture_ids, reserved_names
from mg_llava.data.synthesis.scenes import Scene, Thing

_TRAINING = "train"
_PREFERRED = ("refs(umd).p", "refs(unc).p", "refs(google).p")
"""Of several splits of one set, the one that results are published on."""


class _PlainUnpickler(pickle.Unpickler):
    """Builds lists, dicts, texts and numbers; whatever else a file names is refused, and nothing is run."""

    def find_class(self, module: str, name: str) -> NoReturn:
        """Refuse."""
        raise pickle.UnpicklingError(f"it names {module}.{name}, which was not run")


def load_refs(path: Path) -> list[Mapping[str, Any]]:
    """The references of a ``refs(SPLIT).p``, a pickle of Python 2.

    Raises:
        RecordError: The file is damaged, or holds something else than plain values.
    """
    try:
        with path.open("rb") as file:
            refs = _PlainUnpickler(file, encoding="latin1").load()
    except Exception as error:  # damaged pickles raise nearly anything
        raise RecordError(
            f"{path} is no plain pickle of references ({error}); get it again from its source"
        ) from error
    for number, ref in enumerate(entries_of(refs, str(path), ann_id=int, image_id=int, split=str)):
        entries_of(ref.get("sentences"), f"{path}, entry {number}, sentences")
    return refs


def find_refs(folder: str | Path) -> Path:
    """The file of references in a folder, or the file itself.

    Raises:
        FileNotFoundError: There is none.
    """
    folder = Path(folder)
    if folder.is_file():
        return folder
    found = [folder / name for name in _PREFERRED if (folder / name).is_file()] or sorted(folder.glob("refs*.p"))
    if not found:
        raise FileNotFoundError(f"{folder} has no refs(unc).p, refs(umd).p or refs(google).p; give a folder that does")
    return found[0]


def reserved_refs(path: Path, images: Sequence[str] = ()) -> Reserved:
    """The pictures that references of other splits than the training's are about."""
    refs = [ref for ref in load_refs(path) if ref["split"] != _TRAINING]
    reserved = reserved_names((f"COCO_train2014_{ref['image_id']:012d}.jpg" for ref in refs), images)
    reserved.ids |= {f"coco:{ref['image_id']}" for ref in refs}
    return reserved


class CocoReader(SceneReader):
    """It needs COCO's ``instances_*.json`` and the folder of its pictures."""

    kind = "coco"

    def __init__(self, file: str | Path, images: str | Path) -> None:
        super().__init__(Path(file).stem, [Path(file)], images)
        self.vocabulary = tuple(sorted(str(one["name"]) for one in self._content()["categories"]))

    def scenes(self) -> Iterator[Scene]:
        """See :class:`SceneReader`; groups of objects are left out, and so are their labels as complete ones."""
        yield from instance_scenes(self._content(), self.files[0], self.images)

    def _content(self) -> Any:
        content = load_plain_json(self.files[0], without="segmentation")
        if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= content.keys():
            raise RecordError(f"{self.files[0]}: images, annotations and categories are needed, as COCO has them")
        entries_of(content["images"], f"{self.files[0]}: images", id=int | str, file_name=str)
        entries_of(content["annotations"], f"{self.files[0]}: annotations", image_id=int | str, category_id=int | str)
        entries_of(content["categories"], f"{self.files[0]}: categories", id=int | str, name=str)
        return content


class RefCOCOReader(CocoReader):
    """It needs a folder with ``refs(*).p`` and ``instances.json``, and that of COCO's train2014 pictures."""

    kind = "refcoco"

    def __init__(self, folder: str | Path, images: str | Path) -> None:
        self.refs = find_refs(folder)
        super().__init__(self.refs.parent / "instances.json", images)
        self.files.append(self.refs)
        self.name = self.refs.resolve().parent.name

    def scenes(self) -> Iterator[Scene]:
        """See :class:`SceneReader`: pictures of the training's references, with all objects in them."""
        phrases: dict[Any, list[str]] = defaultdict(list)
        pictures: dict[Any, None] = {}
        content = self._content()
        for ref in self._known_refs(content):
            if ref["split"] == _TRAINING:
                pictures[ref["image_id"]] = None
                phrases[ref["ann_id"]] += _sentences(ref)
        yield from instance_scenes(content, self.files[0], self.images, phrases, pictures)

    def reserved(self) -> Reserved:
        """See :class:`SceneReader`."""
        return reserved_refs(self.refs, [str(self.images)])

    def held_out(self) -> dict[str, list[dict[str, Any]]]:
        """The sentences of each other split as the benchmark ``refcoco`` reads them, one a record."""
        content = self._content()
        boxes = {entry.get("id"): entry.get("bbox") for entry in content["annotations"]}
        sizes = {image["id"]: size_of(image, f"{self.files[0]}: picture {image['id']}") for image in content["images"]}
        found: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for ref in self._known_refs(content):
            key, (width, height) = ref["ann_id"], sizes[ref["image_id"]]
            name = f"COCO_train2014_{ref['image_id']:012d}_{key}"
            if ref["split"] != _TRAINING:
                about = {"img_id": name, "bbox": boxes[key], "height": height, "width": width}
                found[ref["split"]] += [{**about, "sents": text} for text in _sentences(ref)]
        return dict(found)

    def _known_refs(self, content: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """The references, all of them about an object and a picture of the instances."""
        objects, images = ({entry.get("id") for entry in content[part]} for part in ("annotations", "images"))
        refs = load_refs(self.refs)
        for number, ref in enumerate(refs):
            if ref["ann_id"] not in objects or ref["image_id"] not in images:
                about = f"object {ref['ann_id']} of picture {ref['image_id']}"
                raise RecordError(f"{self.refs}: reference {number} is about {about}, not in {self.files[0]}")
        return refs


def _sentences(ref: Mapping[str, Any]) -> list[str]:
    return [text_of(one.get("sent") or one.get("raw")) for one in ref["sentences"]]


def instance_scenes(
    content: Mapping[str, Any],
    path: Path,
    folder: Path,
    phrases: Mapping[Any, Sequence[str]] | None = None,
    pictures: Mapping[Any, Any] | None = None,
) -> Iterator[Scene]:
    """Scenes of a file in COCO's format.

    Args:
        content: What it holds.
        path: The file, for messages.
        folder: Of the pictures.
        phrases: Texts about objects by ids of annotations.
        pictures: Ids of the pictures to take; None for all.
    """
    names = {one["id"]: (str(one["name"]), str(one.get("supercategory", ""))) for one in content["categories"]}
    things: dict[Any, list[Thing]] = defaultdict(list)
    crowds: dict[Any, set[str]] = defaultdict(set)
    for entry in content["annotations"]:
        image, category = entry["image_id"], entry["category_id"]
        if category not in names:
            raise RecordError(f"{path}: annotation {entry.get('id')} is of category {category!r}, which is not there")
        label, group = names[category]
        if entry.get("iscrowd"):
            crowds[image].add(label)
            continue
        box = corners_of(entry.get("bbox"), f"{path}: annotation {entry.get('id')}")
        things[image].append(Thing(box, label, tuple((phrases or {}).get(entry.get("id"), ())), group))
    for image in content["images"]:
        key = image["id"]
        if pictures is not None and key not in pictures:
            continue
        file = str(folder / image["file_name"])
        size = size_of(image, f"{path}: picture {key}")
        ids = (f"coco:{key}",) if phrases is not None else ()
        scene = Scene(str(key), file, size, tuple(things[key]), ids=tuple(dict.fromkeys([*ids, *picture_ids(file)])))
        labels = dict.fromkeys(thing.label for thing in scene.things)
        complete = tuple(label for label in labels if label not in crowds[key])
        yield replace(scene, complete=complete, present=tuple(sorted({*labels, *crowds[key]})))
