"""A scene as text, in exactly the shape in which the model sees a picture: 64 map tokens, then object tokens.

Every token is a bag of words, and its embedding is the sum of the word embeddings of the LLM: a map token says what
its cell holds (a digit, a distractor, nothing), how large it is, its row and its column; an object token says what the
object is and how large, without coordinates. So the LLM can be taught the task before it has ever seen a picture.
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
ROWS = [f"<row{i}>" for i in range(scenes.GRID)]
COLUMNS = [f"<column{i}>" for i in range(scenes.GRID)]
SIZES = [f"<{level}>" for level in scenes.LEVELS]
SCENE_WORDS = [SHAPE, EMPTY, UNKNOWN, OBJECT, *ROWS, *COLUMNS, *SIZES]
CELLS = scenes.GRID**2
SLOTS = 5
"""Words per token at most: content, size, row (or the mark of an object), column, confusion."""


@dataclass(frozen=True)
class Noise:
    """How a rendering is spoiled, so that the LLM can live with real features.

    Attributes:
        mix: a share up to this much of a digit's word is replaced by that of another digit, in 3 of 10 marks.
        unknown_map: chance that the map of a scene does not tell digits apart.
        no_objects: chance that a scene has no object tokens.
        missing_object: chance that an object token is missing.
        gaussian: standard deviation of noise on the embeddings, relative to their own.
    """

    mix: float = 0.4
    unknown_map: float = 0.12
    no_objects: float = 0.25
    missing_object: float = 0.02
    gaussian: float = 0.3


CLEAN = Noise(0.0, 0.0, 0.0, 0.0, 0.0)


def random_layout(rng: np.random.Generator) -> list[tuple[int, int, int, int]]:
    """A layout as in the pictures, for a random picture size."""
    return scenes.sample_layout(rng, *scenes.random_frame(rng).usable_cells())


class Renderer(nn.Module):
    """Turns layouts into embeddings with the word embeddings of an LLM.

    ``keep_empty`` is the share of the empty map tokens that is rendered at all.
    """

    def __init__(self, embedding: nn.Embedding, tokenizer: PreTrainedTokenizerBase):
        super().__init__()
        self.embedding = embedding
        self.digits = [_single(tokenizer, str(digit)) for digit in range(10)]
        self.keep_empty = 1.0
        self.word = {word: tokenizer.convert_tokens_to_ids(word) for word in SCENE_WORDS}

    def content(self, digit: int) -> int:
        """Word of a digit, or of a distractor for -1."""
        return self.digits[digit] if digit >= 0 else self.word[SHAPE]

    def words(self, rng: np.random.Generator, layout: language.Layout, noise: Noise) -> tuple[np.ndarray, np.ndarray]:
        """Word ids (64 + n, SLOTS) and their weights; weight 0 where a slot is unused."""
        objects = [item for item in layout if rng.random() >= noise.missing_object]
        rng.shuffle(objects)
        if rng.random() < noise.no_objects:
            objects = []
        ids = np.zeros((CELLS + len(objects), SLOTS), np.int64)
        weights = np.zeros(ids.shape, np.float32)
        cells = np.arange(CELLS)
        ids[:CELLS, 0] = self.word[EMPTY]
        ids[:CELLS, 2] = [self.word[ROWS[i // scenes.GRID]] for i in cells]
        ids[:CELLS, 3] = [self.word[COLUMNS[i % scenes.GRID]] for i in cells]
        weights[:CELLS, (0, 2, 3)] = 1
        unknown = rng.random() < noise.unknown_map
        for digit, row, column, level in layout:
            cell = row * scenes.GRID + column
            hidden = unknown and digit >= 0
            ids[cell, :2] = self.word[UNKNOWN] if hidden else self.content(digit), self.word[SIZES[level]]
            weights[cell, 1] = 1
        for place, (digit, _, _, level) in enumerate(objects, start=CELLS):
            ids[place, :3] = self.content(digit), self.word[SIZES[level]], self.word[OBJECT]
            weights[place, :3] = 1
        self._mix_up(rng, ids, weights, noise)
        if self.keep_empty < 1:
            kept = (ids[:, 0] != self.word[EMPTY]) | (rng.random(len(ids)) < self.keep_empty)
            ids, weights = ids[kept], weights[kept]
        return ids, weights

    def _mix_up(self, rng: np.random.Generator, ids: np.ndarray, weights: np.ndarray, noise: Noise) -> None:
        marked = np.flatnonzero((weights[:, 1] > 0) & np.isin(ids[:, 0], self.digits))
        for place in marked[rng.random(len(marked)) < 0.3] if noise.mix else ():
            share = rng.uniform(0, noise.mix)
            ids[place, SLOTS - 1] = self.digits[rng.integers(10)]
            weights[place, 0], weights[place, SLOTS - 1] = 1 - share, share

    def embed(self, ids: Tensor, weights: Tensor, gaussian: float) -> Tensor:
        """Sum of word embeddings: (N, SLOTS) ids and weights to (N, d)."""
        vectors = F.embedding(ids, self.embedding.weight)
        vectors = (vectors * weights.unsqueeze(-1)).sum(dim=1)
        if gaussian:
            vectors = vectors + torch.randn_like(vectors) * vectors.detach().std() * gaussian * torch.rand(len(ids), 1)
        return vectors


def _single(tokenizer: PreTrainedTokenizerBase, word: str) -> int:
    ids = tokenizer.encode(word, add_special_tokens=False)
    if len(ids) != 1:
        raise ValueError(f"the tokenizer splits {word!r} into {len(ids)} tokens; it has to be one")
    return ids[0]
