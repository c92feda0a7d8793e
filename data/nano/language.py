"""Questions, answers, captions and the text rendering of a scene: everything verbal about the miniature.

A digit is the same word (``7``) in captions, questions and answers. A layout is a list of tuples
(digit or -1, row, column, level) in any order; see ``scenes.sample_layout``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scenes

Layout = Sequence[tuple[int, int, int, int]]
LETTERS = "ABCD"
CAPTION_PROMPTS = ("Describe the picture.", "What is in the picture?")
WHERE_PROMPT = "Where are the digits?"
PHRASINGS = {
    "count": ("How many digits are in the picture?", "Count the digits."),
    "leftmost": ("Which digit is leftmost?", "What is the leftmost digit?"),
    "topmost": ("Which digit is at the top?", "What is the topmost digit?"),
    "largest": ("Which digit is the largest?", "What is the largest digit?"),
    "presence": ("Is there a {digit} in the picture?", "Can you see a {digit}?"),
    "choice": ("Which of these digits is in the picture?",),
    "list": ("List the digits from left to right.",),
}
KINDS = tuple(PHRASINGS)
CHANCE = {
    "count": 1 / 4,
    "leftmost": 1 / 10,
    "topmost": 1 / 10,
    "largest": 1 / 10,
    "presence": 1 / 2,
    "choice": 1 / 4,
    "list": 1 / 4 * (1 / 90 + 1 / 720 + 1 / 5040 + 1 / 30240),
}
"""Accuracy of the best guess without looking: counts 2-5 and the ten digits are equally likely, yes and no too;
a list is guessed by guessing its length and then an ordered choice of different digits."""


@dataclass(frozen=True)
class Question:
    """A question about a scene (or about nothing, for text-only kinds) and its one right answer."""

    kind: str
    question: str
    answer: str


def _digits(layout: Layout) -> list[tuple[int, int, int, int]]:
    return [item for item in layout if item[0] >= 0]


def _by(layout: Layout, key: Callable[[tuple[int, int, int, int]], int]) -> list[int]:
    return [item[0] for item in sorted(_digits(layout), key=key)]


def left_to_right(layout: Layout) -> list[int]:
    """Digits by column."""
    return _by(layout, lambda item: item[2])


def top_to_bottom(layout: Layout) -> list[int]:
    """Digits by row."""
    return _by(layout, lambda item: item[1])


def largest(layout: Layout) -> int:
    """The digit of the highest size level."""
    return max(_digits(layout), key=lambda item: item[3])[0]


def _join(digits: Sequence[int]) -> str:
    return ", ".join(map(str, digits))


def caption(layout: Layout) -> str:
    """One caption: names every digit by column, by row, and the largest."""
    row, column = left_to_right(layout), top_to_bottom(layout)
    return (
        f"There are {len(row)} digits. From left to right: {_join(row)}. "
        f"From top to bottom: {_join(column)}. The largest is {largest(layout)}."
    )


def where(layout: Layout) -> str:
    """Another caption: the quarter of the canvas that each digit is in."""
    half = scenes.GRID // 2
    places = [
        f"{digit} {'top' if row < half else 'bottom'} {'left' if column < half else 'right'}"
        for digit, row, column, _ in sorted(_digits(layout), key=lambda item: item[2])
    ]
    return ", ".join(places)


def _presence(rng: np.random.Generator, layout: Layout) -> tuple[int, str]:
    there = left_to_right(layout)
    if rng.random() < 0.5:
        return int(rng.choice(there)), "Yes"
    return int(rng.choice([d for d in range(10) if d not in there])), "No"


def _choice(rng: np.random.Generator, layout: Layout) -> tuple[str, str]:
    there = left_to_right(layout)
    options = rng.permutation([d for d in range(10) if d not in there])[:4]
    place = int(rng.integers(4))
    options[place] = rng.choice(there)
    return "".join(f"\n{letter}. {digit}" for letter, digit in zip(LETTERS, options, strict=True)), LETTERS[place]


def ask(rng: np.random.Generator, layout: Layout, kind: str) -> Question:
    """A question of the given kind about a layout, in a random phrasing.

    Raises:
        ValueError: for a kind that does not exist.
    """
    if kind not in PHRASINGS:
        raise ValueError(f"unknown kind of question {kind!r}; known: {', '.join(PHRASINGS)}")
    text = str(PHRASINGS[kind][rng.integers(len(PHRASINGS[kind]))])
    if kind == "count":
        return Question(kind, text, str(len(_digits(layout))))
    if kind == "leftmost":
        return Question(kind, text, str(left_to_right(layout)[0]))
    if kind == "topmost":
        return Question(kind, text, str(top_to_bottom(layout)[0]))
    if kind == "largest":
        return Question(kind, text, str(largest(layout)))
    if kind == "presence":
        digit, answer = _presence(rng, layout)
        return Question(kind, text.format(digit=digit), answer)
    if kind == "choice":
        options, answer = _choice(rng, layout)
        return Question(kind, text + options, answer)
    return Question(kind, text, _join(left_to_right(layout)))


def ask_text_only(rng: np.random.Generator) -> Question:
    """A question that needs no picture: a small sum, or the larger of two digits."""
    if rng.random() < 0.5:
        total = int(rng.integers(1, 10))
        first = int(rng.integers(0, total + 1))
        return Question("sum", f"What is {first} plus {total - first}?", str(total))
    first, second = (int(d) for d in rng.permutation(10)[:2])
    return Question("larger", f"Which is larger, {first} or {second}?", str(max(first, second)))


def caption_prompt(rng: np.random.Generator) -> str:
    """What stage 1 asks for a caption with."""
    return CAPTION_PROMPTS[rng.integers(len(CAPTION_PROMPTS))]
