"""Conversations about scenes with named objects as text, for the miniature's LLM of names.

A scene is one of ``rendering.py``. In a part of the conversations ``obj1``, ``obj2`` and so on stand before its object
tokens, and some questions are about these names; all other questions are those of ``language.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import grounding
import language
import numpy as np
import pretrain_llm
import rendering
import scenes

NAMELESS = 0.5
"""Scenes with faint objects in which the word of objects is faint as well."""
BESIDE = 1.0
"""Greatest length of what all faint tokens of a scene say alike, a noise."""
FAINTEST_MAP = 0.3
"""Least share of the words of a faint map."""


@dataclass(frozen=True)
class NamedPhase(pretrain_llm.Phase):
    """A part of the training.

    Attributes:
        named: Share of the scenes whose objects have names.
        about_names: Share of their questions that is about names.
        faint: Share of the scenes in which objects say less than a whole word, and of those in which the map does.
        faintest: Least share of the words of a faint object.
    """

    named: float = 0.7
    about_names: float = 0.6
    faint: float = 0.0
    faintest: float = 0.1


_EARLY = rendering.Noise(mix=0.4, unknown_map=0.0, no_objects=0.3, gaussian=0.2, poor_map=0.1)
_LATE = rendering.Noise(mix=0.4, unknown_map=0.1, no_objects=0.3, gaussian=0.3, poor_map=0.35)
_CLEAN = replace(rendering.CLEAN, no_objects=0.5)
PHASES = (
    NamedPhase(0.25, pretrain_llm.SHARES, 0.35, 0.0, 0.05, _CLEAN, about_names=0.5),
    NamedPhase(0.5, pretrain_llm.SHARES, 0.35, 0.3, 0.25, _EARLY, about_names=0.5, faint=0.3),
    NamedPhase(1.0, pretrain_llm.SHARES, 0.4, 0.3, 0.6, _LATE, about_names=0.5, faint=0.5),
)
AGAIN = (
    NamedPhase(1.0, (0.12, 0.08, 0.08, 0.06, 0.1, 0.38, 0.18), 0.3, 0.3, 0.5, _LATE, about_names=0.35, faint=0.5),
)
"""From easy to hard, as in ``pretrain_llm.py``."""


class NamedSampler(pretrain_llm.Sampler):
    """Draws conversations about scenes, in a part of which objects have names.

    Attributes:
        kinds: Of the questions of the conversation that was drawn last.
    """

    phase: NamedPhase
    kinds: Sequence[str] = ()

    def draw(self, rng: np.random.Generator) -> pretrain_llm.Drawn:
        """A scene with questions and answers about it."""
        layout, noise = rendering.random_layout(rng), self.phase.noise
        is_named = bool(rng.random() < self.phase.named)
        if is_named:  # without objects, or with a map that names no digit, nothing could be asked
            noise = replace(noise, no_objects=0.0, unknown_map=0.0)
        words, weights, places = self.renderer.words(rng, layout, noise, self.phase.keep_empty)
        asked = self.questions(rng, layout)
        if is_named:
            marks = self._marks(words[places >= rendering.CELLS, rendering.CONTENT], layout)
            asked = self._ask_about_names(rng, marks, asked)
        is_object = places >= rendering.CELLS
        if rng.random() < self.phase.faint:
            self._fade(rng, words, weights, is_object)
        if rng.random() < self.phase.faint:
            self._fade_map(rng, words, weights, ~is_object)
        scene, self.kinds = (words, weights, places), [question.kind for question in asked]
        return self.write(self._name(*scene) if is_named else scene, asked)

    def _marks(self, contents: np.ndarray, layout: language.Layout) -> list[scenes.Mark]:
        """The marks that object tokens are of, by their words; a distractor is any."""
        by_word = {self.renderer.content(item[0]): scenes.Mark(*item, (0.0, 0.0, 0.0, 0.0)) for item in layout}
        return [by_word[word] for word in contents.tolist()]

    def _ask_about_names(
        self, rng: np.random.Generator, marks: Sequence[scenes.Mark], asked: list[language.Question]
    ) -> list[language.Question]:
        """The questions with others in the place of some."""
        named = grounding.ask_about_names(rng, marks, len(asked))
        for place, question in zip(rng.permutation(len(asked)).tolist(), named, strict=False):
            if rng.random() < self.phase.about_names:
                asked[place] = language.Question(question.kind, question.question, question.answer)
        return asked

    def _fade(self, rng: np.random.Generator, words: np.ndarray, weights: np.ndarray, objects: np.ndarray) -> None:
        """Make objects faint, beside something that all of them say alike; changes ``words`` and ``weights``."""
        weights[objects, : rendering.KIND] *= np.exp(rng.uniform(np.log(self.phase.faintest), 0))
        if rng.random() < NAMELESS:
            weights[objects, rendering.KIND] = rng.random()
        weights[objects, rendering.MIXTURE] = rng.normal(size=10) * rng.uniform(0, BESIDE) / 10**0.5
        words[objects, rendering.MIXTURE] = rng.integers(4, 260, 10)  # bytes, which stand in no text

    def _fade_map(self, rng: np.random.Generator, words: np.ndarray, weights: np.ndarray, cells: np.ndarray) -> None:
        """Make the map faint, beside something that all of it says alike; changes ``words`` and ``weights``."""
        weights[cells] *= rng.uniform(FAINTEST_MAP, 1)
        words[cells, rendering.KIND], weights[cells, rendering.KIND] = rng.integers(4, 260), rng.uniform(0, BESIDE)

    def _name(
        self, words: np.ndarray, weights: np.ndarray, places: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The scene with the words of a name before each object."""
        seen = places < rendering.CELLS
        parts = [(words[seen], weights[seen])]
        for number, place in enumerate(np.flatnonzero(~seen)):
            name = self.writer.encode(grounding.NAME.format(number + 1))
            ids, shares = np.zeros((2, len(name), rendering.SLOTS))
            ids[:, rendering.CONTENT], shares[:, rendering.CONTENT] = name, 1
            parts += [(ids.astype(words.dtype), shares.astype(weights.dtype))]
            parts += [(words[place : place + 1], weights[place : place + 1])]
        words, weights = (np.concatenate(column) for column in zip(*parts, strict=True))
        after = np.arange(rendering.CELLS, rendering.CELLS + len(words) - seen.sum())
        return words, weights, np.concatenate((places[seen], after))
