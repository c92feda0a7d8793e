"""The tasks: which samples a scene has for each of them, and their questions and answers.

A sample shows objects in three ways: text, coordinates (``<box:i>``) and picture (``<object:i>``); ``i`` counts the
objects that its record has.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple

from mg_llava.data.synthesis.relations import describe_relation, relations_of
from mg_llava.data.synthesis.scenes import BETWEEN_BOXES, Scene, box_overlap

_LETTERS = "ABCD"
_LEAST_OPTIONS = 3
_APART = 0.5
_MOST_RELATED = 10
_MOST_LISTED = 10
_BOX = re.compile(r"<box:(\d+)>")


class View:
    """A scene as tasks look at it.

    Args:
        scene: The scene, sifted.
        vocabulary: All labels that its pictures were searched for.

    Attributes:
        names: For each thing the texts that no other thing of the scene has.
        texts: For each thing the texts that describe it.
    """

    def __init__(self, scene: Scene, vocabulary: Sequence[str] = ()) -> None:
        self.scene, self.vocabulary = scene, vocabulary
        self._rivals: dict[int, list[int]] = {}
        carriers: dict[str, set[int]] = {}
        for number, thing in enumerate(scene.things):
            for text in (*thing.phrases, thing.label):
                carriers.setdefault(text.lower(), set()).add(number)
        self.names: list[list[str]] = []
        self.texts: list[list[str]] = []
        for thing in scene.things:
            own = [phrase for phrase in thing.phrases if len(carriers[phrase.lower()]) == 1]
            is_alone = thing.label and len(carriers[thing.label.lower()]) == 1
            is_alone = is_alone and (not scene.present or thing.label in scene.complete)
            self.names.append(own or ([f"the {thing.label}"] if is_alone else []))
            self.texts.append(list(thing.phrases) or ([thing.label] if thing.label else []))

    def rivals(self, number: int) -> list[int]:
        """Things at other places, those that are most alike first: in class, group, then shape."""
        if number in self._rivals:
            return list(self._rivals[number])
        things = self.scene.things
        one = things[number]

        def unlike(other: int) -> tuple[bool, bool, float, int]:
            two = things[other]
            same_label, same_group = one.label == two.label != "", one.group == two.group != ""
            return not same_label, not same_group, abs(_aspect(one.box) - _aspect(two.box)), other

        apart = [other for other in range(len(things)) if box_overlap(one.box, things[other].box) < _APART]
        self._rivals[number] = sorted(apart, key=unlike)
        return list(self._rivals[number])


Draft = tuple[Any, ...]
"""What a sample of a task is about: numbers of things, and words."""


@dataclass
class Worded:
    """What a record says.

    Attributes:
        fields: Words for the places of templates.
        things: Numbers of the objects that it has, in the order of their placeholders.
    """

    fields: dict[str, str] = field(default_factory=dict)
    things: list[int] = field(default_factory=list)

    def mark(self, kind: str, number: int) -> str:
        """The placeholder of a thing, which the record has from now on."""
        if number not in self.things:
            self.things.append(number)
        return f"<{kind}:{self.things.index(number)}>"


class Task(NamedTuple):
    """A kind of question."""

    choices: Callable[[View], list[Draft]]
    """All samples that a scene has, always in the same order."""
    write: Callable[[View, Draft, Random, Mapping[str, str]], Worded]
    """A sample in words; the mapping has other words for some texts."""


def _named(view: View) -> list[Draft]:
    return [(number, text) for number, texts in enumerate(view.names) for text in texts]


def _described(view: View) -> list[Draft]:
    return [(number, text) for number, texts in enumerate(view.texts) for text in texts]


def _each(view: View) -> list[Draft]:
    return [(number,) for number in range(len(view.scene.things))]


def _shown(*kinds: str) -> Callable[[View, Draft, Random, Mapping[str, str]], Worded]:
    """One thing by some of: its text, box, object picture."""

    def write(view: View, choice: Draft, rng: Random, words: Mapping[str, str]) -> Worded:
        sample = Worded({"text": words.get(choice[1], choice[1])} if "text" in kinds else {})
        for kind in kinds:
            if kind != "text":
                sample.fields[kind] = sample.mark(kind, choice[0])
        return sample

    return write


def _with_rivals(choices: Callable[[View], list[Draft]], least: int) -> Callable[[View], list[Draft]]:
    def found(view: View) -> list[Draft]:
        enough = {number for number in range(len(view.scene.things)) if len(view.rivals(number)) >= least}
        return [choice for choice in choices(view) if choice[0] in enough]

    return found


def _write_options(view: View, choice: Draft, rng: Random, words: Mapping[str, str]) -> Worded:
    """Object pictures in any order; the first ones of the rivals are the hardest."""
    number = choice[0]
    rivals = view.rivals(number)[: rng.randint(_LEAST_OPTIONS, len(_LETTERS)) - 1]
    place = rng.randint(0, len(rivals))
    rng.shuffle(rivals)
    sample = Worded(things=[*rivals[:place], number, *rivals[place:]])
    options = " ".join(f"{_LETTERS[i]} {sample.mark('object', one)}" for i, one in enumerate(sample.things))
    sample.fields = {"options": options, "letter": _LETTERS[place], "box": sample.mark("box", number)}
    if len(choice) > 1:
        sample.fields["text"] = words.get(choice[1], choice[1])
    return sample


def _write_check(view: View, choice: Draft, rng: Random, words: Mapping[str, str]) -> Worded:
    number, is_true = choice[0], rng.random() < 0.5
    other = number if is_true else rng.choice(view.rivals(number)[: len(_LETTERS) - 1])
    sample = Worded()
    sample.fields = {"box": sample.mark("box", number), "object": sample.mark("object", other)}
    sample.fields["answer"] = "Yes" if is_true else "No"
    return sample


def _related(view: View) -> list[Draft]:
    """Ordered pairs with an annotated relation, or with one of place or size."""
    things = view.scene.things
    annotated: list[Draft] = [(link.subject, link.object, link.predicate) for link in view.scene.links]
    annotated = [choice for choice in annotated if all(view.texts[number] for number in choice[:2])]
    numbers = range(min(len(things), _MOST_RELATED))
    pairs = ((i, j) for i in numbers for j in numbers if i != j)
    return [*annotated, *((i, j, "") for i, j in pairs if relations_of(things[i].box, things[j].box))]


def _write_relation(view: View, choice: Draft, rng: Random, words: Mapping[str, str]) -> Worded:
    first, second, predicate = choice
    things, sample = view.scene.things, Worded()
    sample.fields = {"first": sample.mark("box", first), "second": sample.mark("box", second)}
    said = f"{view.texts[first][0]} {predicate} {view.texts[second][0]}" if predicate else ""
    sample.fields["relation"] = said or describe_relation(relations_of(things[first].box, things[second].box))
    return sample


def _linked(view: View) -> list[Draft]:
    """Annotated relations in which subject and predicate have one object."""
    found: dict[tuple[int, str], set[int]] = {}
    for link in view.scene.links:
        found.setdefault((link.subject, link.predicate), set()).add(link.object)
    alone = [(subject, predicate, *objects) for (subject, predicate), objects in found.items() if len(objects) == 1]
    return [choice for choice in alone if choice[0] != choice[2]]


def _write_link(view: View, choice: Draft, rng: Random, words: Mapping[str, str]) -> Worded:
    sample = Worded({"predicate": choice[1]})
    sample.fields |= {"box": sample.mark("box", choice[0]), "other": sample.mark("box", choice[2])}
    return sample


def _listed(view: View) -> list[Draft]:
    counts = {label: _instances(view, label) for label in view.scene.complete}
    return [(label,) for label, numbers in counts.items() if 1 <= len(numbers) <= _MOST_LISTED]


def _write_list(view: View, choice: Draft, rng: Random, words: Mapping[str, str]) -> Worded:
    numbers = sorted(_instances(view, choice[0]), key=lambda one: view.scene.things[one].box)
    sample = Worded({"label": choice[0], "number": str(len(numbers))})
    sample.fields["boxes"] = BETWEEN_BOXES.join(sample.mark("box", number) for number in numbers)
    return sample


def _captioned(view: View) -> list[Draft]:
    return [(number,) for number in range(len(view.scene.captions))]


def _write_caption(view: View, choice: Draft, rng: Random, words: Mapping[str, str]) -> Worded:
    sample = Worded()
    caption = view.scene.captions[choice[0]]
    sample.fields["caption"] = _BOX.sub(lambda match: sample.mark("box", int(match[1])), caption)
    return sample


def _asked_for(view: View) -> list[Draft]:
    """Each complete label, and as many that are not there; those are drawn when they are written."""
    labels = [label for label in view.scene.complete if _instances(view, label)]
    answers = ("Yes", "No") if set(view.vocabulary) - set(view.scene.present) else ("Yes",)
    return [(label, answer) for label in labels if view.scene.present for answer in answers]


def _write_presence(view: View, choice: Draft, rng: Random, words: Mapping[str, str]) -> Worded:
    label, answer = choice
    if answer == "No":
        label = rng.choice([word for word in view.vocabulary if word not in view.scene.present])
    return Worded({"label": label, "answer": answer})


def _write_count(view: View, choice: Draft, rng: Random, words: Mapping[str, str]) -> Worded:
    return Worded({"label": choice[0], "number": str(len(_instances(view, choice[0])))})


def _instances(view: View, label: str) -> list[int]:
    return [number for number, thing in enumerate(view.scene.things) if thing.label == label]


def _aspect(box: Sequence[float]) -> float:
    return (box[2] - box[0]) / (box[3] - box[1])


TASKS: dict[str, Task] = {
    "text_to_box": Task(_named, _shown("text", "box")),
    "box_to_text": Task(_described, _shown("text", "box")),
    "image_to_text": Task(_described, _shown("text", "object")),
    "image_to_box": Task(_each, _shown("object", "box")),
    "text_to_image": Task(_with_rivals(_named, _LEAST_OPTIONS - 1), _write_options),
    "box_to_image": Task(_with_rivals(_each, _LEAST_OPTIONS - 1), _write_options),
    "box_is_image": Task(_with_rivals(_each, 1), _write_check),
    "box_image_to_text": Task(_described, _shown("text", "box", "object")),
    "text_image_to_box": Task(_named, _shown("text", "object", "box")),
    "relation": Task(_related, _write_relation),
    "relation_to_box": Task(_linked, _write_link),
    "list": Task(_listed, _write_list),
    "caption": Task(_captioned, _write_caption),
    "presence": Task(_asked_for, _write_presence),
    "count": Task(_listed, _write_count),
}
"""All tasks by name, in the order in which reports have them."""
