"""A scene as text, in exactly the shape in which the model sees a picture: 64 map tokens, then object tokens.

Every token is a weighted bag of words, and its embedding is the weighted sum of the word embeddings of the LLM: a map
token says what its cell holds (a digit, a distractor, nothing) and how large it is; an object token says what the
object is and how large, without coordinates. Where a cell is follows from its place in the sequence alone, as for a
real LLM. Size lies on a scale: a medium mark is half ``<small>`` and half ``<large>``; so a projector has few
directions to find. This teaches the LLM the task before it has ever seen a picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import language
import numpy as np
import scenes
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

SHAPE, EMPTY, UNKNOWN, OBJECT = "<shape>", "<empty>", "<unknown>", "<object>"
SIZES = ("<small>", "<large>")
SCENE_WORDS = [SHAPE, EMPTY, UNKNOWN, OBJECT, *SIZES]
CELLS = scenes.GRID**2
CONTENT, CONFUSION, SIZE, KIND, MIXTURE, SLOTS = 0, 1, slice(2, 4), 4, slice(5, 15), 15
"""Places of the words in a token."""
CLEAREST = 6.0
"""Log-odds of the right digit in the clearest of poor maps, up to noise of deviation 1."""


@dataclass(frozen=True)
class Noise:
    """How a rendering is spoiled, so that the LLM can live with real features.

    Attributes:
        mix: a share up to this much of a digit's word is replaced by that of another digit, in 3 of 10 marks.
        unknown_map: chance that the map of a scene does not tell digits apart.
        poor_map: chance that each of its digits is a mixture of all ten, as a readout that is not sure says it.
        no_objects: chance that a scene has no object tokens.
        missing_object: chance that an object token is missing.
        gaussian: standard deviation of noise on the embeddings, relative to their own.
        loud: length of object tokens over that of the words that they are made of.
    """

    mix: float = 0.4
    unknown_map: float = 0.12
    no_objects: float = 0.25
    missing_object: float = 0.02
    gaussian: float = 0.3
    poor_map: float = 0.0
    loud: float = 1.0


CLEAN = Noise(0.0, 0.0, 0.0, 0.0, 0.0)


def random_layout(rng: np.random.Generator) -> list[tuple[int, int, int, int]]:
    """A layout as in the pictures, for a random picture size."""
    return scenes.sample_layout(rng, *scenes.random_frame(rng).usable_cells())


class Renderer(nn.Module):
    """Turns layouts into embeddings with the word embeddings of an LLM."""

    def __init__(self, embedding: nn.Embedding, tokenizer: PreTrainedTokenizerBase):
        super().__init__()
        self.embedding = embedding
        self.digits = [_single(tokenizer, str(digit)) for digit in range(10)]
        self.word = {word: tokenizer.convert_tokens_to_ids(word) for word in SCENE_WORDS}

    def content(self, digit: int) -> int:
        """Word of a digit, or of a distractor for -1."""
        return self.digits[digit] if digit >= 0 else self.word[SHAPE]

    def words(
        self, rng: np.random.Generator, layout: language.Layout, noise: Noise, keep_empty: float = 1.0
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Word ids (64 + n, SLOTS), their weights, and the places (64 + n,) of the tokens in the sequence.

        Of the empty map tokens a share ``keep_empty`` is rendered; the others keep their places.
        """
        objects = [item for item in layout if rng.random() >= noise.missing_object]
        rng.shuffle(objects)
        if rng.random() < noise.no_objects:
            objects = []
        ids = np.zeros((CELLS + len(objects), SLOTS), np.int64)
        weights = np.zeros(ids.shape, np.float32)
        ids[:, CONTENT], weights[:, CONTENT] = self.word[EMPTY], 1
        ids[:, SIZE] = [self.word[word] for word in SIZES]
        unknown = rng.random() < noise.unknown_map
        marks = [(row * scenes.GRID + column, digit, level) for digit, row, column, level in layout]
        marks += [(place, item[0], item[3]) for place, item in enumerate(objects, start=CELLS)]
        for place, digit, level in marks:
            hidden = unknown and digit >= 0 and place < CELLS
            ids[place, CONTENT] = self.word[UNKNOWN] if hidden else self.content(digit)
            weights[place, SIZE] = _between(np.array(level), len(scenes.LEVELS))
        ids[CELLS:, KIND], weights[CELLS:, KIND] = self.word[OBJECT], 1
        self._mix_up(rng, ids, weights, noise)
        if noise.poor_map and rng.random() < noise.poor_map:
            self._blur(rng, ids, weights)
        weights[CELLS:] *= noise.loud
        if keep_empty < 1:
            kept = (ids[:, CONTENT] != self.word[EMPTY]) | (rng.random(len(ids)) < keep_empty)
            return ids[kept], weights[kept], np.flatnonzero(kept)
        return ids, weights, np.arange(len(ids))

    def _mix_up(self, rng: np.random.Generator, ids: np.ndarray, weights: np.ndarray, noise: Noise) -> None:
        marked = np.flatnonzero(np.isin(ids[:, CONTENT], self.digits))
        for place in marked[rng.random(len(marked)) < 0.3] if noise.mix else ():
            share = rng.uniform(0, noise.mix)
            ids[place, CONFUSION] = self.digits[rng.integers(10)]
            weights[place, CONTENT], weights[place, CONFUSION] = 1 - share, share

    def _blur(self, rng: np.random.Generator, ids: np.ndarray, weights: np.ndarray) -> None:
        """Say each digit of the map as a mixture of all ten, all as clearly; changes ``ids`` and ``weights``."""
        odds = rng.uniform(0, CLEAREST)
        for place in np.flatnonzero(np.isin(ids[:CELLS, CONTENT], self.digits)):
            logits = odds * (np.array(self.digits) == ids[place, CONTENT]) + rng.normal(size=10)
            shares = np.exp(logits - logits.max())
            ids[place, MIXTURE], weights[place, MIXTURE] = self.digits, shares / shares.sum()
            weights[place, [CONTENT, CONFUSION]] = 0

    def embed(self, ids: Tensor, weights: Tensor, gaussian: float) -> Tensor:
        """Sum of word embeddings: (N, SLOTS) ids and weights to (N, d)."""
        vectors = F.embedding(ids, self.embedding.weight)
        vectors = (vectors * weights.unsqueeze(-1)).sum(dim=1)
        if gaussian:
            vectors = vectors + torch.randn_like(vectors) * vectors.detach().std() * gaussian * torch.rand(len(ids), 1)
        return vectors


def _between(step: np.ndarray, steps: int) -> np.ndarray:
    """Weights (..., 2) of the two ends of a scale at one of its steps, or between them."""
    share = np.clip(step / (steps - 1), 0, 1)
    return np.stack((1 - share, share), axis=-1)


def _single(tokenizer: PreTrainedTokenizerBase, word: str) -> int:
    ids = tokenizer.encode(word, add_special_tokens=False)
    if len(ids) != 1:
        raise ValueError(f"the tokenizer splits {word!r} into {len(ids)} tokens; it has to be one")
    return ids[0]
