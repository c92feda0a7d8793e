"""Pictures with annotated objects, as all readers give them, and the filters that they go through.

Boxes are xyxy in pixels of the original picture.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

Corners = tuple[float, float, float, float]

LEAST_SIDE = 8.0
LEAST_SHARE, LARGEST_SHARE = 0.001, 0.9
MOST_WORDS = 30
SAME_PLACE = 0.7
MOST_THINGS = 40
_DECIMALS = 2
_BOX = re.compile(r"(;? ?)<box:(\d+)>|[<>]")
BETWEEN_BOXES = "; "
"""Stands between boxes of one thing; with a comma, boxes in words of their own could not be told apart."""


@dataclass(frozen=True)
class Thing:
    """One annotated object.

    Attributes:
        box: Where it is.
        label: Its class; empty where there is none.
        phrases: Texts that describe it.
        group: Class of classes, such as COCO's supercategory.
    """

    box: Corners
    label: str = ""
    phrases: tuple[str, ...] = ()
    group: str = ""


@dataclass(frozen=True)
class Link:
    """An annotated relation: numbers of two things, and the words between them."""

    subject: int
    predicate: str
    object: int


@dataclass(frozen=True)
class Scene:
    """A picture and what is annotated in it.

    Attributes:
        key: Its name in its source.
        picture: Path of the file.
        size: Width and height; None where the annotations do not say it.
        things: The objects.
        links: Annotated relations.
        captions: Texts in which ``<box:i>`` stands behind the words for thing i.
        complete: Labels of which every instance is a thing.
        present: Labels of all that is there, groups and what was too small included; empty where that is not known.
        ids: Names that other data sets know the picture by, see ``reserved.picture_ids``.
        source: Name of the data set.
    """

    key: str
    picture: str
    size: tuple[int, int] | None
    things: tuple[Thing, ...]
    links: tuple[Link, ...] = ()
    captions: tuple[str, ...] = ()
    complete: tuple[str, ...] = ()
    present: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    source: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> "Scene":
        """The scene of plain values."""
        things = tuple(
            Thing(_corners(one["box"]), one["label"], tuple(one["phrases"]), one["group"]) for one in found["things"]
        )
        lists = {name: tuple(found[name]) for name in ("captions", "complete", "present", "ids")}
        links = tuple(Link(**link) for link in found["links"])
        width, height = found["size"]
        return cls(found["key"], found["picture"], (width, height), things, links, **lists, source=found["source"])


@dataclass
class Sieve:
    """How many items were read and kept, and why the others were not."""

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def drop(self, reason: str, count: int = 1) -> None:
        """Count items that were read and not kept."""
        if count:
            self.dropped[reason] += count

    def revoke(self, reason: str, count: int = 1) -> None:
        """Drop items that were kept before."""
        self.kept -= count
        self.drop(reason, count)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; reasons in alphabetical order."""
        return {"read": self.read, "kept": self.kept, "dropped": dict(sorted(self.dropped.items()))}


def sift(scene: Scene, things: Sieve, phrases: Sieve, captions: Sieve) -> Scene | None:
    """The scene without objects, phrases and captions of no use, which are counted; None where nothing is left."""
    assert scene.size is not None
    kept: list[Thing] = []
    places: dict[int, int] = {}
    things.read += len(scene.things)
    phrases.read += sum(len(thing.phrases) for thing in scene.things)
    for number, thing in enumerate(scene.things):
        good = tuple(dict.fromkeys(phrase for phrase in map(_clean, thing.phrases) if _is_phrase(phrase)))
        cut = replace(thing, box=clip(thing.box, scene.size), label=_clean(thing.label), phrases=good)
        reason = _fault(thing.box, cut, scene.size, kept)
        if reason:
            things.drop(reason)
            phrases.drop("of an object that was dropped", len(thing.phrases))
            continue
        phrases.drop(f"no words, the same again, or more than {MOST_WORDS} words", len(thing.phrases) - len(good))
        phrases.kept += len(good)
        places[number] = len(kept)
        kept.append(cut)
    things.kept += len(kept)
    texts = tuple(text for caption in scene.captions if (text := _moved_caption(caption, places)))
    captions.read += len(scene.captions)
    captions.kept += len(texts)
    captions.drop("without words for an object", len(scene.captions) - len(texts))
    if not kept:
        return None
    gone = {_clean(thing.label) for number, thing in enumerate(scene.things) if number not in places}
    return replace(
        scene,
        things=tuple(kept),
        links=_moved_links(scene.links, places),
        captions=texts,
        complete=tuple(label for label in map(_clean, scene.complete) if label not in gone),
    )


def clip(box: Sequence[float], size: tuple[int, int]) -> Corners:
    """A box within a picture, to a hundredth of a pixel; zeros where it is not finite."""
    if not all(map(math.isfinite, box)):
        return 0.0, 0.0, 0.0, 0.0
    x1, y1, x2, y2 = (
        round(min(max(value, 0.0), float(side)), _DECIMALS) for value, side in zip(box, size * 2, strict=True)
    )
    return x1, y1, x2, y2


def area(box: Sequence[float]) -> float:
    """Pixels of a box; 0 where it is empty."""
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def shared_area(first: Sequence[float], second: Sequence[float]) -> float:
    """Pixels that two boxes have in common."""
    low, high = map(max, first[:2], second[:2]), map(min, first[2:], second[2:])
    return area([*low, *high])


def box_overlap(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union; 0 where both are empty."""
    shared = shared_area(first, second)
    union = area(first) + area(second) - shared
    return shared / union if union else 0.0


def _fault(raw: Sequence[float], thing: Thing, size: tuple[int, int], others: Sequence[Thing]) -> str:
    """Why a thing is of no use; empty where it is. ``others`` are those that were kept before."""
    box, whole = thing.box, size[0] * size[1]
    if not all(map(math.isfinite, raw)) or raw[2] <= raw[0] or raw[3] <= raw[1]:
        return "a box that is empty or not finite"
    if not area(box):
        return "a box outside of the picture"
    if min(box[2] - box[0], box[3] - box[1]) < LEAST_SIDE:
        return f"a side of less than {LEAST_SIDE:g} pixels"
    if area(box) < LEAST_SHARE * whole:
        return f"less than {LEAST_SHARE:.1%} of the picture"
    if area(box) > LARGEST_SHARE * whole:
        return f"more than {LARGEST_SHARE:.0%} of the picture"
    if not thing.label and not thing.phrases:
        return "no words"
    if len(others) == MOST_THINGS:
        return f"more than {MOST_THINGS} objects in the picture"
    if any(_have_words(thing, other) and box_overlap(box, other.box) >= SAME_PLACE for other in others):
        return "the same words at the same place"
    return ""


def _have_words(first: Thing, second: Thing) -> bool:
    """Whether two things have a phrase in common, or none and the same label."""
    common = set(map(str.lower, first.phrases)) & set(map(str.lower, second.phrases))
    return bool(common) or (not first.phrases and not second.phrases and first.label == second.label)


def _moved_links(links: Sequence[Link], places: Mapping[int, int]) -> tuple[Link, ...]:
    kept = [link for link in links if {link.subject, link.object} <= places.keys() and _clean(link.predicate)]
    return tuple(Link(places[link.subject], _clean(link.predicate), places[link.object]) for link in kept)


def _moved_caption(caption: str, places: Mapping[int, int]) -> str:
    """A caption with the new numbers; empty where none of its objects is left."""

    def move(match: re.Match[str]) -> str:
        if match[2] is None:
            return " "  # a mark that stands for something else
        place = places.get(int(match[2]))
        return "" if place is None else f"{match[1]}<box:{place}>"

    moved = _BOX.sub(move, caption)
    return moved if "<box:" in moved else ""


def _clean(text: str) -> str:
    """A text in one line, without marks that stand for something else."""
    return " ".join(text.replace("<", " ").replace(">", " ").split())


def _is_phrase(text: str) -> bool:
    return bool(text) and len(text.split()) <= MOST_WORDS and any(map(str.isalnum, text))


def _corners(values: Sequence[float]) -> Corners:
    x1, y1, x2, y2 = map(float, values)
    return x1, y1, x2, y2
