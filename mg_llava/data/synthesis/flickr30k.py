"""Flickr30k Entities: sentences whose phrases name boxes."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from mg_llava.data.records.schema import RecordError, show_value
from mg_llava.data.synthesis.readers import SceneReader, read_text
from mg_llava.data.synthesis.reserved import Reserved, reserved_names
from mg_llava.data.synthesis.scenes import BETWEEN_BOXES, Corners, Scene, Thing

_PHRASE = re.compile(r"\[/EN#(\d+)((?:/[^\s/\]]+)+)\s([^\]]*)\]")
_OPENED = "[/EN#"
_MOST_BOXES = 4
"""Of one phrase in a caption."""


@dataclass(frozen=True)
class EntityPhrase:
    """A phrase of a sentence: its words, their place in the plain sentence, and its chain, "0" if it is not seen."""

    text: str
    start: int
    chain: str


@dataclass(frozen=True)
class EntitySentence:
    """A sentence without marks, and its phrases."""

    text: str
    phrases: tuple[EntityPhrase, ...]


@dataclass(frozen=True)
class EntityPicture:
    """Width and height of a picture, and the boxes of each chain, xyxy in pixels."""

    size: tuple[int, int]
    boxes: dict[str, list[Corners]]


class Flickr30kReader(SceneReader):
    """It needs a folder with ``Annotations``, ``Sentences``, ``train.txt``, ``val.txt``, ``test.txt``, and pictures.

    ``train.txt`` and the others hold an id a line.
    """

    kind = "flickr30k"

    def __init__(self, folder: str | Path, images: str | Path) -> None:
        self.folder = Path(folder)
        names = ("train.txt", "val.txt", "test.txt", "Annotations", "Sentences")
        super().__init__(self.kind, [self.folder / name for name in names], images)

    def scenes(self) -> Iterator[Scene]:
        """See :class:`SceneReader`."""
        for name in read_ids(self.folder / "train.txt"):
            picture = read_entities(self.folder / "Annotations" / f"{name}.xml")
            sentences = read_sentences(self.folder / "Sentences" / f"{name}.txt")
            boxes_of_all = dict.fromkeys(box for own in picture.boxes.values() for box in own)
            numbers = {box: place for place, box in enumerate(boxes_of_all)}
            phrases: dict[Corners, list[str]] = {box: [] for box in numbers}
            for phrase in (phrase for sentence in sentences for phrase in sentence.phrases):
                for box in picture.boxes.get(phrase.chain, ()):
                    phrases[box].append(phrase.text)
            things = tuple(Thing(box, "", tuple(phrases[box])) for box in numbers)
            boxes = {chain: [numbers[box] for box in own] for chain, own in picture.boxes.items()}
            captions = tuple(_grounded(sentence, boxes) for sentence in sentences)
            path = str(self.images / f"{name}.jpg")
            yield Scene(name, path, picture.size, things, captions=captions, ids=(f"flickr:{int(name)}",))

    def reserved(self) -> Reserved:
        """See :class:`SceneReader`."""
        names = [name for part in ("val.txt", "test.txt") for name in read_ids(self.folder / part)]
        reserved = reserved_names([f"{name}.jpg" for name in names], [str(self.images)])
        reserved.ids |= {f"flickr:{int(name)}" for name in names}
        return reserved


def read_ids(path: Path) -> list[str]:
    """Ids of a split.

    Raises:
        RecordError: A line is no number.
    """
    names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    for name in names:
        if not name.isdecimal():
            raise RecordError(f"{path}: {name[:80]!r} is no id of a picture; a number a line is needed")
    return names


def read_sentences(path: Path) -> list[EntitySentence]:
    """The sentences of a picture, ``[/EN#chain/type words]`` where a phrase stands.

    Raises:
        RecordError: The file is not there or no text, or a phrase has no end.
    """
    if not path.is_file():
        raise RecordError(f"{path} does not exist; get the sentences of all pictures of the split")
    sentences = [_sentence(line) for line in read_text(path).splitlines() if line.strip()]
    for number, sentence in enumerate(sentences):
        if _OPENED in sentence.text:
            raise RecordError(f"{path}: sentence {number} has a phrase that does not end: {show_value(sentence.text)}")
    return sentences


def read_entities(path: Path) -> EntityPicture:
    """The boxes of a picture by chain; a chain may have none or several, and a box several chains.

    Raises:
        RecordError: The file is not there, damaged, or has no size.
    """
    try:
        root = ElementTree.parse(path).getroot()
        size = (int(root.findtext("size/width") or 0), int(root.findtext("size/height") or 0))
        boxes: dict[str, list[Corners]] = {}
        for entry in root.iter("object"):
            box = entry.find("bndbox")
            if box is None:
                continue
            x1, y1, x2, y2 = (float(box.findtext(name) or "nan") for name in ("xmin", "ymin", "xmax", "ymax"))
            for name in entry.findall("name"):
                boxes.setdefault((name.text or "").strip(), []).append((x1, y1, x2, y2))
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise RecordError(f"{path} cannot be read ({error}); get the annotations again") from error
    if min(size) < 1:
        raise RecordError(f"{path} has no size of the picture; get the annotations again")
    return EntityPicture(size, boxes)


def _sentence(line: str) -> EntitySentence:
    text, phrases, end = "", [], 0
    for match in _PHRASE.finditer(line):
        text += line[end : match.start()]
        phrases.append(EntityPhrase(match[3].strip(), len(text), match[1]))
        text += match[3].strip()
        end = match.end()
    return EntitySentence((text + line[end:]).strip(), tuple(phrases))


def _grounded(sentence: EntitySentence, boxes: dict[str, list[int]]) -> str:
    """A sentence with ``<box:i>`` behind its phrases."""
    parts, end = [], 0
    for phrase in sentence.phrases:
        stop = phrase.start + len(phrase.text)
        own: Sequence[int] = boxes.get(phrase.chain, ())
        parts.append(sentence.text[end:stop])
        if own and len(own) <= _MOST_BOXES:
            parts.append(" " + BETWEEN_BOXES.join(f"<box:{number}>" for number in own))
        end = stop
    return "".join([*parts, sentence.text[end:]])
