"""Go on with the LLM of the miniature until its captions need little of an object: data/nano/llm into object_llm.

Where the map does not know a digit, ``llm/`` does not read objects, and after a round of poor maps it reads them past
a threshold alone: less than half of the words of an object says nothing. A projector of boxes that knows no digits yet
gets no gradient through that. Two more rounds have objects as faint as what it says at first, and as long as the
residual stream, and one more head, which starts out with the mean of what all objects say: linear in each of them.

Examples:
    python data/nano/pretrain_objects.py
    python data/nano/pretrain_objects.py --rounds poor --out mine
    python data/nano/pretrain_objects.py --start mine --rounds faint fainter
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import language
import numpy as np
import pretrain_llm
import rendering
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
LOUD = 60.0
"""Length of objects over that of words. After the first layer the residual stream is some 200 times as long as a
word, and what an object says at the length of a word is lost in it."""
LOUD_SHARE, NAMELESS = 0.8, 0.5
"""Scenes whose objects are that long; scenes with faint objects in which the word of objects is faint as well."""
FAINTEST, BESIDE = 0.03, 2.5
"""Least share of the words of an object; greatest length of what all objects of a scene say alike, a noise."""
ATTENTION, GAIN = 6.0, 30.0
"""Of the planted head: log-odds of the word of objects, and gain, so that it speaks at the length of the stream."""


@dataclass(frozen=True)
class Round:
    """A training with a schedule of its own, stopped before its end so that gradients still pass.

    Attributes:
        steps: Length of the schedule.
        stop: Step to stop at.
        phase: What is asked, and about what.
        faint: Share of scenes with faint objects; without any, objects are as long as words.
        widen: Whether the LLM is given one more head first.
    """

    steps: int
    stop: int
    phase: pretrain_llm.Phase
    faint: float = 0.0
    widen: bool = False


def _phase(**noise: float) -> pretrain_llm.Phase:
    known = rendering.Noise(no_objects=0.25, poor_map=0.5)
    return replace(pretrain_llm.PHASES[-1], noise=replace(known, **noise), captions=0.6, keep_empty=0.25)


ROUNDS = {
    # objects were read for "largest" alone: too few scenes had objects that told what their map did not
    "poor": Round(400, 301, replace(pretrain_llm.PHASES[-1], noise=rendering.Noise(no_objects=0.3, poor_map=0.5))),
    "faint": Round(400, 301, _phase(unknown_map=0.4), faint=0.7, widen=True),
    "fainter": Round(400, 251, _phase(unknown_map=0.5, gaussian=0.15), faint=0.85),
}


@torch.no_grad()
def widen(llm: LlamaForCausalLM) -> LlamaForCausalLM:
    """The same function with one more head in each layer, which says nothing yet."""
    config = type(llm.config)(**llm.config.to_dict())
    config.num_attention_heads = config.num_key_value_heads = llm.config.num_attention_heads + 1
    wide, known = LlamaForCausalLM(config), llm.state_dict()
    for name, weight in wide.state_dict().items():
        if name.endswith("o_proj.weight"):
            weight.zero_()
        weight[tuple(slice(size) for size in known[name].shape)] = known[name]
    return wide


@torch.no_grad()
def plant_mean_head(llm: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Initialize the last head of the first layer so that every word gets the mean of what all objects say.

    Queries read what all words have in common and keys the word of objects, both in the pair of the rotary embedding
    that turns slowest; values read digits, distractors and sizes.
    """
    attention, embedding = llm.model.layers[0].self_attn, llm.model.embed_tokens.weight
    width, length = attention.head_dim, embedding.shape[1] ** 0.5
    first = (llm.config.num_attention_heads - 1) * width
    read = F.normalize(embedding[_words_of_texts(tokenizer)], dim=1) * length  # as the norm of the layer gives them
    ridge = torch.cat([read, 0.3 * torch.eye(read.shape[1])])
    wanted = torch.cat([torch.ones(len(read)), torch.zeros(read.shape[1])])
    common = torch.linalg.lstsq(ridge, wanted).solution
    kind = F.normalize(embedding[tokenizer.convert_tokens_to_ids(rendering.OBJECT)], dim=0)
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        projection.weight[first : first + width] *= 0.1
    scale = (ATTENTION * width**0.5 / (0.5 * length)) ** 0.5  # about half of an object's length is its word
    attention.q_proj.weight[first + width // 2 - 1] = common * scale
    attention.k_proj.weight[first + width // 2 - 1] = kind * scale
    said = [*map(str, range(10)), rendering.SHAPE, *rendering.SIZES]
    ids = [tokenizer.encode(word, add_special_tokens=False)[0] for word in said]
    attention.v_proj.weight[first : first + len(ids)] = F.normalize(embedding[ids], dim=1)
    directions = torch.linalg.qr(torch.randn(read.shape[1], width)).Q
    attention.o_proj.weight[:, first : first + width] = GAIN * directions


def _words_of_texts(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Ids of the words that stand in questions and answers."""
    rng = np.random.default_rng(0)
    texts = [pretrain_llm.BEFORE, "\n", pretrain_llm.AFTER]
    for _ in range(200):
        layout = rendering.random_layout(rng)
        asked = [language.ask(rng, layout, kind) for kind in language.KINDS]
        texts += ["\n" + item.question + pretrain_llm.AFTER for item in asked] + [item.answer for item in asked]
        texts += ["\n" + language.caption_prompt(rng), language.caption(layout), language.where(layout)]
    return sorted({i for text in texts for i in tokenizer.encode(text, add_special_tokens=False)})


class FaintSampler(pretrain_llm.Sampler):
    """Draws scenes of which a share has faint objects, and most have long ones."""

    faint = 0.0

    def draw(self, rng: np.random.Generator) -> pretrain_llm.Drawn:
        """A scene with questions and answers about it."""
        drawn = super().draw(rng)
        if not self.faint:
            return drawn
        if rng.random() < self.faint:
            self._fade(rng, drawn)
        if rng.random() < LOUD_SHARE:
            drawn.weights[drawn.places >= rendering.CELLS] *= LOUD
        return drawn

    def _fade(self, rng: np.random.Generator, drawn: pretrain_llm.Drawn) -> None:
        """Make objects faint, beside something that all of them say alike; changes ``drawn``."""
        objects, weights = drawn.places >= rendering.CELLS, drawn.weights
        weights[objects, : rendering.KIND] *= np.exp(rng.uniform(np.log(FAINTEST), 0))
        if rng.random() < NAMELESS:
            weights[objects, rendering.KIND] = rng.random()
        weights[objects, rendering.MIXTURE] = rng.normal(size=10) * rng.uniform(0, BESIDE) / 10**0.5
        drawn.words[objects, rendering.MIXTURE] = rng.integers(4, 260, 10)  # bytes, which stand in no text


class OwnNoise(rendering.Renderer):
    """Noise is relative to the length of each token, where objects are long and words are not."""

    def embed(self, ids: Tensor, weights: Tensor, gaussian: float) -> Tensor:
        """See ``Renderer.embed``."""
        tokens = super().embed(ids, weights, 0.0)
        noise = torch.randn_like(tokens) * tokens.detach().std(dim=1, keepdim=True) * gaussian
        return tokens + noise * torch.rand(len(tokens), 1)


def go_on(start: Path, rounds: Sequence[str], out: Path, arguments: argparse.Namespace) -> None:
    """Train an LLM for some of ``ROUNDS``; each starts from what the one before has written."""
    for name in rounds:
        print(name, flush=True)
        given = ROUNDS[name]
        torch.manual_seed(arguments.seed)
        tokenizer = AutoTokenizer.from_pretrained(start)
        llm = LlamaForCausalLM.from_pretrained(start, torch_dtype=torch.float32)
        if given.widen:
            llm = widen(llm)
            plant_mean_head(llm, tokenizer)
        renderer = (OwnNoise if given.faint else rendering.Renderer)(llm.model.embed_tokens, tokenizer)
        sampler = FaintSampler(pretrain_llm.Writer(tokenizer), renderer, arguments.turns, given.phase)
        sampler.faint = given.faint
        lengths = argparse.Namespace(**vars(arguments) | {"steps": given.steps, "stop": given.stop})
        pretrain_llm.train(llm.train(), sampler, lengths, [given.phase])
        pretrain_llm.save(llm, tokenizer, out)
        start = out


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", nargs="+", choices=ROUNDS, default=[*ROUNDS], help="in this order (default: all)")
    parser.add_argument("--batch-size", type=int, default=16, help="scenes per step (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=6, help="questions per scene (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=1e-3, help="of AdamW (default: %(default)s)")
    parser.add_argument("--matrix-lr", type=float, default=0.01, help="of Muon (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--start", type=Path, default=HERE / "llm", help="LLM to go on with (default: data/nano/llm)")
    parser.add_argument("--out", type=Path, default=HERE / "object_llm", help="default: data/nano/object_llm")
    arguments = parser.parse_args()
    go_on(arguments.start, arguments.rounds, arguments.out, arguments)


if __name__ == "__main__":
    main()
