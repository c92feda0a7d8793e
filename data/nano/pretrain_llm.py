"""Make the tokenizer of the miniature and pretrain its LLM on text renderings of scenes, in XTuner's Vicuna template.

The LLM reads what ``rendering.py`` writes (no picture is involved) and answers every kind of question, gives captions,
and answers text-only questions. Its token layout is the one of the model: BOS, ``USER: ``, the scene, the question,
`` ASSISTANT:``, the answer, EOS, and a newline before the next turn.

Examples:
    python data/nano/pretrain_llm.py                      # into data/nano/llm
    python data/nano/pretrain_llm.py --steps 300 --out /tmp/llm
"""

from __future__ import annotations

import argparse
import time
from functools import cache
from pathlib import Path

import language
import numpy as np
import rendering
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
SHARES = [0.16, 0.08, 0.08, 0.08, 0.24, 0.2, 0.16]
"""How often each of ``language.KINDS`` is asked; kinds that take longer to learn are asked more often."""

FIRST_SHARES = [0.05, 0.0, 0.0, 0.0, 0.55, 0.4, 0.0]
FIRST_STEPS = 220
"""The first steps ask almost only for what needs a digit of the question to be found in the scene."""
HELD_SHARE = 0.4
"""In this first share of the steps the planted head is held in place, until the rest has learnt to use it."""
MATCH, PREFER = 1.2, 2.0
"""Strength of the two parts of the planted head; PREFER lies between MATCH and twice MATCH."""
SPARSE_SHARE = 0.6
"""In this first share of the steps most empty map tokens are left out: shorter sequences, more steps."""


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
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(rendering.SCENE_WORDS),
        special_tokens=[PAD, BOS, EOS, UNK, *bytes_],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(seed), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
        padding_side="right",
    )
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
    return texts


class Writer:
    """Encodes conversations as XTuner does; the parts of a turn are tokenized one by one."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self.tokenizer = tokenizer
        self.encode = cache(lambda text: tuple(tokenizer.encode(text, add_special_tokens=False)))

    def first(self, question: str) -> tuple[list[int], list[int]]:
        """Ids before and after the scene in a turn that has one."""
        bos = self.tokenizer.bos_token_id
        return [bos, *self.encode(BEFORE)], list(self.encode("\n" + question + AFTER))

    def later(self, question: str) -> list[int]:
        """Ids of a turn without a scene, up to the answer."""
        return [self.tokenizer.bos_token_id, *self.encode(BEFORE + question + AFTER)]

    def answer(self, text: str) -> list[int]:
        """Ids of an answer."""
        return [*self.encode(text), self.tokenizer.eos_token_id]


class Sampler:
    """Draws training conversations about scenes: word bags of the scene, text ids, labels."""

    def __init__(self, writer: Writer, renderer: rendering.Renderer, noise: rendering.Noise, turns: int):
        self.writer, self.renderer, self.noise, self.turns = writer, renderer, noise, turns
        self.shares, self.extras = SHARES, True

    def questions(self, rng: np.random.Generator, layout: language.Layout) -> list[tuple[str, str]]:
        """Questions and answers about one layout, in random order; sometimes a caption comes first."""
        kinds = rng.choice(language.KINDS, self.turns, p=self.shares)
        pairs = []
        for kind in kinds:
            question = language.ask(rng, layout, str(kind))
            pairs.append((question.question, question.answer))
        if not self.extras:
            return pairs
        if rng.random() < 0.15:
            pairs[0] = (language.caption_prompt(rng), language.caption(layout))
        if rng.random() < 0.3:
            question = language.ask_text_only(rng)
            pairs.append((question.question, question.answer))
        return pairs

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[int], list[int], int]:
        """Word ids, weights, text ids, labels, and the position of the scene in the text."""
        layout = rendering.random_layout(rng)
        words, weights = self.renderer.words(rng, layout, self.noise)
        ids: list[int] = []
        labels: list[int] = []
        place = 0
        for turn, (question, answer) in enumerate(self.questions(rng, layout)):
            if turn == 0:
                before, after = self.writer.first(question)
                place, prompt = len(before), before + after
            else:
                prompt = [*self.writer.encode(SEPARATOR), *self.writer.later(question)]
            target = self.writer.answer(answer)
            ids += prompt + target
            labels += [IGNORE] * len(prompt) + target
        return words, weights, ids, labels, place

    def batch(self, rng: np.random.Generator, size: int) -> tuple[Tensor, Tensor]:
        """Embeddings (B, T, d) and labels (B, T), right-padded."""
        drawn = [self.draw(rng) for _ in range(size)]
        words = torch.from_numpy(np.concatenate([item[0] for item in drawn]))
        weights = torch.from_numpy(np.concatenate([item[1] for item in drawn]))
        scene = self.renderer.embed(words, weights, self.noise.gaussian)
        text = self.renderer.embedding(torch.tensor([i for item in drawn for i in item[2]]))
        rows, row_labels, s, t = [], [], 0, 0
        for item in drawn:
            n, length, place = len(item[0]), len(item[2]), item[4]
            rows.append(torch.cat((text[t : t + place], scene[s : s + n], text[t + place : t + length])))
            row_labels.append(torch.tensor(item[3][:place] + [IGNORE] * n + item[3][place:]))
            s, t = s + n, t + length
        pad = nn.utils.rnn.pad_sequence
        return pad(rows, batch_first=True), pad(row_labels, batch_first=True, padding_value=IGNORE)


def build_llm(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The LLM, about a million parameters."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=512,
        initializer_range=0.06,
        rope_theta=1e6,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    llm = LlamaForCausalLM(config)
    llm.lm_head.weight.data.copy_(llm.model.embed_tokens.weight.data)
    _plant_matching_head(llm, tokenizer)
    return llm


@torch.no_grad()
def _plant_matching_head(llm: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
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


def labelled_logits(llm: LlamaForCausalLM, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and labels of the positions that carry loss."""
    hidden = llm.model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
    wanted = labels[:, 1:] != IGNORE
    return llm.lm_head(hidden[:, :-1][wanted]), labels[:, 1:][wanted]


def answer_weights(labels: Tensor, eos: int) -> Tensor:
    """Weight of every labelled token, flat: an answer of n tokens weighs sqrt(n) in all, whatever its length."""
    flat = labels[:, 1:][labels[:, 1:] != IGNORE]
    ends = flat == eos
    answer = ends.cumsum(0) - ends.long()
    return torch.bincount(answer)[answer].float().rsqrt()


def train(llm: LlamaForCausalLM, sampler: Sampler, arguments: argparse.Namespace) -> None:
    """AdamW with warm-up and cosine; every batch is new."""
    rng = np.random.default_rng(arguments.seed)
    matrices = [parameter for parameter in llm.model.layers.parameters() if parameter.ndim == 2]
    optimizer = Optimizer(llm, matrices, arguments.steps, arguments.lr, matrix_lr=0.02)
    watched = {"yes/no": ("Yes", "No"), "letter": tuple(language.LETTERS)}
    ids = {name: torch.tensor([sampler.writer.encode(w)[0] for w in words]) for name, words in watched.items()}
    hits = dict.fromkeys(watched, 0.0)
    start, average, right = time.time(), 0.0, 0.0
    for step in range(arguments.steps):
        sampler.extras = step >= FIRST_STEPS
        sampler.shares = SHARES if sampler.extras else FIRST_SHARES
        sampler.renderer.keep_empty = 0.25 if step < SPARSE_SHARE * arguments.steps else 1.0
        embeddings, labels = sampler.batch(rng, arguments.batch_size)
        weights = answer_weights(labels, llm.config.eos_token_id)
        logits, labels = labelled_logits(llm, embeddings, labels)
        loss = (F.cross_entropy(logits, labels, reduction="none") * weights).sum() / weights.sum()
        optimizer.step(loss)
        if step < HELD_SHARE * arguments.steps:
            _plant_matching_head(llm, sampler.writer.tokenizer)
        rate = max(0.02, 1 / (step + 1))
        for name, answers in ids.items():
            chosen = torch.isin(labels, answers)
            hits[name] += ((logits[chosen].argmax(-1) == labels[chosen]).float().mean().item() - hits[name]) * rate
        average += (loss.item() - average) * rate
        right += ((logits.argmax(-1) == labels).float().mean().item() - right) * rate
        if step % 50 == 0 or step == arguments.steps - 1:
            spent = time.time() - start
            parts = "  ".join(f"{name} {value:.3f}" for name, value in {"tokens right": right, **hits}.items())
            print(f"step {step + 1}/{arguments.steps}  loss {average:.3f}  {parts}  {spent:.0f} s", flush=True)
            if step % 200 == 0:
                save(llm, sampler.writer.tokenizer, arguments.out)


def save(llm: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a Hugging Face folder, weights in half precision."""
    state = {key: value.detach().half() for key, value in llm.state_dict().items()}
    llm.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    GenerationConfig(**special, pad_token_id=tokenizer.pad_token_id, do_sample=False).save_pretrained(folder)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1800, help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=16, help="scenes per step (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=6, help="questions per scene (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=2e-3, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=HERE / "llm", help="default: data/nano/llm")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    tokenizer = build_tokenizer(arguments.seed)
    llm = build_llm(tokenizer)
    renderer = rendering.Renderer(llm.model.embed_tokens, tokenizer)
    train(llm, Sampler(Writer(tokenizer), renderer, rendering.Noise(), arguments.turns), arguments)
    save(llm, tokenizer, arguments.out)


if __name__ == "__main__":
    main()
