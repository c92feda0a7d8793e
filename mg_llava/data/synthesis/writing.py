"""From drawn samples to records: templates, ids, paths, and other words for texts."""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from random import Random
from typing import Any

from mg_llava.data.records.open import TextRecords
from mg_llava.data.synthesis.scenes import Scene
from mg_llava.data.synthesis.shares import Drawn
from mg_llava.data.synthesis.tasks import TASKS, Draft, View
from mg_llava.tokens import IMAGE_PLACEHOLDER

LEAST_TEMPLATES = 15
_NAMES = list(TASKS)


@lru_cache
def load_templates() -> Mapping[str, Mapping[str, Sequence[str]]]:
    """Questions and answers of each task, with ``{text}``, ``{box}``, ``{object}``... where the sample's words go."""
    return json.loads(resources.files("mg_llava.data.synthesis").joinpath("templates.json").read_text("utf-8"))


@dataclass
class Writer:
    """What all records of a run depend on.

    Attributes:
        scenes: The sifted scenes, as plain values.
        vocabularies: Labels that a source's pictures were searched for, by its name.
        seed: Of templates, letters and rivals.
        root: Folder that paths of pictures are relative to.
        words: Other words for texts.
    """

    scenes: TextRecords
    vocabularies: Mapping[str, Sequence[str]]
    seed: int
    root: str
    words: Mapping[str, str] = field(default_factory=dict)

    def view(self, number: int) -> View:
        """Scene ``number``."""
        scene = Scene.from_dict(self.scenes.at(number))
        return View(scene, self.vocabularies.get(scene.source, ()))

    def record(self, view: View, task: str, number: int, choice: Draft) -> dict[str, Any]:
        """Sample ``number`` that a scene has of a task, as a record."""
        scene = view.scene
        name = f"{scene.source}/{scene.key}/{task}/{number}"
        rng = Random(f"{self.seed}/{name}")
        templates = load_templates()[task]
        question, answer = rng.choice(templates["questions"]), rng.choice(templates["answers"])
        sample = TASKS[task].write(view, choice, rng, self.words)
        asked = f"{IMAGE_PLACEHOLDER}\n{question.format_map(sample.fields)}"
        turns = [("human", asked), ("gpt", answer.format_map(sample.fields))]
        record: dict[str, Any] = {
            "id": name,
            "image": os.path.relpath(scene.picture, self.root),
            "conversations": [{"from": role, "value": text} for role, text in turns],
        }
        things = [scene.things[one] for one in sample.things]
        if things:
            record["objects"] = [{"box": list(one.box), "label": one.label} for one in things]
        return record


def count_choices(writer: Writer, numbers: Sequence[int]) -> list[list[int]]:
    """For each scene the numbers of samples that it has of all tasks."""
    views = map(writer.view, numbers)
    return [[len(task.choices(view)) for task in TASKS.values()] for view in views]


def word_records(writer: Writer, drawn: Drawn) -> dict[str, Any]:
    """The ``lines`` of drawn samples, and ``counts`` and ``characters`` of each task."""
    lines: list[str] = []
    counts: Counter[str] = Counter()
    characters: Counter[str] = Counter()
    for scene, samples in drawn:
        view = writer.view(scene)
        known: dict[str, list[Draft]] = {}
        for task, number in samples:
            name = _NAMES[task]
            choices = known.setdefault(name, TASKS[name].choices(view))
            record = writer.record(view, name, number, choices[number])
            lines.append(json.dumps(record, ensure_ascii=False))
            counts[name] += 1
            characters[name] += sum(len(turn["value"]) for turn in record["conversations"])
    return {"lines": lines, "counts": counts, "characters": characters}


def texts_of_samples(writer: Writer, drawn: Drawn) -> list[str]:
    """The texts that drawn samples name objects by."""
    texts: dict[str, None] = {}
    for scene, samples in drawn:
        view = writer.view(scene)
        for task, number in samples:
            if "text" in _NAMES[task]:
                choice = TASKS[_NAMES[task]].choices(view)[number]
                texts[choice[1]] = None
    return list(texts)
