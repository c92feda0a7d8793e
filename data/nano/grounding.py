"""Records about regions of the miniature's pictures: words, coordinates, object images and names of boxes.

Scenes have two to five digits, in a third of them two or three of one class, and one to four distractors, all about in
the middle of their cells. A phrase names exactly one mark: ``the 7`` where there is one, else ``the leftmost 7`` and
the like. ``python data/nano/grounding.py`` makes what ``make_data.py`` makes, if it is not there, and writes records,
pictures and box files into ``generated/grounding``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import language
import made
import numpy as np
import scenes

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]
from mg_llava.data.text.coordinates import BoxText  # noqa: E402

OUT = HERE / "generated" / "grounding"
BOX_TEXT = BoxText("kosmos2")
"""Coordinates are two words: the cells of a grid of 32 x 32 that the corners are in."""
SIDE = 20
"""Side of a region in canvas pixels; no mark is higher."""
SPREAD = 0.15
"""How far marks lie from the middles of their cells, as a share of what there is room for."""
REPEAT = 1 / 3
FORMAT = 11
"""Changes with the data; folders of another one are made again."""
LETTERS = "ABC"
TURNS = 6
Layout = list[tuple[int, int, int, int]]
Pair = tuple[str, str]
_ENDS: dict[str, tuple[int, Callable[[Sequence[int]], int]]] = {
    "leftmost": (0, min),
    "rightmost": (0, max),
    "topmost": (1, min),
}


def sample_layout(rng: np.random.Generator, rows: list[int], columns: list[int], repeat: float = REPEAT) -> Layout:
    """Two to five digits, at most one a row and column among them, and one to four distractors.

    With a chance of ``repeat`` two or three of the digits are of one class, else all are different.
    """
    count = int(rng.integers(2, 6))
    digits = rng.permutation(10)[:count]
    if rng.random() < repeat:
        digits[1 : int(rng.integers(2, 4))] = digits[0]
    places = zip(rng.permutation(rows)[:count], rng.permutation(columns)[:count], strict=True)
    layout = [
        (int(digit), int(row), int(column), int(rng.integers(3)))
        for digit, (row, column) in zip(digits, places, strict=True)
    ]
    taken = {(row, column) for _, row, column, _ in layout}
    wanted = len(layout) + int(rng.integers(1, 5))
    while len(layout) < wanted:
        cell = (int(rng.choice(rows)), int(rng.choice(columns)))
        if cell not in taken:
            taken.add(cell)
            layout.append((-1, *cell, int(rng.integers(3))))
    return layout


def region(x: float, y: float, scale: float) -> tuple[float, float, float, float]:
    """The square around a point in original pixels, of which a canvas pixel is ``1 / scale``."""
    half = SIDE / 2 / scale
    return (x - half, y - half, x + half, y + half)


@dataclass(frozen=True)
class Asked:
    """A question about regions and its answer; placeholders are numbers of the scene's marks."""

    kind: str
    question: str
    answer: str


def phrases(scene: scenes.Scene) -> dict[int, str]:
    """A phrase for each digit that one can be named by, by its number among the marks."""
    found: dict[int, str] = {}
    digits = [number for number, mark in enumerate(scene.marks) if mark.digit >= 0]
    for number in digits:
        own = scene.marks[number].digit
        same = [other for other in digits if scene.marks[other].digit == own]
        if len(same) == 1:
            found[number] = f"the {own}"
            continue
        for word, (axis, choose) in _ENDS.items():
            places = {other: (scene.marks[other].column, scene.marks[other].row)[axis] for other in same}
            if places[number] == choose(list(places.values())):
                found[number] = f"the {word} {own}"
                break
    return found


def alone(scene: scenes.Scene, number: int) -> bool:
    """Tell whether a mark is the only one of its class."""
    return sum(mark.digit == scene.marks[number].digit for mark in scene.marks) == 1


def ask(rng: np.random.Generator, scene: scenes.Scene, kind: str, number: int) -> Asked | None:
    """A question of a kind about a mark that has a phrase; None where the scene has none.

    An object image is asked for its place only where its class comes once.
    """
    phrase, digit = phrases(scene)[number], str(scene.marks[number].digit)
    if kind == "T->C":
        return Asked(kind, f"Where is {phrase}?", f"<box:{number}>")
    if kind == "C->T":
        return Asked(kind, f"Which digit is at <box:{number}>?", digit)
    if kind == "I->T":
        return Asked(kind, f"Which digit is <object:{number}>?", digit)
    if kind == "C+I->T":
        return Asked(kind, f"Which digit is at <box:{number}> <object:{number}>?", digit)
    if kind == "I->C":
        return Asked(kind, f"Where is <object:{number}>?", f"<box:{number}>") if alone(scene, number) else None
    options, letter = _options(rng, scene, number, kind == "T->I")
    if kind == "T->I":
        return Asked(kind, f"Which of these is {phrase}?{options}", letter) if options else None
    if kind == "C->I":
        return Asked(kind, f"Which of these is at <box:{number}>?{options}", letter) if options else None
    raise ValueError(f"unknown kind of question {kind!r}; known: {', '.join(KINDS)}")


def _options(rng: np.random.Generator, scene: scenes.Scene, number: int, other_class: bool) -> tuple[str, str]:
    """Three object images, one of them the right one, and its letter; a class comes once where words are asked for."""
    own = scene.marks[number].digit
    others = [n for n, mark in enumerate(scene.marks) if n != number and (mark.digit != own or not other_class)]
    if len(others) < len(LETTERS) - 1:
        return "", ""
    chosen = [int(n) for n in rng.permutation(others)[: len(LETTERS) - 1]]
    place = int(rng.integers(len(LETTERS)))
    chosen.insert(place, number)
    options = "".join(f"\n{letter}. <object:{n}>" for letter, n in zip(LETTERS, chosen, strict=True))
    return options, LETTERS[place]


KINDS = ("T->C", "C->T", "I->T", "C+I->T", "I->C", "T->I", "C->I")
ARMS: dict[str, tuple[str, ...]] = {
    "text": ("T->C", "C->T"),
    "images": ("T->C", "C->T", "I->T", "C+I->T", "I->C", "I->T"),
    "choices": ("T->C", "C->T", "I->C", "C+I->T", "T->I", "C->I"),
}
"""Kinds of the questions of an arm, which its records go through in turn; all arms ask about the same marks, each once
in a record, so that no answer is in the text already."""


PERCEPTION: dict[str, tuple[str, ...]] = {"perception": ("C->T", "T->C"), "objects": ("I->T",)}
"""Kinds of the questions of stage 1, beside captions.

A projector that has met maps alone makes nothing of object images, and does not leave that within stage 2.
"""


def describe(scene: scenes.Scene) -> list[Pair]:
    """A caption with coordinates, from left to right."""
    order = sorted(
        (number for number, mark in enumerate(scene.marks) if mark.digit >= 0), key=lambda n: scene.marks[n].column
    )
    texts = [f"{scene.marks[number].digit} at <box:{number}>" for number in order]
    return [("Describe the picture.", f"There are {len(order)} digits. From left to right: {', '.join(texts)}.")]


NAMED = ("named", "named_lists", "named_boxes")
"""Records that name boxes, of stage 1 and of stage 2, and their box file."""
NAME = "obj{}"
"""Name of a box by its number, from 1 on in the order of the box file."""
APART = 2
"""Least distance of two marks in columns whose order is asked."""


def ask_about_names(rng: np.random.Generator, marks: Sequence[scenes.Mark], count: int) -> list[Asked]:
    """As many questions about digits by their names, if there are so many; the numbers of names are those of marks.

    In turn which digit one is, each asked once, and which of two is left: two whose classes come once, and whose
    columns are ``APART``, so that the answer is in the picture whatever else is in it.
    """
    digits = [(number, mark) for number, mark in enumerate(marks, start=1) if mark.digit >= 0]
    classes = [mark.digit for _, mark in digits]
    single = [item for item in digits if classes.count(item[1].digit) == 1]
    which = [digits[place] for place in rng.permutation(len(digits)).tolist()]
    pairs = [(a, b) for a in single for b in single if abs(a[1].column - b[1].column) >= APART]
    relation = [pairs[place] for place in rng.permutation(len(pairs)).tolist()]
    asked: list[Asked] = []
    while (which or relation) and len(asked) < count:
        if which:
            number, mark = which.pop()
            asked.append(Asked("which", f"Which digit is {NAME.format(number)}?", str(mark.digit)))
        if relation:
            (number, mark), (other, beside) = relation.pop()
            question = f"Is {NAME.format(number)} left or right of {NAME.format(other)}?"
            asked.append(Asked("relation", question, "left" if mark.column < beside.column else "right"))
    return asked[:count]


def ask_for_list(rng: np.random.Generator, scene: scenes.Scene) -> Pair:
    """The miniature's own question for all digits from left to right."""
    layout = [(mark.digit, mark.row, mark.column, mark.level) for mark in scene.marks]
    asked = language.ask(rng, layout, "list")
    return asked.question, asked.answer


def draw_scene(rng: np.random.Generator, split: scenes.Split) -> scenes.Scene:
    """A picture whose marks have regions for boxes."""
    scene = scenes.draw_scene(rng, split, sample_layout, SPREAD)
    scale = scenes.Frame(*scene.image.size).scale
    marks = []
    for mark in scene.marks:
        x1, y1, x2, y2 = mark.box
        marks.append(replace(mark, box=region((x1 + x2) / 2, (y1 + y2) / 2, scale)))
    return replace(scene, marks=tuple(marks))


def shuffle(rng: np.random.Generator, scene: scenes.Scene) -> scenes.Scene:
    """The scene with its marks in any order, as digits come first where they are drawn."""
    return replace(scene, marks=tuple(scene.marks[number] for number in rng.permutation(len(scene.marks)).tolist()))


def _objects(scene: scenes.Scene) -> list[dict[str, Any]]:
    names = [str(mark.digit) if mark.digit >= 0 else "shape" for mark in scene.marks]
    return [
        {"box": [round(float(side), 2) for side in mark.box], "label": name}
        for mark, name in zip(scene.marks, names, strict=True)
    ]


def _talk(pairs: Sequence[Pair]) -> list[dict[str, str]]:
    turns = []
    for number, (question, answer) in enumerate(pairs):
        turns.append({"from": "human", "value": ("" if number else "<image>\n") + question})
        turns.append({"from": "gpt", "value": answer})
    return turns


class Writer:
    """Draws the pictures of a part and writes its records, one file for each arm that sees the same pictures."""

    def __init__(self, out: Path, part: str, split: scenes.Split, seed: int) -> None:
        self.out, self.part, self.split, self.rng = out, part, split, np.random.default_rng(seed)
        (out / "images" / part).mkdir(parents=True, exist_ok=True)

    def scene(self, index: int) -> tuple[str, scenes.Scene]:
        """Draw and write one picture."""
        scene = draw_scene(self.rng, self.split)
        name = f"{self.part}/{index:05d}.jpg"
        scene.image.save(self.out / "images" / name, quality=95, subsampling=0)
        return name, scene

    def ask(self, index: int, scene: scenes.Scene, kinds: Sequence[str]) -> list[Asked]:
        """A question about each mark that has a phrase; where a scene has none of a kind, one of ``T->C``."""
        marks = np.random.default_rng([index, 5]).permutation(list(phrases(scene))).tolist()
        rng, asked = np.random.default_rng([index, 3]), []
        for turn, number in enumerate(marks):
            kind = kinds[(index + turn) % len(kinds)]
            asked.append(ask(rng, scene, kind, number) or ask(rng, scene, "T->C", number))
        return asked  # type: ignore[return-value]


def write_training(out: Path, count: int, seed: int) -> None:
    """Records of stage 1 and of the arms, and named boxes with their box file, of the same pictures."""
    writer = Writer(out, "train", "train", seed)
    files: dict[str, list[Any]] = {name: [] for name in (*PERCEPTION, *ARMS, "captions", *NAMED)}
    for index in range(count):
        name, scene = writer.scene(index)
        base = {"id": f"train-{index:05d}", "image": name, "objects": _objects(scene)}
        for arm, kinds in {**PERCEPTION, **ARMS}.items():
            asked = [(one.question, one.answer) for one in writer.ask(index, scene, kinds)]
            files[arm].append({**base, "conversations": _talk(asked)})
        files["captions"].append({**base, "conversations": _talk(describe(scene))})
        rng = np.random.default_rng([index, 7])
        mixed = shuffle(rng, scene)
        asked = [(one.question, one.answer) for one in ask_about_names(rng, mixed.marks, TURNS)]
        files["named"].append({"id": base["id"], "image": name, "conversations": _talk(asked)})
        if all(alone(scene, number) for number in phrases(scene)):
            asked.insert(int(rng.integers(len(asked) + 1)), ask_for_list(rng, scene))
        files["named_lists"].append({"id": base["id"], "image": name, "conversations": _talk(asked)})
        files["named_boxes"].append(_box_record(str(base["id"]), mixed))
    for name, records in files.items():
        (out / f"{name}.json").write_text(json.dumps(records))


def _box_record(key: str, scene: scenes.Scene) -> dict[str, Any]:
    objects = _objects(scene)
    return {"id": key, "boxes": [one["box"] for one in objects], "labels": [one["label"] for one in objects]}


def write_heldout(out: Path, count: int, seed: int) -> None:
    """Questions of every kind about held-out pictures, as JSON lines, with box files."""
    writer, lines, boxes = Writer(out, "heldout", "heldout", seed), [], []
    for index in range(count):
        name, scene = writer.scene(index)
        picture = f"regions-{index:05d}"
        rng = np.random.default_rng([index, 11])
        named = list(phrases(scene))
        single = [number for number in named if alone(scene, number)] or named
        asked = [ask(rng, scene, kind, int(rng.choice(single if kind == "I->C" else named))) for kind in KINDS]
        mixed = shuffle(rng, scene)
        named_ones = {one.kind: one for one in ask_about_names(rng, mixed.marks, 2)}
        for one in (*asked, *named_ones.values()):
            if one is not None:
                line = {"id": f"{picture}-{one.kind}", "picture": picture, "image": name, "size": scene.image.size}
                lines.append({**line, **vars(one), "objects": _objects(scene)})
        boxes.append(_box_record(picture, mixed))
    for name, chosen in (("heldout", KINDS), ("heldout_named", ("which", "relation"))):
        some = [line for line in lines if line["kind"] in chosen]
        (out / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in some))
    others = out.parent / "heldout_boxes.json"  # of the miniature's own questions, which runs are asked too
    boxes += json.loads(others.read_text()) if others.is_file() else []
    (out / "heldout_boxes.json").write_text(json.dumps(boxes))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=3000, help="training pictures (default: %(default)s)")
    parser.add_argument("--heldout", type=int, default=250, help="held-out pictures (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=OUT, help="default: data/nano/generated/grounding")
    arguments = parser.parse_args()
    out = arguments.out
    if out == OUT:
        subprocess.run([sys.executable, str(HERE / "make_data.py")], check=True)
    sizes = {name: getattr(arguments, name) for name in ("train", "heldout", "seed")}
    settings = {"format": FORMAT, **sizes}
    if made.is_made(out, settings):
        return
    write_training(out, arguments.train, 1000 * arguments.seed + 11)
    write_heldout(out, arguments.heldout, 1000 * arguments.seed + 12)
    made.finish(out, settings)
    print(f"wrote {arguments.train} training and {arguments.heldout} held-out pictures to {out}")


if __name__ == "__main__":
    main()
