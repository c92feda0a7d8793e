"""Conversations about regions of scenes as text, for the miniature's LLM of regions.

A map token says what its cell holds, a token of an object image what it shows: mixtures of the words for digits, a
shape and nothing. Questions are those of ``grounding.py``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]
import grounding  # noqa: E402
import rendering  # noqa: E402
import scenes  # noqa: E402
from PIL import Image  # noqa: E402

from mg_llava.data.records.schema import Turn  # noqa: E402
from mg_llava.data.text.conversation import encode_conversation  # noqa: E402
from mg_llava.tokens import (  # noqa: E402
    BOX_PLACEHOLDER,
    IGNORE_INDEX,
    IMAGE_TOKEN_INDEX,
    OBJECT_PLACEHOLDER,
    OBJECT_TOKEN_INDEX,
)

GRID, CELLS = scenes.GRID, scenes.GRID**2
CONTENTS = [*(f"▁{digit}" for digit in range(10)), rendering.SHAPE, rendering.EMPTY]
"""What a cell can hold, as words."""
OBJECT_TOKENS = 4


@dataclass(frozen=True)
class Phase:
    """A part of the training.

    Attributes:
        until: Where it ends, as a share of all steps.
        repeat: Chance that classes repeat in a scene.
        keep_empty: Share of the empty map tokens that are rendered.
        fuzzy: Chance that the tokens of a scene are mixtures.
        gaussian: Largest norm of the noise on a token of the scene, as a share of its own.
        captions: Chance of a caption in place of questions.
        faint: Least share of what an object image shows in one of its tokens, the rest of which is nothing or a shape.
    """

    until: float
    repeat: float
    keep_empty: float
    fuzzy: float
    gaussian: float
    captions: float
    faint: float


SHARES = {"T->C": 0.28, "C->T": 0.22, "I->T": 0.12, "C+I->T": 0.12, "I->C": 0.14, "T->I": 0.06, "C->I": 0.06}


@dataclass(frozen=True)
class Tokens:
    """A conversation: words (T,), mixtures of ``CONTENTS`` (T, 12) where a token is of a scene, labels, positions."""

    words: np.ndarray
    mixtures: np.ndarray
    labels: np.ndarray
    positions: np.ndarray
    kinds: tuple[str, ...] = ()


def sample_scene(rng: np.random.Generator, layout: grounding.Layout) -> scenes.Scene:
    """Marks with the boxes that regions have, on an empty canvas."""
    marks = []
    for digit, row, column, level in layout:
        x, y = ((place + 0.5) * scenes.CELL for place in (column, row))
        marks.append(scenes.Mark(digit, row, column, level, grounding.region(x, y, 1.0)))
    return scenes.Scene(Image.new("RGB", (scenes.CANVAS, scenes.CANVAS)), tuple(marks))


class Sampler:
    """Draws conversations about scenes and renders them."""

    def __init__(self, tokenizer: Any, phase: Phase) -> None:
        self.tokenizer, self.phase = tokenizer, phase

    def draw(self, rng: np.random.Generator) -> Tokens:
        """A scene with a caption, or a question about each mark that can be named."""
        frame = scenes.random_frame(rng).usable_cells()
        scene = sample_scene(rng, grounding.sample_layout(rng, *frame, repeat=self.phase.repeat))
        kinds: list[str] = []
        if rng.random() < self.phase.captions:
            pairs = grounding.describe(scene)
        else:
            pairs = _ask(rng, scene, kinds)
        turns: list[Turn] = []
        shown: list[int] = []
        for question, answer in pairs:
            shown += [int(mark[1]) for mark in OBJECT_PLACEHOLDER.finditer(question)]
            turns.append(Turn("human", ("" if turns else "<image>\n") + _write_boxes(question, scene)))
            turns.append(Turn("gpt", _write_boxes(answer, scene)))
        return self._render(rng, scene, turns, shown, kinds)

    def batches(self, rng: np.random.Generator, size: int, count: int = 8) -> Iterator[list[Tokens]]:
        """Conversations of some steps, of like lengths each; without end."""
        while True:
            drawn = sorted((self.draw(rng) for _ in range(size * count)), key=lambda item: len(item.labels))
            for start in rng.permutation(count).tolist():
                yield drawn[start * size : (start + 1) * size]

    def _render(
        self, rng: np.random.Generator, scene: scenes.Scene, turns: list[Turn], shown: list[int], kinds: list[str]
    ) -> Tokens:
        encoded = encode_conversation(turns, self.tokenizer, "vicuna")
        held = np.full(CELLS, len(CONTENTS) - 1)
        for mark in scene.marks:
            held[mark.row * GRID + mark.column] = mark.digit
        odds = rng.uniform(1, 8) if rng.random() < self.phase.fuzzy else None
        kept = np.flatnonzero((held != len(CONTENTS) - 1) | (rng.random(CELLS) < self.phase.keep_empty))
        pictures = {IMAGE_TOKEN_INDEX: [(_mix(rng, held[kept], odds), kept, CELLS)], OBJECT_TOKEN_INDEX: []}
        clearer = None if odds is None else odds + rng.uniform(0, 4)
        for number in shown:
            same = np.full(OBJECT_TOKENS, scene.marks[number].digit)
            own = (_fade(rng, _mix(rng, same, clearer), self.phase.faint), np.arange(OBJECT_TOKENS), OBJECT_TOKENS)
            pictures[OBJECT_TOKEN_INDEX].append(own)
        return _join(encoded.input_ids, encoded.labels, pictures, tuple(kinds))


def _ask(rng: np.random.Generator, scene: scenes.Scene, kinds: list[str]) -> list[grounding.Pair]:
    pairs = []
    for number in rng.permutation(list(grounding.phrases(scene))).tolist():
        kind = list(SHARES)[int(rng.choice(len(SHARES), p=list(SHARES.values())))]
        asked = grounding.ask(rng, scene, kind, number) or grounding.ask(rng, scene, "T->C", number)
        assert asked is not None
        kinds.append(asked.kind + ("" if grounding.alone(scene, number) else " repeated"))
        pairs.append((asked.question, asked.answer))
    return pairs


def _mix(rng: np.random.Generator, held: np.ndarray, odds: float | None) -> np.ndarray:
    """Shares (n, 12) of contents, where -1 is a shape: of one alone, or as a readout that is not sure says it."""
    right = np.eye(len(CONTENTS), dtype=np.float32)[np.where(held < 0, 10, held)]
    if odds is None:
        return right
    logits = odds * right + rng.normal(size=right.shape)
    logits[:, -1] += 6 * right[:, -1] - 3  # nobody takes a mark for nothing
    logits[:, 10] += np.where(held < 0, 1, -1)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)


def _fade(rng: np.random.Generator, mixtures: np.ndarray, least: float) -> np.ndarray:
    """Shares of contents of which a part, another one in each token, gives way to a shape and nothing."""
    share, shape = rng.uniform(least, 1, (len(mixtures), 1)), rng.uniform(0, 1, (len(mixtures), 1))
    rest = np.zeros_like(mixtures)
    rest[:, -2:] = np.concatenate((shape, 1 - shape), axis=1)
    return (share * mixtures + (1 - share) * rest).astype(np.float32)


def _write_boxes(text: str, scene: scenes.Scene) -> str:
    size = scene.image.size
    return BOX_PLACEHOLDER.sub(lambda m: grounding.BOX_TEXT.write([scene.marks[int(m[1])].box], size), text)


def _join(
    ids: Sequence[int], labels: Sequence[int], pictures: Mapping[int, list[tuple[Any, ...]]], kinds: tuple[str, ...]
) -> Tokens:
    """Tokens of each picture where its placeholder stands."""
    parts: list[tuple[np.ndarray, ...]] = []
    place, waiting = 0, {key: iter(items) for key, items in pictures.items()}
    for token, label in zip(ids, labels, strict=True):
        if token in waiting:
            mixtures, places, width = next(waiting[token])
            ignored = np.full(len(mixtures), IGNORE_INDEX)
            parts.append((np.zeros(len(mixtures), np.int64), mixtures, ignored, place + places))
            place += width
            continue
        nothing = np.zeros((1, len(CONTENTS)), np.float32)
        parts.append((np.array([token]), nothing, np.array([label]), np.array([place])))
        place += 1
    return Tokens(*(np.concatenate(column) for column in zip(*parts, strict=True)), kinds=kinds)
