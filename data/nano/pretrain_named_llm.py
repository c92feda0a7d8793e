"""Make the miniature's LLM of names from scenes as text, in the words of data/nano/llm; it sees no picture here.

A GPT-Neo as data/nano/region_llm: places are learned and added to tokens. What a name needs starts out planted, a step
a layer: the number before an object goes onto it; the number in a question finds the object and brings its content;
the content finds the map token of its class and brings its place; both go onto the word after the name; and at the
answer the content is said, or the two places are compared. What it reads is in ``named_text.py``.

Examples:
    python data/nano/pretrain_named_llm.py                 # into data/nano/named_llm
    python data/nano/pretrain_named_llm.py --rounds scenes --stop 20 --out /tmp/small
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grounding
import numpy as np
import pretrain_llm
import rendering
import torch
import torch.nn.functional as F
from named_text import AGAIN, PHASES, NamedSampler
from pretrain_region_llm import HEADS, HIDDEN, POSITIONS, SCALE, carry, make_llm, map_start, rescale
from torch import Tensor
from transformers import AutoTokenizer, GPTNeoForCausalLM

HERE = Path(__file__).resolve().parent
WAVES = 16
WINDOW = 2
"""Local layers see a token and the one before it."""
LAYERS = 6
ATTENTION = [[["local", "global", "global"], LAYERS // 3]]
CONTENTS = [*(f"▁{digit}" for digit in range(10)), rendering.SHAPE, rendering.EMPTY]
FIRST = "scenes"
ROUNDS = {FIRST: (600, PHASES), "choices": (300, AGAIN)}
"""Steps and phases; a choice among four digits is learned last."""
HELD_LAYERS = 4
"""Layers whose head 0 stays as it is planted."""
ENDS = (("leftmost",), ("topmost", "top"), ("largest",))
"""Words of questions for the digit that is furthest to the left, at the top or largest."""
GRID, CELLS = rendering.scenes.GRID, rendering.CELLS


def build_llm(tokenizer: Any) -> GPTNeoForCausalLM:
    """The LLM, planted."""
    llm = make_llm(tokenizer, ATTENTION, WINDOW)
    plant(llm, tokenizer)
    return llm


@torch.no_grad()
def plant(llm: Any, tokenizer: Any) -> None:
    """Start from embeddings that say contents, places and numbers, and from heads for each step of a name.

    Directions are orthogonal: contents, sizes, columns, rows, being of the map, what all tokens have, waves of the
    position, numbers of names, numbers of objects, what a number has found and how far right, and the rest for words.
    """
    basis = torch.linalg.qr(torch.randn(HIDDEN, HIDDEN)).Q.T
    widths = [len(CONTENTS), len(rendering.SIZES), GRID, GRID, 1, 1, WAVES, 10, 10, 10, 1]
    parts = basis.split([*widths, HIDDEN - sum(widths)])
    content, size, column, row, in_map, common, waves, number, tag, found, right, rest = parts
    digit, place, slope = content[:10], torch.cat((column, row, in_map)), torch.linspace(-1, 1, GRID)[None] @ column
    words, positions = llm.transformer.wte.weight, llm.transformer.wpe.weight
    words.copy_(F.normalize(torch.randn(len(words), len(rest)), dim=1) @ rest)
    words[tokenizer.convert_tokens_to_ids(CONTENTS)] = content
    words[tokenizer.convert_tokens_to_ids(rendering.SIZES)] = size
    words[[_last(tokenizer, grounding.NAME.format(name)) for name in range(10)]] = number
    half = WAVES // 2
    turns = torch.arange(POSITIONS)[:, None] * (2 * math.pi / 4 * 128 ** (-torch.arange(half) / (half - 1)))[None]
    positions.copy_(0.15 * torch.cat((turns.sin(), turns.cos()), dim=1) @ waves + 0.4 * common)
    start, cells = map_start(tokenizer), torch.arange(CELLS)
    positions[start : start + CELLS] += 0.7 * (column[cells % GRID] + row[cells // GRID]) + 0.5 * in_map
    blocks = [block.attn.attention for block in llm.transformer.h]
    _look_back(blocks[0], number, common, 0.5)
    _move(blocks[0], 0, number, tag, 0.15)
    match(blocks[1], 0, number, tag, 0.45, 0.15 * content.sum(0, keepdim=True))
    _move(blocks[1], 0, digit, found, 0.3)
    match(blocks[1], 1, content, content, 0.32, 0.3 * in_map)
    carry(blocks[1], 1, place, 0.2)
    _plant_ends(blocks[1], words, tokenizer, (digit, column, row, size, in_map, found))
    match(blocks[2], 0, found, digit, 0.45, 0.6 * in_map)
    _move(blocks[2], 0, slope, right, 0.4)
    _look_back(blocks[3], number, common, 1.0)
    carry(blocks[3], 0, torch.cat((found, right)), 0.25)
    _plant_answers(blocks[4], words, tokenizer, (found, digit, right, waves))


def _last(tokenizer: Any, text: str) -> int:
    return int(tokenizer.encode(text, add_special_tokens=False)[-1])


def _rows(attention: Any, head: int) -> slice:
    """Rows of a head, with queries and keys that hardly say anything yet."""
    at = slice(head * HIDDEN // HEADS, (head + 1) * HIDDEN // HEADS)
    for projection in (attention.q_proj.weight, attention.k_proj.weight):
        projection[at] *= 0.1
    return at


def _look_back(attention: Any, number: Tensor, common: Tensor, scale: float) -> None:
    """Let head 0 of a local layer see the number of a name from the token after it, and never from itself."""
    last = _rows(attention, 0).stop - 1
    attention.q_proj.weight[last] = scale * (common[0] - number.sum(0))
    attention.k_proj.weight[last] = scale * number.sum(0)


def match(
    attention: Any, head: int, asked: Tensor, given: Tensor, scale: float, preferred: Tensor | None = None
) -> None:
    """Let a head find what is asked among what is given, a direction each; best in tokens with ``preferred``."""
    at = _rows(attention, head)
    attention.q_proj.weight[at.start : at.start + len(asked)] = scale * asked
    attention.k_proj.weight[at.start : at.start + len(given)] = scale * given
    if preferred is not None:
        attention.q_proj.weight[at.stop - 1] = preferred.norm() * asked.sum(0)
        attention.k_proj.weight[at.stop - 1] = preferred[0]


def _move(attention: Any, head: int, read: Tensor, written: Tensor, strength: float) -> None:
    """Let a head write directions in the place of those that it reads."""
    start = head * HIDDEN // HEADS
    attention.v_proj.weight[start : start + len(read)] = read
    attention.out_proj.weight[:, start : start + len(read)] = strength * written.T


def _plant_ends(attention: Any, words: Tensor, tokenizer: Any, directions: tuple[Tensor, ...]) -> None:
    """Let head 2 find the digit that is leftmost, topmost or largest, from these words."""
    digit, column, row, size, in_map, found = directions
    slope = torch.linspace(-1, 1, GRID)[None]
    marks = 0.6 * digit.sum(0) + 0.6 * in_map[0]
    keys = torch.cat((marks - 0.45 * slope @ column, marks - 0.45 * slope @ row, marks + 0.2 * (size[1:] - size[:1])))
    ends = [words[[_last(tokenizer, text) for text in texts]].sum(0) for texts in ENDS]
    match(attention, 2, torch.stack(ends), keys, 0.5)
    _move(attention, 2, digit, found, 0.3)


def _plant_answers(attention: Any, words: Tensor, tokenizer: Any, directions: tuple[Tensor, ...]) -> None:
    """Let the last token of a question say what a name has found, or compare what two have; of the last question.

    The first name of a comparison has ``left`` after it, the second the question mark, as the one of a content.
    """
    found, digit, right, waves = directions
    ends = [_last(tokenizer, pretrain_llm.AFTER), _last(tokenizer, "Is obj1 left"), _last(tokenizer, "obj1?")]
    end, first, second = (words[token] for token in ends)
    side = words[_last(tokenizer, "left")] - words[_last(tokenizer, "right")]
    near = waves.unflatten(0, (2, -1))[:, 3:7].flatten(0, 1)  # of a question's length
    asked = second + words[[_last(tokenizer, text) for texts in ENDS for text in texts]].sum(0)
    heads = ((asked, found, digit, 0.2), (first, right, side[None], -0.3), (second, right, side[None], 0.3))
    for head, (key, read, written, strength) in enumerate(heads):
        match(attention, head, near, near, 1.2)
        last = (head + 1) * HIDDEN // HEADS - 1
        attention.q_proj.weight[last] = end
        attention.k_proj.weight[last] = key
        _move(attention, head, read, written, strength)


def hold(llm: Any) -> None:
    """Let words, places and the heads of the steps up to the answer stay as they are planted.

    Questions of two steps are few, and before they pay training takes these heads for others.
    """
    for embedding in (llm.transformer.wte, llm.transformer.wpe):
        embedding.weight.requires_grad_(False)
    width = HIDDEN // HEADS
    trained = torch.ones(HIDDEN, 1)
    trained[:width] = 0  # head 0
    for block in llm.transformer.h[:HELD_LAYERS]:
        attention = block.attn.attention
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            projection.weight.register_hook(lambda gradient: gradient * trained)
        attention.out_proj.weight.register_hook(lambda gradient: gradient * trained.T)


@torch.no_grad()
def measure(llm: Any, sampler: NamedSampler, rng: np.random.Generator, count: int = 60) -> dict[str, float]:
    """Share of answers that are right word for word, by kind of question, in scenes of the sampler's phase."""
    found: dict[str, list[bool]] = defaultdict(list)
    for _ in range(count):
        embeddings, labels, positions = sampler.batch(rng, 1)
        logits = llm(inputs_embeds=embeddings, position_ids=positions).logits[0, :-1]
        wanted = labels[0, 1:] != pretrain_llm.IGNORE
        right, said = (logits.argmax(-1) == labels[0, 1:])[wanted], labels[0, 1:][wanted]
        is_end = said == llm.config.eos_token_id
        answers = is_end.cumsum(0) - is_end.long()
        for number, kind in enumerate(sampler.kinds):
            found[kind].append(bool(right[answers == number].all()))
    return {kind: float(np.mean(hits)) for kind, hits in sorted(found.items())}


def go_on(rounds: Sequence[str], start: Path, arguments: argparse.Namespace) -> None:
    """Train for some of ``ROUNDS``: the first makes an LLM; each other goes on with what the one before wrote."""
    for name in rounds:
        print(name, flush=True)
        torch.manual_seed(arguments.seed)
        steps, phases = ROUNDS[name]
        tokenizer = AutoTokenizer.from_pretrained(HERE / "llm")
        if name == FIRST:
            llm = build_llm(tokenizer)
        else:
            llm = GPTNeoForCausalLM.from_pretrained(start, torch_dtype=torch.float32)
            rescale(llm, 1 / SCALE)
        renderer = rendering.Renderer(llm.get_input_embeddings(), tokenizer)
        sampler = NamedSampler(pretrain_llm.Writer(tokenizer), renderer, arguments.turns, phases[0])
        hold(llm)
        lengths = {"steps": arguments.steps or steps, "stop": arguments.stop or arguments.steps or steps}
        pretrain_llm.train(llm.train(), sampler, argparse.Namespace(**vars(arguments) | lengths), phases)
        rescale(llm)
        pretrain_llm.save(llm, tokenizer, arguments.out)
        start = arguments.out


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", nargs="+", choices=ROUNDS, default=[*ROUNDS], help="in this order (default: all)")
    parser.add_argument("--steps", type=int, help="length of the schedule of each (default: the round's)")
    parser.add_argument("--stop", type=int, help="step to stop at (default: the last one)")
    parser.add_argument("--batch-size", type=int, default=16, help="scenes per step (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=6, help="questions per scene (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=2e-3, help="of AdamW (default: %(default)s)")
    parser.add_argument("--matrix-lr", type=float, default=0.01, help="of Muon (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=HERE / "named_llm", help="default: data/nano/named_llm")
    parser.add_argument("--start", type=Path, help="LLM that a later round goes on with (default: what is in --out)")
    arguments = parser.parse_args()
    go_on(arguments.rounds, arguments.start or arguments.out, arguments)


if __name__ == "__main__":
    main()
