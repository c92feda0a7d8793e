"""What all readers of annotations have in common."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from mg_llava.data.records.schema import RecordError
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
    except (TypeError, ValueError, KeyError) as error:
        raise RecordError(f"{where}: the box is {str(found)[:80]}; x, y, width and height are needed") from error
    return x, y, x + width, y + height


def text_of(value: Any) -> str:
    """A text of annotations that were written by Python 2, where UTF-8 was read as Latin-1."""
    text = str(value or "")
    try:
        return text.encode("latin1").decode("utf-8")
    except UnicodeError:
        return text
