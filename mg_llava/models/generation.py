"""Generation: one loop over steps, which batches, shared prefixes and streamed text read from.

Shapes: B rows, b of them that have not ended, L positions of a prompt, P of what the LLM has read before it, U
prefixes, D hidden size and V vocabulary of the LLM.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from math import inf
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mg_llava.compat import cache_name, cached_layers
from mg_llava.models.losses.language import decoder_of, splits_logits
from mg_llava.models.room import RoomyCache, closed_up, new_cache

LOGIT_MARGIN = 2e-3
"""Least lead of the best logit that float32 rounding cannot overturn, with room to spare: the same row gives slightly
different logits in batches of different size, and differences of 1e-5 to 1e-4 were seen."""

Ended = Literal["", "end", "stop", "limit", "close"]
"""Why a row ended: an end token, which is no part of it; ``stop``; its limit; a call that rounding could decide. Empty
while it goes on."""

_ALONE = {"num_beams": (None, 1), "use_cache": (None, True), "num_return_sequences": (None, 1)}
"""Arguments of transformers' ``generate`` that have one value here."""


@dataclass(frozen=True)
class Decoding:
    """How ids are chosen, and which end a row.

    Attributes:
        ends: End tokens.
        limit: Most new ids of a row.
        do_sample: Draw ids; otherwise the best one is taken, and the next three do not matter.
        temperature: Divides the logits.
        top_p: Least share of the probability that is drawn from.
        top_k: Number of ids that are drawn from; 0 for all.
        repetition_penalty: Divides the logits of ids that the row has already; 1 for none.
        seed: Of each row's own random numbers, so that what is drawn does not depend on the batch; None for torch's.
        logits_processor: Further processors of transformers, which may not depend on earlier calls.
    """

    ends: frozenset[int] = frozenset()
    limit: int = 100
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 50
    repetition_penalty: float = 1.0
    seed: int | None = None
    logits_processor: Sequence[LogitsProcessor] = ()

    def __post_init__(self) -> None:
        rules = [
            ("max_new_tokens", self.limit, self.limit >= 1, "at least 1"),
            ("temperature", self.temperature, not self.do_sample or 0 < self.temperature < inf, "above 0, finite"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "above 0, at most 1"),
            ("top_k", self.top_k, self.top_k >= 0, "at least 0"),
            ("repetition_penalty", self.repetition_penalty, 0 < self.repetition_penalty < inf, "above 0, finite"),
        ]
        wrong = [f"{name} is {value!r}, must be {rule}" for name, value, is_right, rule in rules if not is_right]
        if wrong:
            raise ValueError(f"arguments of generate: {'; '.join(wrong)}")

    @classmethod
    def of(cls, llm: Any, given: Mapping[str, Any]) -> "Decoding":
        """From arguments named as those of transformers' ``generate``; greedy, with the LLM's end tokens, by default.

        What else the LLM's folder asks for, such as the repetition penalty of Qwen2.5's, was made for chats and would
        change benchmark replies; none of it is taken.

        Raises:
            ValueError: An argument is unknown or out of its range.
        """
        settings = {key: value for key, value in given.items() if value is not None and key != "pad_token_id"}
        for name, values in _ALONE.items():
            if settings.pop(name, None) not in values:
                raise ValueError(f"{name} is {given[name]!r}; allowed: {values[-1]!r}")
        ends = settings.pop("eos_token_id", llm.generation_config.eos_token_id)
        settings["ends"] = frozenset([ends] if isinstance(ends, int) else ends or [])
        settings["limit"] = settings.pop("max_new_tokens", cls.limit)
        unknown = sorted(set(settings) - set(cls.__dataclass_fields__))
        if unknown:
            known = sorted({*cls.__dataclass_fields__, "eos_token_id", "max_new_tokens"} - {"ends", "limit"})
            raise ValueError(f"unknown arguments of generate: {', '.join(unknown)}; known: {', '.join(known)}")
        return cls(**settings)

    def processors(self) -> LogitsProcessorList:
        """The processors of logits, in the order of transformers."""
        found = [RepetitionPenaltyLogitsProcessor(self.repetition_penalty)] if self.repetition_penalty != 1 else []
        found += self.logits_processor
        if self.do_sample:
            found += [TemperatureLogitsWarper(self.temperature)] if self.temperature != 1 else []
            found += [TopKLogitsWarper(self.top_k)] if self.top_k else []
            found += [TopPLogitsWarper(self.top_p)] if self.top_p < 1 else []
        return LogitsProcessorList(found)


class Prompt(NamedTuple):
    """Embeddings that the LLM reads before the first new id."""

    embeds: Tensor
    """``(B, L, D)``, padded on the left."""
    mask: Tensor
    """``(B, P + L)`` bool."""
    cache: DynamicCache | None = None
    """Keys and values of the first P positions; None for P = 0. The generation writes into it."""


class GenerationStep(NamedTuple):
    """One new id of each row that had not ended."""

    rows: list[int]
    """The b rows."""
    ids: list[int]
    leads: list[float]
    """Lead of each row's best logit over its second."""
    ended: list[Ended]
    hidden: Tensor | None
    """``(b, D)``, last hidden states that the ids were chosen from; None for LLMs that change their logits."""
    scores: Tensor
    """``(b, V)`` float32, the LLM's logits."""


@dataclass
class Generated:
    """The new ids of a row, without an end token."""

    ids: list[int] = field(default_factory=list)
    ended: Ended = ""


@dataclass(frozen=True)
class Prefixes:
    """Prefixes that an LLM has read.

    Attributes:
        cache: Keys and values of all layers, for U rows.
        mask: ``(U, P)`` bool.
    """

    cache: DynamicCache
    mask: Tensor

    def before(self, rows: Tensor, embeds: Tensor, mask: Tensor) -> Prompt:
        """A prompt of B rows that follow prefixes.

        Args:
            rows: ``(B,)`` int64, the prefix of each row.
            embeds: ``(B, L, D)``, padded on the left.
            mask: ``(B, L)`` bool.
        """
        if isinstance(self.cache, RoomyCache):
            self.cache.reserve(mask.shape[1])
        return Prompt(embeds, torch.cat([self.mask[rows], mask], dim=1), _select(self.cache, rows))


@torch.no_grad()
def read_prefixes(llm: Any, prompt: Prompt) -> Prefixes:
    """Let the LLM read U prefixes, to be continued by any number of rows."""
    return Prefixes(_read(llm, prompt)[2], prompt.mask)


@torch.no_grad()
def generate(
    llm: Any,
    prompt: Prompt,
    decoding: Decoding,
    limits: Sequence[int] | None = None,
    stop: Callable[[int, list[int]], bool] | None = None,
    margin: float = 0.0,
    condition: Callable[[list[int]], AbstractContextManager[Any]] | None = None,
) -> Iterator[GenerationStep]:
    """Generate step by step; a row that has ended costs nothing more, and closing the iterator ends all of them.

    Args:
        llm: A causal LM, possibly with adapters.
        prompt: B rows.
        decoding: How ids are chosen, and which end a row.
        limits: Most new ids of each row, in place of ``decoding.limit``.
        stop: Says of a row and its new ids whether it ends with them.
        margin: Least lead; a row whose best two logits are closer ends, for the caller to decide it otherwise.
        condition: Gives the context in which the LLM reads some of the rows; see ``System.condition``.
    """
    rows = list(range(len(prompt.mask)))
    new: list[list[int]] = [[] for _ in rows]
    limits = [decoding.limit] * len(rows) if limits is None else limits
    choose = _Chooser(decoding, len(rows), prompt.embeds.device)
    while rows:
        with nullcontext() if condition is None else condition(rows):
            hidden, scores, cache = _read(llm, prompt)
        ids, leads = choose(scores, rows, new)
        ended: list[Ended] = []
        for row, token, lead in zip(rows, ids.tolist(), leads, strict=True):
            new[row].append(token)
            if lead < margin:
                ended.append("close")
            elif token in decoding.ends:
                ended.append("end")
            elif stop is not None and stop(row, new[row]):
                ended.append("stop")
            else:
                ended.append("limit" if len(new[row]) >= limits[row] else "")
        yield GenerationStep(rows, [new[row][-1] for row in rows], leads, ended, hidden, scores)
        mask = prompt.mask
        if any(ended):
            kept = closed_up([place for place, why in enumerate(ended) if not why])
            rows = [rows[place] for place in kept]
            if not rows:
                return
            places = torch.tensor(kept, dtype=torch.int64, device=ids.device)
            ids, mask = ids[places], mask[places]
            if isinstance(cache, RoomyCache):
                cache.keep(kept)
            else:
                cache = _select(cache, places)
        embeds = llm.get_input_embeddings()(ids)[:, None].to(prompt.embeds.device)
        prompt = Prompt(embeds, torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1), cache)


def collect(steps: Iterable[GenerationStep], rows: int) -> list[Generated]:
    """Take all steps of a generation; the new ids of each of its rows."""
    found = [Generated() for _ in range(rows)]
    for step in steps:
        for row, token, ended in zip(step.rows, step.ids, step.ended, strict=True):
            found[row].ended = ended
            if ended != "end":
                found[row].ids.append(token)
    return found


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, a model is in eval mode."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


class _Chooser:
    """Chooses an id for each of B rows, step by step."""

    def __init__(self, decoding: Decoding, rows: int, device: torch.device) -> None:
        self.do_sample = decoding.do_sample
        self.processors = decoding.processors()
        self.generators: list[torch.Generator] = []
        if decoding.do_sample and decoding.seed is not None:
            self.generators = [torch.Generator(device).manual_seed(decoding.seed) for _ in range(rows)]

    def __call__(self, scores: Tensor, rows: Sequence[int], new: Sequence[list[int]]) -> tuple[Tensor, list[float]]:
        """Choose by ``(b, V)`` float32 logits of ``rows``, given the new ids of each of the B rows.

        Returns:
            ``(b,)`` int64, and each row's lead of the best logit over the second.
        """
        if len(self.processors):
            known = torch.tensor([new[row] for row in rows], dtype=torch.int64, device=scores.device)
            scores = self.processors(known, scores)
        best = scores.topk(2, dim=-1).values  # (b, 2)
        leads = (best[:, 0] - best[:, 1]).tolist()
        if not self.do_sample:
            return scores.argmax(dim=-1), leads
        shares = scores.softmax(dim=-1)
        if not self.generators:
            return torch.multinomial(shares, 1)[:, 0], leads
        pairs = zip(shares, [self.generators[row] for row in rows], strict=True)
        return torch.cat([torch.multinomial(share, 1, generator=own) for share, own in pairs]), leads


def _read(llm: Any, prompt: Prompt) -> tuple[Tensor | None, Tensor, DynamicCache]:
    """Last hidden states ``(B, D)`` and logits ``(B, V)`` float32 of the last position, and the cache of all."""
    embeds, mask, cache = prompt
    positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, -embeds.shape[1] :]
    cache = new_cache(llm, len(mask)) if cache is None else cache
    mask = cache.masked(mask) if isinstance(cache, RoomyCache) else mask
    inputs = {"inputs_embeds": embeds, "attention_mask": mask.long(), "position_ids": positions, "use_cache": True}
    inputs[cache_name(llm)] = cache
    if splits_logits(llm):
        output = decoder_of(llm)(**inputs)
        hidden = output.last_hidden_state[:, -1]
        logits = llm.get_output_embeddings()(hidden)
    else:
        output, hidden = llm(**inputs), None
        logits = output.logits[:, -1]
    cache = output[cache_name(llm)]
    kept = cache if isinstance(cache, DynamicCache) else DynamicCache.from_legacy_cache(cache)
    return hidden, logits.float().to(embeds.device), kept


def _select(cache: DynamicCache, rows: Tensor) -> DynamicCache:
    """A cache of some rows; ``batch_select_indices`` takes three times as long on CPU."""
    if isinstance(cache, RoomyCache):
        return cache.of(rows)
    selected = DynamicCache()
    for layer, (keys, values) in enumerate(cached_layers(cache)):
        here = rows.to(keys.device)  # layers may be spread over devices
        selected.update(keys.index_select(0, here), values.index_select(0, here), layer)
    return selected
