"""Teach the miniature's LLM words for coordinates from scenes with regions as text; it sees no picture here.

It goes on from data/nano/llm. A map token of a scene also says its column and row, and where in the cell the mark's
box begins and ends, by a code of directions of their own; an object image is four tokens of its content. Questions
are those of ``grounding.py``, and of the LLM's first training now and then.

Examples:
    python data/nano/pretrain_region_llm.py                 # into data/nano/region_llm: some ten minutes of a core
    python data/nano/pretrain_region_llm.py --stop 20 --out /tmp/small
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]
import grounding  # noqa: E402
import language  # noqa: E402
import pretrain_llm  # noqa: E402
import rendering  # noqa: E402
import scenes  # noqa: E402
from optimizer import Optimizer  # noqa: E402
from PIL import Image  # noqa: E402

from mg_llava.data.records.schema import Turn  # noqa: E402
from mg_llava.data.text.conversation import EncodedConversation, encode_conversation  # noqa: E402
from mg_llava.data.text.coordinates import BoxText  # noqa: E402
from mg_llava.tokens import (  # noqa: E402
    BOX_PLACEHOLDER,
    IMAGE_TOKEN_INDEX,
    OBJECT_PLACEHOLDER,
    OBJECT_TOKEN_INDEX,
)

BOX_TEXT = BoxText("bins", bins=grounding.BINS)
SLOTS, GRID = rendering.SLOTS, scenes.GRID
SIDES = 8
CODE = SIDES + 2 * GRID
"""Directions of the code of a place: two ends for each side of the box in its cell, the columns, the rows."""
CODE_SCALE = 0.6
"""Length of a direction beside that of a word."""
PLACES = np.concatenate([np.tile(np.eye(GRID), (GRID, 1)), np.repeat(np.eye(GRID), GRID, axis=0)], axis=1)
OBJECT_TOKENS = 4
FIRST, LAST = (0, 150), (3, 1000)
"""Layers in which a head carries places, and how strongly: after the first layer the stream is 200 times a word."""
HELD = 200
"""Steps for which the planted heads are held in place."""
ROW_STEPS, ROW_LR = 30, 5e-3
"""First steps, in which the rows of the new words learn alone."""
SHARES = {"T->C": 0.3, "C->T": 0.25, "I->T": 0.1, "C+I->T": 0.1, "I->C": 0.15, "T->I": 0.05, "C->I": 0.05}


@dataclass(frozen=True)
class Phase:
    """A part of the training: until which step, whether digits are to be found alone, and how scenes are spoiled."""

    until: int
    finding: bool = False
    keep_empty: float = 0.0
    noise: rendering.Noise = rendering.CLEAN


PHASES = (
    Phase(220, finding=True),
    Phase(420),
    Phase(620, keep_empty=0.25, noise=rendering.Noise()),
    Phase(1 << 30, keep_empty=1.0, noise=rendering.Noise()),
)


@dataclass(frozen=True)
class Tokens:
    """Tokens of a conversation: bags of words (T, SLOTS), weights, codes (T, CODE), labels and positions (T,)."""

    words: np.ndarray
    weights: np.ndarray
    codes: np.ndarray
    labels: np.ndarray
    positions: np.ndarray


def sample_scene(rng: np.random.Generator, layout: grounding.Layout) -> scenes.Scene:
    """Marks with boxes as drawn ones have, on an empty canvas."""
    marks = []
    for digit, row, column, level in layout:
        height = rng.uniform(*scenes.LEVEL_HEIGHTS[level])
        width = height * rng.uniform(0.45, 1.05)
        x, y = (
            place * scenes.CELL + scenes.CELL / 2 + rng.uniform(-1, 1) * max(scenes.CELL / 2 - side / 2 - 3, 0)
            for place, side in ((column, width), (row, height))
        )
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        marks.append(scenes.Mark(digit, row, column, level, box))
    return scenes.Scene(Image.new("RGB", (scenes.CANVAS, scenes.CANVAS)), tuple(marks))


class Sampler:
    """Draws conversations about scenes and renders them."""

    def __init__(self, renderer: rendering.Renderer, tokenizer: Any) -> None:
        self.renderer, self.tokenizer, self.phase = renderer, tokenizer, PHASES[0]

    def draw(self, rng: np.random.Generator) -> Tokens:
        """A scene with questions about regions, or those of the LLM's first training."""
        frame = scenes.random_frame(rng).usable_cells()
        if self.phase.finding:
            scene = sample_scene(rng, scenes.sample_layout(rng, *frame))
            pairs = _find(rng, scene)
        elif rng.random() < 0.75:
            scene = sample_scene(rng, grounding.sample_repeated(rng, *frame))
            pairs = _about_regions(rng, scene)
        else:
            scene = sample_scene(rng, scenes.sample_layout(rng, *frame))
            pairs = _first_questions(rng, scene)
        turns: list[Turn] = []
        shown: list[int] = []
        for question, answer in pairs:
            shown += [int(mark[1]) for mark in OBJECT_PLACEHOLDER.finditer(question)]
            turns.append(Turn("human", ("" if turns else "<image>\n") + _write_boxes(question, scene)))
            turns.append(Turn("gpt", _write_boxes(answer, scene)))
        return self._render(rng, scene, encode_conversation(turns, self.tokenizer, "vicuna"), shown)

    def batches(self, rng: np.random.Generator, size: int, count: int = 8) -> Iterator[list[Tokens]]:
        """Conversations of some steps, of like lengths each; without end."""
        while True:
            drawn = sorted((self.draw(rng) for _ in range(size * count)), key=lambda item: len(item.labels))
            for start in rng.permutation(count).tolist():
                yield drawn[start * size : (start + 1) * size]

    def _render(
        self, rng: np.random.Generator, scene: scenes.Scene, encoded: EncodedConversation, shown: list[int]
    ) -> Tokens:
        layout = [(mark.digit, mark.row, mark.column, mark.level) for mark in scene.marks]
        noise = replace(self.phase.noise, no_objects=1.0)  # there are no tokens of boxes here
        words, weights, places = self.renderer.words(rng, layout, noise, self.phase.keep_empty)
        codes = np.zeros((rendering.CELLS, CODE), np.float32)
        codes[:, SIDES:] = PLACES
        for mark in scene.marks:
            offsets = np.array(mark.box) / scenes.CELL - [mark.column, mark.row] * 2
            codes[mark.row * GRID + mark.column, :SIDES] = np.concatenate((1 - offsets, offsets))
        pictures = {IMAGE_TOKEN_INDEX: [(words, weights, codes[places], places, rendering.CELLS)]}
        pictures[OBJECT_TOKEN_INDEX] = [self._object(rng, scene.marks[number], noise) for number in shown]
        return _join(encoded, pictures)

    def _object(self, rng: np.random.Generator, mark: scenes.Mark, noise: rendering.Noise) -> tuple[Any, ...]:
        words = np.zeros((OBJECT_TOKENS, SLOTS), np.int64)
        weights = np.zeros(words.shape, np.float32)
        words[:, 0], words[:, 1] = self.renderer.content(mark.digit), self.renderer.word[rendering.EMPTY]
        weights[:, 0] = rng.uniform(0.4, 1, OBJECT_TOKENS)
        weights[:, 1] = 1 - weights[:, 0]
        if noise.mix and mark.digit >= 0 and rng.random() < 0.3:
            words[:, 2] = self.renderer.digits[int(rng.integers(10))]
            weights[:, 2] = weights[:, 0] * rng.uniform(0, noise.mix)
            weights[:, 0] -= weights[:, 2]
        codes = np.zeros((OBJECT_TOKENS, CODE), np.float32)
        return words, weights, codes, np.arange(OBJECT_TOKENS), OBJECT_TOKENS


def _find(rng: np.random.Generator, scene: scenes.Scene) -> list[grounding.Pair]:
    pairs = []
    for number in rng.permutation(list(grounding.phrases(scene))).tolist():
        asked = grounding.ask(rng, scene, "T->C" if rng.random() < 0.75 else "C->T", number)
        assert asked is not None
        pairs.append((asked.question, asked.answer))
    return pairs


def _about_regions(rng: np.random.Generator, scene: scenes.Scene) -> list[grounding.Pair]:
    if rng.random() < 0.25:
        return grounding.describe(scene)
    pairs = []
    for number in rng.permutation(list(grounding.phrases(scene))).tolist():
        kind = list(SHARES)[int(rng.choice(len(SHARES), p=list(SHARES.values())))]
        asked = grounding.ask(rng, scene, kind, number) or grounding.ask(rng, scene, "T->C", number)
        assert asked is not None
        pairs.append((asked.question, asked.answer))
    return pairs


def _first_questions(rng: np.random.Generator, scene: scenes.Scene) -> list[grounding.Pair]:
    layout = [(mark.digit, mark.row, mark.column, mark.level) for mark in scene.marks]
    asked = [language.ask(rng, layout, str(kind)) for kind in rng.choice(language.KINDS, 4)]
    pairs = [(one.question, one.answer) for one in asked]
    if rng.random() < 0.5:
        pairs[0] = (language.caption_prompt(rng), language.caption(layout))
    return pairs


def _write_boxes(text: str, scene: scenes.Scene) -> str:
    return BOX_PLACEHOLDER.sub(lambda mark: BOX_TEXT.write([scene.marks[int(mark[1])].box], scene.image.size), text)


def _join(encoded: EncodedConversation, pictures: dict[int, list[tuple[Any, ...]]]) -> Tokens:
    """Words, weights, codes, places and width of each picture where its placeholder stands."""
    parts: list[tuple[np.ndarray, ...]] = []
    place, waiting = 0, {key: iter(items) for key, items in pictures.items()}
    for token, label in zip(encoded.input_ids, encoded.labels, strict=True):
        if token in waiting:
            words, weights, codes, places, width = next(waiting[token])
            parts.append((words, weights, codes, np.full(len(words), pretrain_llm.IGNORE), place + places))
            place += width
            continue
        words, weights = np.zeros((1, SLOTS), np.int64), np.zeros((1, SLOTS), np.float32)
        words[0, 0], weights[0, 0] = token, 1
        parts.append((words, weights, np.zeros((1, CODE), np.float32), np.array([label]), np.array([place])))
        place += 1
    return Tokens(*(np.concatenate(column) for column in zip(*parts, strict=True)))


class Reader(nn.Module):
    """The LLM, and the directions (CODE, D) of the code of places.

    They are orthogonal, and no word of a digit or a scene has a part of them.
    """

    def __init__(self, llm: Any, tokenizer: Any) -> None:
        super().__init__()
        self.llm, self.gaussian = llm, 0.0
        names = [*(f"▁{digit}" for digit in range(10)), *rendering.SCENE_WORDS]
        known = llm.model.embed_tokens.weight.detach()[tokenizer.convert_tokens_to_ids(names)]
        drawn, basis = torch.randn(CODE, known.shape[1]), torch.linalg.qr(known.T).Q
        self.unit = torch.linalg.qr((drawn - drawn @ basis @ basis.T).T).Q.T
        self.directions = self.unit * known.norm(dim=1).mean() * CODE_SCALE

    def forward(self, drawn: list[Tokens]) -> tuple[Tensor, Tensor]:
        """Logits and labels of the answers' tokens."""
        embedding, rows = self.llm.model.embed_tokens.weight, []
        for item in drawn:
            words, weights = torch.from_numpy(item.words), torch.from_numpy(item.weights)
            vectors = (F.embedding(words, embedding) * weights[..., None]).sum(1)
            vectors = vectors + torch.from_numpy(item.codes) @ self.directions
            if self.gaussian:
                is_seen = (weights[:, 1:].abs().sum(1) > 0)[:, None]
                spoilt = torch.randn_like(vectors) * vectors.detach().std() * self.gaussian
                vectors = vectors + is_seen * spoilt * torch.rand(len(vectors), 1)
            rows.append(vectors)
        pad = partial(nn.utils.rnn.pad_sequence, batch_first=True)
        positions = pad([torch.from_numpy(item.positions) for item in drawn])
        labels = pad([torch.from_numpy(item.labels) for item in drawn], padding_value=pretrain_llm.IGNORE)
        hidden = self.llm.model(inputs_embeds=pad(rows), position_ids=positions, use_cache=False).last_hidden_state
        wanted = labels[:, 1:] != pretrain_llm.IGNORE
        return self.llm.lm_head(hidden[:, :-1][wanted]), labels[:, 1:][wanted]

    @torch.no_grad()
    def plant(self, tokenizer: Any) -> None:
        """Let a head of the first layer find equal digits, and it and one of the last layer carry their places.

        From a random start "where is the 7" stays at a guess for hundreds of steps: it needs both in a row.
        """
        pretrain_llm.plant_matching_head(self.llm, tokenizer)
        scale = self.directions.norm(dim=1).mean() * 1.3 / self.directions.shape[1] ** 0.5
        for layer, strength in (FIRST, LAST):
            attention = self.llm.model.layers[layer].self_attn
            attention.v_proj.weight[:CODE] = self.unit
            attention.o_proj.weight[:, :CODE] = self.unit.T * scale * strength

    @torch.no_grad()
    def start_rows(self, ids: list[int]) -> None:
        """Rows of the words for coordinates, from the code: a cell, and a place in it between two ends."""
        fine = grounding.BINS // GRID
        share = (torch.arange(fine) / (fine - 1))[:, None]
        cell = self.directions[SIDES : SIDES + GRID] + self.directions[SIDES + GRID :]
        low, high = self.directions[:4].mean(0), self.directions[4:SIDES].mean(0)
        middle = F.normalize(torch.randn_like(low), dim=0) * low.norm()
        within = (1 - share) * low + share * high + (share * torch.pi).sin() * middle
        start = (cell[:, None] + within[None]).flatten(0, 1)
        for rows in (self.llm.model.embed_tokens.weight, self.llm.lm_head.weight):
            own = torch.randn_like(start)
            own *= 0.3 * start.norm() / own.norm()
            rows[ids] = (start + own) * rows[: ids[0]].norm(dim=1).mean() / start.norm(dim=1).mean()


def train_rows(reader: Reader, batches: Iterator[list[Tokens]], ids: list[int]) -> None:
    """The rows of the new words alone, which follow those of the old ones."""
    tables = [reader.llm.model.embed_tokens.weight, reader.llm.lm_head.weight]
    optimizer = torch.optim.AdamW(tables, lr=ROW_LR, betas=(0.9, 0.98), weight_decay=0)
    for _ in range(ROW_STEPS):
        loss = F.cross_entropy(*reader(next(batches)))
        grads = torch.autograd.grad(loss, tables)
        for table, grad in zip(tables, grads, strict=True):
            grad[: ids[0]] = 0
            table.grad = grad
        optimizer.step()


def train(llm: Any, tokenizer: Any, arguments: argparse.Namespace) -> None:
    """Muon and AdamW with warm-up and cosine; from finding digits to all questions, noise and empty cells."""
    rng, ids = np.random.default_rng(arguments.seed), tokenizer.convert_tokens_to_ids(list(BOX_TEXT.words))
    sampler, reader = Sampler(rendering.Renderer(llm.model.embed_tokens, tokenizer), tokenizer), Reader(llm, tokenizer)
    reader.start_rows(ids)
    reader.plant(tokenizer)
    matrices = [parameter for parameter in llm.model.layers.parameters() if parameter.ndim == 2]
    optimizer = Optimizer(llm, matrices, arguments.steps, arguments.lr, matrix_lr=10 * arguments.lr)
    train_rows(reader, sampler.batches(rng, arguments.batch_size), ids)
    batches, average = sampler.batches(rng, arguments.batch_size), 0.0
    for step in range(arguments.stop):
        sampler.phase = next(phase for phase in PHASES if step < phase.until)
        reader.gaussian = 0.3 if sampler.phase.noise.mix else 0.0
        loss = F.cross_entropy(*reader(next(batches)))
        optimizer.step(loss)
        if step < HELD:
            reader.plant(tokenizer)
        average += (loss.item() - average) * max(0.05, 1 / (step + 1))
        if step % 50 == 0 or step == arguments.stop - 1:
            print(f"step {step + 1}/{arguments.stop}  loss {average:.3f}", flush=True)


def main() -> None:
    """Command line."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=960, help="length of the schedule (default: %(default)s)")
    parser.add_argument("--stop", type=int, default=720, help="step to stop at (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="scenes per step (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=2e-3, help="of AdamW; Muon's is tenfold (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=HERE / "region_llm", help="default: data/nano/region_llm")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    tokenizer = AutoTokenizer.from_pretrained(HERE / "llm")
    llm = AutoModelForCausalLM.from_pretrained(HERE / "llm", torch_dtype=torch.float32).train()
    tokenizer.add_tokens(list(BOX_TEXT.words))
    llm.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    train(llm, tokenizer, arguments)
    pretrain_llm.save(llm, tokenizer, arguments.out)


if __name__ == "__main__":
    main()
