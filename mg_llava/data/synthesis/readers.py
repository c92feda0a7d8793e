"""What all readers of annotations have in common."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from mg_llava.data.records.schema import RecordError, show_value
from mg_llava.data.synthesis.reserved import Reserved
from mg_llava.data.synthesis.scenes import Corners, Scene
from mg_llava.work.json_text import explain_json


class SceneReader(ABC):
    """Reads the annotations of one data set.

    Attributes:
        name: Unique among the readers of a run; stands in ids of records.
        files: What is read, for noticing that it changed.
        vocabulary: All labels that its pictures were searched for; empty where that is not known.
    """

    kind: ClassVar[str]
    vocabulary: tuple[str, ...] = ()

    def __init__(self, name: str, files: list[Path], images: str | Path) -> None:
        self.name, self.files, self.images = name, files, Path(images)
        for file in files:
            if not file.exists():
                raise FileNotFoundError(f"{self.kind}: {file} does not exist; {type(self).__doc__}")
        if not self.images.is_dir():
            raise FileNotFoundError(f"{self.kind}: picture folder {images} does not exist; check the path")

    @abstractmethod
    def scenes(self) -> Iterator[Scene]:
        """The pictures for training with their objects, always in the same order.

        Raises:
            RecordError: A file is malformed; the message names file and entry.
        """

    def reserved(self) -> Reserved:
        """The data set's own test pictures."""
        return Reserved()


def load_plain_json(path: Path, without: str = "") -> Any:
    """Content of a JSON file; objects lose the key ``without``, such as polygons that would fill the memory.

    Raises:
        RecordError: It is no JSON.
    """

    def lighten(found: dict[str, Any]) -> dict[str, Any]:
        found.pop(without, None)
        return found

    try:
        with path.open(encoding="utf-8-sig") as file:
            return json.load(file, object_hook=lighten)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path} is truncated or not JSON: {explain_json(error)}; get it again") from error


def entries_of(found: Any, where: str, **kinds: Any) -> list[Mapping[str, Any]]:
    """The objects of a list of annotations, each with values of these kinds.

    Raises:
        RecordError: It is something else; the message names the entry.
    """
    if not isinstance(found, list):
        raise RecordError(f"{where}: found {show_value(found)}; a list is needed")
    for number, entry in enumerate(found):
        check_entry(entry, f"{where}, entry {number}", **kinds)
    return found


def check_entry(found: Any, where: str, **kinds: Any) -> None:
    """See whether an annotation is an object that has values of these kinds.

    Raises:
        RecordError: It is not.
    """
    if not isinstance(found, Mapping):
        raise RecordError(f"{where}: found {show_value(found)}; an object is needed")
    wrong = [name for name, kind in kinds.items() if not isinstance(found.get(name), kind)]
    if wrong:
        raise RecordError(f"{where}: {wrong[0]} is {show_value(found.get(wrong[0]))}; get the file again")


def size_of(found: Mapping[str, Any], where: str) -> tuple[int, int]:
    """Width and height of a picture.

    Raises:
        RecordError: They are not said.
    """
    try:
        return int(found["width"]), int(found["height"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        sides = f"width is {show_value(found.get('width'))}, height {show_value(found.get('height'))}"
        raise RecordError(f"{where}: {sides}; pixels are needed") from error


def read_text(path: Path) -> str:
    """Text of a UTF-8 file.

    Raises:
        RecordError: It is in another encoding.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecordError(f"{path} is not UTF-8 ({error}); write it in that encoding") from error


def corners_of(found: Any, where: str) -> Corners:
    """The box xyxy of ``[x, y, width, height]``, or of an object with these (or ``w`` and ``h``).

    Raises:
        RecordError: It is no box.
    """
    try:
        if isinstance(found, Mapping):
            long, short = ("x", "y", "width", "height"), ("x", "y", "w", "h")
            found = [found[name] for name in (long if "width" in found else short)]
        x, y, width, height = map(float, found)
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise RecordError(f"{where}: the box is {str(found)[:80]}; x, y, width and height are needed") from error
    return x, y, x + width, y + height


def text_of(value: Any) -> str:
    """A text of annotations that were written by Python 2, where UTF-8 was read as Latin-1."""
    text = str(value or "")
    try:
        return text.encode("latin1").decode("utf-8")
    except UnicodeError:
        return text
