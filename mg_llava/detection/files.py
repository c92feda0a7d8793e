"""Boxes that are there already, or that need no tags: annotation files, box files, and proposals.

Box files know pictures by record id, the others by path, of which the end is enough where it is unique.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from mg_llava.data.boxes.store import open_box_store
from mg_llava.data.records.schema import NO_BOXES, BoxRecord, RecordError, make_box_record
from mg_llava.detection.boxes import centers_to_pixels
from mg_llava.detection.detector import Detector, Size
from mg_llava.detection.tags import PictureName, Tags, check_missing
from mg_llava.registry import DETECTORS, PROPOSERS
from mg_llava.work.folders import walk_files

_SHOWN = 4
_FAR = 2
"""Labels may lie a little outside of their picture, but no share is as large as this."""


@dataclass(frozen=True)
class NotFound(BoxRecord):
    """No boxes, because the file does not know the picture."""


NOT_FOUND = NotFound(NO_BOXES.boxes, NO_BOXES.scores, ())


class NamedBoxes(Detector):
    """Base of detectors that look a picture up instead of looking at it.

    Args:
        source: Name of the file, for messages.
        missing: ``error`` refuses pictures that the file lacks, ``empty`` gives them no boxes; a box run counts them.

    Raises:
        ValueError: ``missing`` is unknown.
    """

    needs_tags = False
    needs_names = True

    def __init__(self, source: str | Path, missing: str) -> None:
        self.source, self.missing = str(source), check_missing(missing)

    def prepare(self, image: Image.Image) -> None:
        """Nothing."""

    def look_up(self, name: PictureName, size: Size) -> BoxRecord | None:
        """Boxes of a picture, or None where the file lacks it."""
        raise NotImplementedError

    def detect(
        self, prepared: Sequence[Any], sizes: Sequence[Size], tags: Sequence[Tags], names: Sequence[PictureName]
    ) -> list[BoxRecord]:
        """See :class:`Detector`.

        Raises:
            RecordError: The file lacks a picture or is of pictures of another size.
        """
        found = [self.look_up(name, size) for name, size in zip(names, sizes, strict=True)]
        for name, record in zip(names, found, strict=True):
            if record is None and self.missing == "error":
                raise RecordError(f"{self.source} has no boxes for '{name}'; add them, or use missing='empty'")
        return [NOT_FOUND if record is None else record for record in found]


@DETECTORS.register_module()
class BoxFile(NamedBoxes):
    """Boxes of a box file in the reference's layout, or of a box store, by record id.

    Args:
        path: See ``open_box_store``.
        missing: See :class:`NamedBoxes`.

    Raises:
        FileNotFoundError: There is no such file.
        RecordError: The file is malformed.
    """

    def __init__(self, path: str | Path, missing: str = "error") -> None:
        super().__init__(path, missing)
        self._store = open_box_store(path)

    def look_up(self, name: PictureName, size: Size) -> BoxRecord | None:
        """See :class:`NamedBoxes`."""
        return self._store.find(name.id)


@DETECTORS.register_module()
class CocoBoxes(NamedBoxes):
    """Boxes of a COCO file, ground truth or detections: by file name, or by COCO's image id.

    Args:
        path: JSON with ``images``, ``categories`` and ``annotations``.
        results: JSON list of ``{"image_id", "category_id", "bbox", "score"}`` to take instead of the annotations.
        crowd: Whether annotations of groups (``iscrowd``) are taken.
        missing: See :class:`NamedBoxes`.

    Raises:
        FileNotFoundError: A file does not exist.
        RecordError: A file is malformed.
    """

    def __init__(
        self, path: str | Path, results: str | Path | None = None, crowd: bool = False, missing: str = "error"
    ) -> None:
        super().__init__(results or path, missing)
        try:
            content = _read_json(path)
            annotations = content["annotations"] if results is None else _read_json(results)
            names = {category["id"]: str(category["name"]) for category in content["categories"]}
            unlike = [one for one in content["categories"] if str(one["name"]) != names[one["id"]]]
            self._images = {image["id"]: image for image in content["images"]}
            twice = [key for key, count in Counter(image["id"] for image in content["images"]).items() if count > 1]
            self._boxes: dict[Any, list[tuple[list[float], float, str]]] = {image: [] for image in self._images}
            strays: list[str] = []
            for entry in annotations:
                known = {"image_id": self._images, "category_id": names}
                strays += [f"{key} {entry[key]!r}" for key, there in known.items() if entry[key] not in there]
                if not strays and (crowd or not entry.get("iscrowd")):
                    left, top, width, height = map(float, entry["bbox"])
                    box = [left, top, left + width, top + height]
                    found = (box, float(entry.get("score", 1.0)), names[entry["category_id"]])
                    self._boxes[entry["image_id"]].append(found)
            files = [(str(image["file_name"]), key) for key, image in self._images.items()]
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise RecordError(f"{self.source} is not in COCO's format ({type(error).__name__}: {error})") from error
        if strays:
            raise RecordError(
                f"{self.source} has boxes of {strays[0]}, which {path} does not name; give the file of images and "
                "categories that these boxes belong to"
            )
        if twice:
            raise RecordError(f"{self.source}: id {twice[0]!r} stands for several images; give each an id of its own")
        if unlike:
            raise RecordError(f"{self.source}: category {unlike[0]['id']!r} has several names; leave one of them")
        self._find = _Names(files, self.source)

    def look_up(self, name: PictureName, size: Size) -> BoxRecord | None:
        """See :class:`NamedBoxes`.

        Raises:
            RecordError: The file is of a picture of another size, or has several of that name.
        """
        keys = (self._find(name.path), name.id, int(name.id) if name.id.isdecimal() else None)
        key = next((key for key in keys if key is not None and key in self._images), None)
        if key is None:
            return None
        image = self._images[key]
        annotated = (image.get("width", size[0]), image.get("height", size[1]))
        if annotated != size:
            raise RecordError(f"{self.source}: '{name}' is annotated as {annotated}, the picture has {size} pixels")
        boxes, scores, labels = zip(*self._boxes[key], strict=True) if self._boxes[key] else ((), (), ())
        return make_box_record(boxes, scores, labels, f"{self.source}, {name}")


@DETECTORS.register_module()
class YoloBoxes(NamedBoxes):
    """Boxes of YOLO text files: ``class x y width height [score]`` a line, or a polygon, in shares of the picture.

    Pictures without a file have no objects, as YOLO has it, unless ``missing="error"``.

    Args:
        folder: Folder of the ``.txt`` files, named as the pictures.
        classes: Names of the classes in order: a list, or a text file with a name a line.
        missing: See :class:`NamedBoxes`.

    Raises:
        FileNotFoundError: The folder or the list of classes does not exist, or there is no text file in the folder.
    """

    def __init__(
        self, folder: str | Path, classes: str | Path | Sequence[str] | None = None, missing: str = "empty"
    ) -> None:
        super().__init__(folder, missing)
        classes = classes if classes is not None else Path(folder) / "classes.txt"
        if isinstance(classes, str | Path):
            classes = [line.strip() for line in Path(classes).read_text(encoding="utf-8-sig").splitlines()]
        self.classes = list(classes)
        paths = [Path(folder, name) for name in walk_files(folder) if name.endswith(".txt")]
        paths = [path for path in paths if path.name != "classes.txt"]
        if not paths:
            raise FileNotFoundError(f"{folder} holds no YOLO text files; check the folder")
        named = [(path.relative_to(folder).with_suffix("").as_posix(), path) for path in paths]
        self._find = _Names(named, self.source)

    def look_up(self, name: PictureName, size: Size) -> BoxRecord | None:
        """See :class:`NamedBoxes`.

        Raises:
            RecordError: The file is malformed, or there are several of that name.
        """
        stem = PurePosixPath(name.path or name.id)
        path = self._find(stem.as_posix()) or self._find(stem.with_suffix("").as_posix())
        if path is None:
            return None
        rows = []
        for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
            try:
                if line.strip():
                    rows.append(self._parse([float(value) for value in line.split()]))
            except (ValueError, IndexError) as error:
                raise RecordError(f"{path}, line {number}: {line[:80]!r} is no YOLO label ({error})") from error
        boxes, scores, labels = zip(*rows, strict=True) if rows else ((), (), ())
        placed = centers_to_pixels(np.array(boxes).reshape(-1, 4), size)
        return make_box_record(placed, scores, labels, f"{path} of {name}")

    def _parse(self, values: list[float]) -> tuple[list[float], float, str]:
        """Center and size, score, label."""
        if values[0] not in range(len(self.classes)):
            raise ValueError(f"class {values[0]:g}; a number from 0 to {len(self.classes) - 1} is needed")
        label = self.classes[int(values[0])]
        if len(values) == 6 and not 0 <= values[5] <= 1:
            raise ValueError(f"score {values[5]:g}; scores lie in 0..1")
        if len(values) != 6 and (len(values) < 5 or len(values) % 2 == 0):
            raise ValueError(f"{len(values)} numbers; 5, 6, or a class and the corners of a polygon are needed")
        if max(map(abs, values[1:])) > _FAR:
            raise ValueError("shares of the picture, 0..1, are needed; divide pixels by its width and height")
        if len(values) in (5, 6):
            return values[1:5], values[5] if len(values) == 6 else 1.0, label
        points = np.array(values[1:]).reshape(-1, 2)
        low, high = points.min(axis=0), points.max(axis=0)
        return [*(low + high) / 2, *(high - low)], 1.0, label


@DETECTORS.register_module()
class ProposalDetector(Detector):
    """Boxes of a proposal step that takes one picture and needs no tags.

    Args:
        proposer: The step, or its config.
    """

    needs_tags = False

    def __init__(self, proposer: Any = None) -> None:
        proposer = proposer or {"type": "mg_llava.ConnectedComponentProposals"}
        self.proposer = PROPOSERS.build(dict(proposer)) if isinstance(proposer, Mapping) else proposer

    def prepare(self, image: Image.Image) -> BoxRecord:
        """The boxes, as they are found on the CPU."""
        boxes, scores, labels = self.proposer(image)
        return make_box_record(boxes, scores, labels, "proposals")

    def detect(
        self, prepared: Sequence[Any], sizes: Sequence[Size], tags: Sequence[Tags], names: Sequence[PictureName]
    ) -> list[BoxRecord]:
        """See :class:`Detector`."""
        return list(prepared)


class _Names:
    """A look-up of entries of a file by the path that a picture is known by.

    Of entries that end alike, the one counts that shares the most folders with the path.

    Args:
        entries: Path and value of each; a path may come twice.
        source: Name of the file or folder, for messages.
    """

    def __init__(self, entries: Iterable[tuple[str, Any]], source: str) -> None:
        self._source = source
        self._by_name: dict[str, list[tuple[tuple[str, ...], Any]]] = defaultdict(list)
        for path, value in entries:
            parts = PurePosixPath(path).parts
            self._by_name["".join(parts[-1:])].append((parts, value))

    def __call__(self, path: str) -> Any:
        """The value of a path; None where there is none.

        Raises:
            RecordError: Several entries fit equally well.
        """
        parts = PurePosixPath(path).parts
        found = self._by_name.get(parts[-1], []) if parts else []
        shared = [_shared_end(parts, own) for own, _ in found]
        best = [entry for entry, count in zip(found, shared, strict=True) if count == max(shared)]
        best = [entry for entry in best if entry[0] == parts] or best
        if len(best) > 1:
            names = ", ".join("/".join(own) for own, _ in best[:_SHOWN])
            raise RecordError(
                f"{self._source} has {len(best)} entries that may be {path!r}: {names}; name pictures by paths that "
                "tell them apart, such as train/... and val/..."
            )
        return best[0][1] if best else None


def _shared_end(first: tuple[str, ...], second: tuple[str, ...]) -> int:
    """How many parts of two paths are the same, from the end."""
    same = [one == other for one, other in zip(reversed(first), reversed(second), strict=False)]
    return [*same, False].index(False)


def _read_json(path: str | Path) -> Any:
    if not Path(path).is_file():
        raise FileNotFoundError(f"file {path} does not exist")
    return json.loads(Path(path).read_text(encoding="utf-8-sig"))
