"""Make the miniature's LLM of regions from scenes as text, in the words of data/nano/llm; it sees no picture here.

A GPT-Neo: its places are learned and added to what a token holds, so that those of the map can start out as a column
and a row, and words for coordinates as those of their cell. What it reads is in ``region_text.py``.

Examples:
    python data/nano/pretrain_region_llm.py                 # into data/nano/region_llm
    python data/nano/pretrain_region_llm.py --stop 20 --out /tmp/small
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import defaultdict
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
import pretrain_llm  # noqa: E402
from optimizer import Optimizer  # noqa: E402
from region_text import CELLS, CONTENTS, GRID, Phase, Sampler, Tokens  # noqa: E402
from transformers import AutoTokenizer, GPTNeoConfig, GPTNeoForCausalLM  # noqa: E402

from mg_llava.data.records.schema import Turn  # noqa: E402
from mg_llava.data.text.conversation import encode_conversation  # noqa: E402
from mg_llava.tokens import IGNORE_INDEX, IMAGE_TOKEN_INDEX  # noqa: E402

HIDDEN, LAYERS, HEADS, WINDOW, POSITIONS = 128, 5, 4, 24, 512
SCALE = 6.0
"""Length of a word in the end: about what a new projector makes of a token of the encoder."""
PATCHES = 32 // GRID
"""Words for coordinates along each side of a cell."""


PHASES = (
    Phase(0.2, repeat=0.0, keep_empty=0.05, fuzzy=0.0, gaussian=0.0, captions=0.1, faint=0.5),
    Phase(0.5, repeat=0.4, keep_empty=0.25, fuzzy=0.3, gaussian=0.3, captions=0.2, faint=0.1),
    Phase(1.0, repeat=0.4, keep_empty=1.0, fuzzy=0.7, gaussian=0.5, captions=0.2, faint=0.0),
)


class Reader(nn.Module):
    """The LLM, which reads what a sampler draws."""

    def __init__(self, llm: Any, tokenizer: Any) -> None:
        super().__init__()
        self.llm, self.gaussian = llm, 0.0
        self.contents = torch.tensor(tokenizer.convert_tokens_to_ids(CONTENTS))

    def forward(self, drawn: list[Tokens]) -> tuple[Tensor, Tensor]:
        """Logits and labels of the answers' tokens, one conversation after the other."""
        pad = partial(nn.utils.rnn.pad_sequence, batch_first=True)
        words, mixtures, positions = (
            pad([torch.from_numpy(getattr(item, name)) for item in drawn])
            for name in ("words", "mixtures", "positions")
        )
        labels = pad([torch.from_numpy(item.labels) for item in drawn], padding_value=IGNORE_INDEX)
        table = self.llm.transformer.wte.weight
        is_seen = mixtures.sum(-1, keepdim=True) > 0
        seen = mixtures @ table[self.contents]
        if self.gaussian:
            share = torch.rand(*seen.shape[:2], 1) * self.gaussian / seen.shape[-1] ** 0.5
            seen = seen * torch.empty(len(seen), 1, 1).uniform_(0.7, 1.4)
            seen = seen + torch.randn_like(seen) * share * seen.detach().norm(dim=-1, keepdim=True)
        embeds = torch.where(is_seen, seen, F.embedding(words, table))
        read = self.llm.transformer(inputs_embeds=embeds, position_ids=positions, use_cache=False)
        wanted = labels[:, 1:] != IGNORE_INDEX
        return self.llm.lm_head(read.last_hidden_state[:, :-1][wanted]), labels[:, 1:][wanted]


def build_llm(tokenizer: Any) -> GPTNeoForCausalLM:
    """The LLM, planted."""
    pairs = LAYERS // 2
    llm = make_llm(tokenizer, [[["local", "global"], pairs], [["local"], LAYERS - 2 * pairs]], WINDOW)
    plant(llm, tokenizer)
    return llm


def make_llm(tokenizer: Any, attention: list[Any], window: int) -> GPTNeoForCausalLM:
    """A small GPT-Neo with layers of these kinds of attention, of which local ones see so many tokens."""
    config = GPTNeoConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        num_layers=sum(len(kinds) * count for kinds, count in attention),
        attention_types=attention,
        num_heads=HEADS,
        intermediate_size=3 * HIDDEN,
        activation_function="gelu",
        window_size=window,
        max_position_embeddings=POSITIONS,
        resid_dropout=0.0,
        embed_dropout=0.0,
        attention_dropout=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return GPTNeoForCausalLM(config)


@torch.no_grad()
def plant(llm: Any, tokenizer: Any) -> None:
    """Start from embeddings that say contents and places, and from heads that find by either.

    Directions are orthogonal: contents, columns, rows, waves of the position, and what is left for words.
    """
    basis = torch.linalg.qr(torch.randn(HIDDEN, HIDDEN)).Q.T
    sizes = [len(CONTENTS), GRID, GRID, 1, 32]
    content, column, row, in_map, waves, rest = basis.split([*sizes, HIDDEN - sum(sizes)])
    place = torch.cat((column, row))
    words, positions = llm.transformer.wte.weight, llm.transformer.wpe.weight
    words.copy_(F.normalize(torch.randn(len(words), len(rest)), dim=1) @ rest)
    words[tokenizer.convert_tokens_to_ids(CONTENTS)] = content
    side = torch.arange(GRID * PATCHES)
    within = rest[: 2 * PATCHES]
    across = 0.7 * column[side // PATCHES] + 0.4 * within[side % PATCHES]
    down = 0.7 * row[side // PATCHES] + 0.4 * within[PATCHES + side % PATCHES]
    patches = [word for word in grounding.BOX_TEXT.words if "patch" in word]
    words[tokenizer.convert_tokens_to_ids(patches)] = (down[:, None] + across[None]).flatten(0, 1)
    turns = torch.arange(POSITIONS)[:, None] * (2 * math.pi / 4 * 128 ** (-torch.arange(16) / 15))[None]
    positions.copy_(0.15 * torch.cat((turns.sin(), turns.cos()), dim=1) @ waves)
    start = map_start(tokenizer)
    cells = torch.arange(CELLS)
    positions[start : start + CELLS] += 0.7 * (column[cells % GRID] + row[cells // GRID]) + 0.5 * in_map
    width = HIDDEN // HEADS
    for layer in range(1, LAYERS, 2):
        attention = llm.transformer.h[layer].attn.attention
        for head, (read, carried, scale) in enumerate(((content, place, 0.32), (place, content, 0.42))):
            at = slice(head * width, head * width + len(read))
            for projection in (attention.q_proj.weight, attention.k_proj.weight):
                projection[head * width : (head + 1) * width] *= 0.1
                projection[at] = scale * read
            attention.q_proj.weight[(head + 1) * width - 1] = 0.3 * read.sum(0)
            attention.k_proj.weight[(head + 1) * width - 1] = 0.3 * in_map[0]
            carry(attention, head, carried)
    for layer in range(2, LAYERS, 2):
        carry(llm.transformer.h[layer].attn.attention, 0, torch.cat((content, place)))


def carry(attention: Any, head: int, directions: Tensor, strength: float = 0.15) -> None:
    """Let a head carry directions from token to token."""
    start = head * HIDDEN // HEADS
    at = slice(start, start + len(directions))
    attention.v_proj.weight[at] = directions
    attention.out_proj.weight[:, at] = strength * directions.T


@torch.no_grad()
def rescale(llm: Any, factor: float = SCALE) -> None:
    """Lengthen what flows from layer to layer; norms make the same LLM of it, but tokens as long as a projector's."""
    transformer = llm.transformer
    written = [transformer.wte.weight, transformer.wpe.weight]
    for block in transformer.h:
        written += [*block.attn.attention.out_proj.parameters(), *block.mlp.c_proj.parameters()]
    for parameter in written:
        parameter *= factor
    for parameter in transformer.ln_f.parameters():
        parameter /= factor


def map_start(tokenizer: Any) -> int:
    """Position of the first token of the map."""
    turns = [Turn("human", "<image>\nWhere?"), Turn("gpt", "There.")]
    return encode_conversation(turns, tokenizer, "vicuna").input_ids.index(IMAGE_TOKEN_INDEX)


@torch.no_grad()
def measure(reader: Reader, sampler: Sampler, rng: np.random.Generator, count: int = 60) -> dict[str, float]:
    """Share of answers that are right word for word, by kind, in scenes of the sampler's phase."""
    found = defaultdict(list)
    kept, reader.gaussian = reader.gaussian, 0.0
    for _ in range(count):
        item = sampler.draw(rng)
        if item.kinds:
            logits, labels = reader([item])
            right, ends = logits.argmax(-1) == labels, (labels == sampler.tokenizer.eos_token_id).cumsum(0)
            answers = ends - (labels == sampler.tokenizer.eos_token_id).long()
            for number, kind in enumerate(item.kinds):
                found[kind].append(bool(right[answers == number].all()))
    reader.gaussian = kept
    return {kind: float(np.mean(found[kind])) for kind in sorted(found)}


def train(llm: Any, tokenizer: Any, arguments: argparse.Namespace) -> None:
    """Muon and AdamW with warm-up and cosine; from single classes and clean maps to repeated classes and noise."""
    rng, sampler, reader = np.random.default_rng(arguments.seed), Sampler(tokenizer, PHASES[0]), Reader(llm, tokenizer)
    matrices = [parameter for parameter in llm.transformer.h.parameters() if parameter.ndim == 2]
    optimizer = Optimizer(llm, matrices, arguments.steps, arguments.lr, matrix_lr=arguments.matrix_lr)
    batches, average, start = sampler.batches(rng, arguments.batch_size), 0.0, time.time()
    for step in range(min(arguments.stop, arguments.steps)):
        sampler.phase = next(phase for phase in PHASES if step < phase.until * arguments.steps)
        reader.gaussian = sampler.phase.gaussian
        loss = F.cross_entropy(*reader(next(batches)))
        optimizer.step(loss)
        average += (loss.item() - average) * max(0.05, 1 / (step + 1))
        if step % 100 == 99 or step in (0, 20, 50) or step == arguments.stop - 1:
            told = "  ".join(f"{kind} {100 * share:.0f}" for kind, share in measure(reader, sampler, rng).items())
            print(f"step {step + 1}  loss {average:.3f}  {time.time() - start:.0f} s  {told}", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=900, help="length of the schedule (default: %(default)s)")
    parser.add_argument("--stop", type=int, default=900, help="step to stop at (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="scenes per step (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=2e-3, help="of AdamW (default: %(default)s)")
    parser.add_argument("--matrix-lr", type=float, default=0.01, help="of Muon (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=HERE / "region_llm", help="default: data/nano/region_llm")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    tokenizer = AutoTokenizer.from_pretrained(HERE / "llm")
    tokenizer.add_tokens(list(grounding.BOX_TEXT.words))
    llm = build_llm(tokenizer).train()
    train(llm, tokenizer, arguments)
    rescale(llm)
    pretrain_llm.save(llm, tokenizer, arguments.out)


if __name__ == "__main__":
    main()
