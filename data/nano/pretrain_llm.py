"""Make the tokenizer of the miniature and pretrain its LLM on text renderings of scenes, in XTuner's Vicuna template.

The LLM reads what ``rendering.py`` writes (no picture is involved) and answers every kind of question, gives captions,
and answers text-only questions. Its token layout is the one of the model: BOS, ``USER: ``, the scene, the question,
`` ASSISTANT:``, the answer, EOS, and a newline before the next turn.

Examples:
    python data/nano/pretrain_llm.py                      # into data/nano/llm; --layers 2 for a smaller one
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import language
import numpy as np
import rendering
import scenes
import torch
import torch.nn.functional as F
from optimizer import Optimizer
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
PAD, BOS, EOS, UNK = "<pad>", "<s>", "</s>", "<unk>"
BEFORE, AFTER, SEPARATOR = "USER: ", " ASSISTANT:", "\n"
IGNORE = -100
VOCABULARY = 512
HELD_SHARE = 0.4
"""In this first share of the steps the planted head is held in place, until the rest has learnt to use it."""
HEAD_DIM = 64
MATCH, PREFER = 1.7, 2.8
"""Strength of the two parts of the planted head; PREFER lies between MATCH and twice MATCH."""
TURN = 0.8
"""Strength of the two heads that read columns."""


@dataclass(frozen=True)
class Phase:
    """A part of the training.

    Attributes:
        until: Where it ends, as a share of all steps.
        shares: How often each of ``language.KINDS`` is asked.
        captions: How often each of the two captions is asked for.
        text_only: How often a question without a scene comes last.
        keep_empty: Share of the empty map tokens that are rendered.
        noise: How scenes are spoiled.
    """

    until: float
    shares: Sequence[float]
    captions: float
    text_only: float
    keep_empty: float
    noise: rendering.Noise


SHARES = (0.1, 0.1, 0.12, 0.1, 0.25, 0.2, 0.13)
FINDING = (0.05, 0.07, 0.08, 0.07, 0.38, 0.27, 0.08)
CLEAN = replace(rendering.CLEAN, no_objects=0.6)
PHASES = (
    Phase(0.2, SHARES, 0.35, 0.0, 0.0, CLEAN),
    Phase(0.3, FINDING, 0.1, 0.0, 0.0, CLEAN),
    Phase(0.45, SHARES, 0.35, 0.0, 0.0, CLEAN),
    Phase(0.65, SHARES, 0.35, 0.4, 0.25, rendering.Noise()),
    Phase(0.85, SHARES, 0.4, 0.4, 0.25, rendering.Noise()),
    Phase(1.0, SHARES, 0.4, 0.4, 1.0, rendering.Noise()),
)
"""From easy to hard: with noise, object tokens and empty cells from the start, "which digit is at the top" stays at a
guess among the digits for over a thousand steps. "Is there a 7" needs a while in which it is asked often."""


def build_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Byte-fallback BPE in the manner of Llama's, trained on the texts of the miniature."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNK, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n"), "isolated"),
            pre_tokenizers.Metaspace("▁", prepend_scheme="first"),
            pre_tokenizers.Split(Regex(r"[.,:?]"), "isolated"),
        ]
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    size, special = VOCABULARY - len(rendering.SCENE_WORDS), [PAD, BOS, EOS, UNK, *bytes_]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(_corpus(seed), trainer)
    names = {"pad_token": PAD, "bos_token": BOS, "eos_token": EOS, "unk_token": UNK}
    others = {"clean_up_tokenization_spaces": False, "model_max_length": 512, "padding_side": "right"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, **others)
    fast.add_tokens([AddedToken(word, normalized=False) for word in rendering.SCENE_WORDS])
    return fast


def _corpus(seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    texts = [f" {digit}" for digit in range(10)] * 200 + [BEFORE, AFTER, SEPARATOR] * 100
    texts += list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.,:;?!-'()\n ")
    for _ in range(2000):
        layout = rendering.random_layout(rng)
        asked = [language.ask(rng, layout, kind) for kind in language.KINDS] + [language.ask_text_only(rng)]
        texts += [text for question in asked for text in ("\n" + question.question + AFTER, question.answer)]
        texts += ["\n" + language.caption_prompt(rng) + AFTER, language.caption(layout)]
        texts += ["\n" + language.WHERE_PROMPT + AFTER, language.where(layout)]
    return texts


class Writer:
    """Encodes conversations as XTuner does; the parts of a turn are tokenized one by one."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self.tokenizer = tokenizer
        self.encode = cache(lambda text: tuple(tokenizer.encode(text, add_special_tokens=False)))

    def first(self, question: str) -> tuple[list[int], list[int]]:
        """Ids before and after the scene in a turn that has one."""
        return [self.tokenizer.bos_token_id, *self.encode(BEFORE)], list(self.encode("\n" + question + AFTER))

    def later(self, question: str) -> list[int]:
        """Ids of a turn without a scene, up to the answer."""
        return [self.tokenizer.bos_token_id, *self.encode(BEFORE + question + AFTER)]

    def answer(self, text: str) -> list[int]:
        """Ids of an answer."""
        return [*self.encode(text), self.tokenizer.eos_token_id]


@dataclass(frozen=True)
class Drawn:
    """A training conversation about a scene.

    Attributes:
        words: (n, SLOTS) word ids of the scene's tokens.
        weights: (n, SLOTS) their weights.
        places: (n,) places of the scene's tokens, counted from the first.
        ids: Ids of the text.
        labels: Of the text.
        place: Where in the text the scene comes in.
    """

    words: np.ndarray
    weights: np.ndarray
    places: np.ndarray
    ids: list[int]
    labels: list[int]
    place: int


class Sampler:
    """Draws training conversations about scenes: word bags of the scene, text ids, labels."""

    def __init__(self, writer: Writer, renderer: rendering.Renderer, turns: int, phase: Phase):
        self.writer, self.renderer, self.turns, self.phase = writer, renderer, turns, phase

    def questions(self, rng: np.random.Generator, layout: language.Layout) -> list[language.Question]:
        """Questions and answers about one layout, in random order, often with captions."""
        kinds = rng.choice(language.KINDS, self.turns, p=self.phase.shares)
        asked = [language.ask(rng, layout, str(kind)) for kind in kinds]
        if rng.random() < self.phase.captions:
            asked[0] = language.Question("caption", language.caption_prompt(rng), language.caption(layout))
        if rng.random() < self.phase.captions:
            asked[1] = language.Question("where", language.WHERE_PROMPT, language.where(layout))
        if rng.random() < 0.5:
            asked.reverse()
        if rng.random() < self.phase.text_only:
            asked.append(language.ask_text_only(rng))
        return asked

    def draw(self, rng: np.random.Generator) -> Drawn:
        """A scene with questions and answers about it."""
        layout = rendering.random_layout(rng)
        scene = self.renderer.words(rng, layout, self.phase.noise, self.phase.keep_empty)
        return self.write(scene, self.questions(rng, layout))

    def write(self, scene: tuple[np.ndarray, ...], asked: Sequence[language.Question]) -> Drawn:
        """A conversation about words, weights and places of a scene."""
        ids: list[int] = []
        labels: list[int] = []
        place = 0
        for turn, question in enumerate(asked):
            if turn == 0:
                before, after = self.writer.first(question.question)
                place, prompt = len(before), before + after
            else:
                prompt = [*self.writer.encode(SEPARATOR), *self.writer.later(question.question)]
            target = self.writer.answer(question.answer)
            ids += prompt + target
            labels += [IGNORE] * len(prompt) + target
        return Drawn(*scene, ids, labels, place)

    def batch(self, rng: np.random.Generator, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings (B, T, d), labels and positions (B, T), right-padded."""
        drawn = [self.draw(rng) for _ in range(size)]
        words = torch.from_numpy(np.concatenate([item.words for item in drawn]))
        weights = torch.from_numpy(np.concatenate([item.weights for item in drawn]))
        scene = self.renderer.embed(words, weights, self.phase.noise.gaussian)
        text = self.renderer.embedding(torch.tensor([i for item in drawn for i in item.ids]))
        rows, labels, positions, s, t = [], [], [], 0, 0
        for item in drawn:
            n, length, place = len(item.words), len(item.ids), item.place
            rows.append(torch.cat((text[t : t + place], scene[s : s + n], text[t + place : t + length])))
            labels.append(torch.tensor(item.labels[:place] + [IGNORE] * n + item.labels[place:]))
            seen = place + torch.from_numpy(item.places)
            positions.append(torch.cat((torch.arange(place), seen, seen[-1:] + 1 + torch.arange(length - place))))
            s, t = s + n, t + length
        pad = partial(nn.utils.rnn.pad_sequence, batch_first=True)
        return pad(rows), pad(labels, padding_value=IGNORE), pad(positions)


def answer_loss(llm: LlamaForCausalLM, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Cross entropy of the answers of a batch; one of n tokens weighs sqrt(n)."""
    embeddings, labels, positions = batch
    hidden = llm.base_model(inputs_embeds=embeddings, position_ids=positions, use_cache=False).last_hidden_state
    wanted = labels[:, 1:] != IGNORE
    logits, labels = llm.lm_head(hidden[:, :-1][wanted]), labels[:, 1:][wanted]
    ends = labels == llm.config.eos_token_id
    answers = ends.cumsum(0) - ends.long()  # number of the answer that each token belongs to
    weights = torch.bincount(answers)[answers].float().rsqrt()
    return (F.cross_entropy(logits, labels, reduction="none") * weights).sum() / weights.sum()


def build_llm(tokenizer: PreTrainedTokenizerFast, layers: int = 4) -> LlamaForCausalLM:
    """The LLM, about a million parameters."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=layers,
        num_attention_heads=4,
        head_dim=HEAD_DIM,
        max_position_embeddings=512,
        initializer_range=0.06,
        rope_theta=(scenes.GRID / (2 * math.pi)) ** (HEAD_DIM / 2),  # the second pair turns once in a row of the map
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    llm = LlamaForCausalLM(config)
    llm.lm_head.weight.data.copy_(llm.model.embed_tokens.weight.data)
    plant_matching_head(llm, tokenizer)
    _plant_column_heads(llm, tokenizer)
    return llm


@torch.no_grad()
def plant_matching_head(llm: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Initialize one head of the first layer so that a digit attends to the same digit in the scene, else to itself.

    Questions such as "is there a 7" need this; from a random start training sits on a long plateau before it finds it.
    Queries and keys read the words of the digits; one more pair lets digits prefer what has a size, that is, marks of
    the scene. All of this sits in the slowly turning pairs of the rotary embedding.
    """
    attention, embedding = llm.model.layers[0].self_attn, llm.model.embed_tokens.weight
    digits = [tokenizer.encode(str(digit), add_special_tokens=False)[0] for digit in range(10)]
    words = F.normalize(embedding[digits], dim=1) * MATCH**0.5
    sizes = F.normalize(embedding[tokenizer.convert_tokens_to_ids(rendering.SIZES)], dim=1) * PREFER**0.5
    width = attention.head_dim
    first = width // 2 - len(digits)
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight[:width] *= 0.1
        projection.weight[first : first + len(digits)] = words
    attention.q_proj.weight[width - 1] = F.normalize(embedding[digits], dim=1).sum(0) * PREFER**0.5
    attention.k_proj.weight[width - 1] = sizes.sum(0)


@torch.no_grad()
def _plant_column_heads(llm: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Initialize two heads of the first layer so that the tokens of the map attend to the first token by their column.

    One pair of the rotary embedding turns once in a row of the map: in it, a query from a map token and a key from
    BOS meet at an angle that says the column. The two heads are a quarter of a turn apart.
    """
    attention, embedding = llm.model.layers[0].self_attn, llm.model.embed_tokens.weight
    contents = [rendering.EMPTY, rendering.SHAPE, rendering.UNKNOWN, *map(str, range(10))]
    ids = [tokenizer.encode(word, add_special_tokens=False)[0] for word in contents]
    width, pair = attention.head_dim, 1
    for head, half in ((1, 0), (2, width // 2)):
        start = head * width
        for projection in (attention.q_proj, attention.k_proj):
            projection.weight[start : start + width] *= 0.1
        attention.q_proj.weight[start + pair] = F.normalize(embedding[ids], dim=1).sum(0) * TURN**0.5
        attention.k_proj.weight[start + pair + half] = (
            F.normalize(embedding[tokenizer.bos_token_id], dim=0) * TURN**0.5
        )


def train(
    llm: LlamaForCausalLM, sampler: Sampler, arguments: argparse.Namespace, phases: Sequence[Phase] = PHASES
) -> None:
    """Muon and AdamW with warm-up and cosine; every batch is new. In the first phases the matching head is held."""
    rng = np.random.default_rng(arguments.seed)
    matrices = [module.weight for module in llm.base_model.modules() if isinstance(module, nn.Linear)]
    optimizer = Optimizer(llm, matrices, arguments.steps, arguments.lr, matrix_lr=arguments.matrix_lr)
    start, average = time.time(), 0.0
    for step in range(min(arguments.steps, arguments.stop)):
        sampler.phase = next(phase for phase in phases if step < phase.until * arguments.steps)
        loss = answer_loss(llm, sampler.batch(rng, arguments.batch_size))
        optimizer.step(loss)
        if phases is PHASES and step < HELD_SHARE * arguments.steps:
            plant_matching_head(llm, sampler.writer.tokenizer)
        average += (loss.item() - average) * max(0.02, 1 / (step + 1))
        if step % 50 == 0:
            print(f"step {step + 1}/{arguments.steps}  loss {average:.3f}  {time.time() - start:.0f} s", flush=True)


def save(llm: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a Hugging Face folder, weights in half precision."""
    llm.config._name_or_path = ""  # the folder that it was read from here
    llm.save_pretrained(folder, state_dict={key: value.detach().half() for key, value in llm.state_dict().items()})
    tokenizer.save_pretrained(folder)
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    GenerationConfig(**special, pad_token_id=tokenizer.pad_token_id, do_sample=False).save_pretrained(folder)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2400, help="length of the schedule (default: %(default)s)")
    # An LLM that is trained to the end answers better from perfect text, but its attention is so sharp that projectors
    # which are still wrong get little gradient through it: stage 1 then needs more steps than the demo has.
    parser.add_argument("--stop", type=int, default=1201, help="step to stop at (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="scenes per step (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=6, help="questions per scene (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=2e-3, help="of AdamW (default: %(default)s)")
    parser.add_argument("--matrix-lr", type=float, default=0.02, help="of Muon (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--layers", type=int, default=4, help="of a new LLM (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=HERE / "llm", help="default: data/nano/llm")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    tokenizer = build_tokenizer(arguments.seed)
    llm = build_llm(tokenizer, arguments.layers)
    renderer = rendering.Renderer(llm.model.embed_tokens, tokenizer)
    train(llm, Sampler(Writer(tokenizer), renderer, arguments.turns, PHASES[0]), arguments)
    save(llm, tokenizer, arguments.out)


if __name__ == "__main__":
    main()
