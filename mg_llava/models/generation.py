"""Generation for questions about one picture: the LLM reads what they have in common once, and keeps it.

Shapes: U prefixes of merged length P at most, B rows of T text ids at most, D hidden size and V vocabulary of the LLM.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig

from mg_llava.models.losses.language import decoder_of, splits_logits

_HARMLESS = {
    "bos_token_id",
    "do_sample",
    "eos_token_id",
    "max_length",
    "max_new_tokens",
    "num_beams",
    "pad_token_id",
    "temperature",
    "top_k",
    "top_p",
    "use_cache",
}
"""Arguments of ``generate`` that do not look at the ids of the prompt."""


def can_share(llm: Any, settings: dict[str, Any]) -> bool:
    """Whether :func:`generate_after` does what ``llm.generate`` does with these arguments.

    Not so with sampling and beams, with what looks at the prompt's ids, such as a repetition penalty (those of a
    prefix with pictures do not exist), and for LLMs that change their logits after the output embedding.
    """
    if settings.get("do_sample") or settings.get("num_beams") not in (None, 1) or not splits_logits(llm):
        return False
    return set(settings) <= _HARMLESS


def generation_settings(llm: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ``llm.generate``: greedy, with the LLM's own end tokens, unless ``given`` says otherwise.

    What else the LLM's folder asks for, such as the repetition penalty of Qwen2.5's, was made for chats and would
    change benchmark replies; none of it is taken.
    """
    plain: dict[str, Any] = {"generation_config": GenerationConfig(), "do_sample": False}
    settings = plain | {"max_new_tokens": 100, "use_cache": True} | given
    ends = settings.setdefault("eos_token_id", llm.generation_config.eos_token_id)
    if settings.get("pad_token_id") is None:
        settings["pad_token_id"] = ends[0] if isinstance(ends, list | tuple) else ends
    return settings


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, a model is in eval mode."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@dataclass
class Prefixes:
    """Prefixes that an LLM has read.

    Attributes:
        cache: Keys and values of all layers, for U rows.
        mask: ``(U, P)`` bool.
    """

    cache: DynamicCache
    mask: Tensor

    def of_rows(self, rows: Tensor) -> DynamicCache:
        """A cache of its own for (B,) int64 ``rows``, the prefix of each."""
        return _select(self.cache, rows)


@torch.no_grad()
def read_prefixes(llm: nn.Module, embeds: Tensor, mask: Tensor, positions: Tensor) -> Prefixes:
    """Let the LLM read U prefixes.

    Args:
        llm: A causal LM, possibly with adapters.
        embeds: ``(U, P, D)``, padded on the left.
        mask: ``(U, P)`` bool.
        positions: ``(U, P)`` int64.
    """
    cache = decoder_of(llm)(
        inputs_embeds=embeds, attention_mask=mask.long(), position_ids=positions, use_cache=True
    ).past_key_values
    return Prefixes(cache if isinstance(cache, DynamicCache) else DynamicCache.from_legacy_cache(cache), mask)


@torch.no_grad()
def generate_after(
    llm: Any,
    prefixes: Prefixes,
    rows: Tensor,
    ids: Tensor,
    mask: Tensor,
    ends: Sequence[int],
    max_new_tokens: int,
    stop: Callable[[Tensor], Tensor] | None = None,
) -> tuple[list[Tensor], Tensor]:
    """Generate greedily for B rows of text, each of which follows a prefix; a row that has ended costs nothing more.

    Args:
        llm: The causal LM; it ``splits_logits``.
        prefixes: Of :func:`read_prefixes`.
        rows: ``(B,)`` int64, the prefix of each row.
        ids: ``(B, T)`` int64, padded on the left with any id.
        mask: ``(B, T)`` bool.
        ends: Ids that end a row.
        max_new_tokens: Most new ids of a row.
        stop: Says of ``(b, new)`` int64 new ids, b rows that have not ended, which end here: ``(b,)`` bool.

    Returns:
        The new ids of each row, 1-D int64 on the CPU without the end, and ``(B,)`` float32, the smallest lead of the
        row's ids over the second best.
    """
    decoder, head = decoder_of(llm), llm.get_output_embeddings()
    cache, seen = prefixes.of_rows(rows), torch.cat([prefixes.mask[rows], mask], dim=1).long()  # (B, P + T)
    end_ids = torch.tensor(list(ends), dtype=ids.dtype, device=ids.device)
    new = ids.new_zeros(len(ids), max_new_tokens)
    lengths = ids.new_full((len(ids),), max_new_tokens)
    leads = torch.full((len(ids),), torch.inf, device=ids.device)
    going = torch.arange(len(ids), device=ids.device)  # (b,) the rows that have not ended
    for step in range(max_new_tokens):
        positions = (seen.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        hidden = decoder(
            input_ids=ids, attention_mask=seen, position_ids=positions, past_key_values=cache, use_cache=True
        ).last_hidden_state
        scores = head(hidden[:, -1]).float().to(ids.device)  # (b, V)
        best = scores.topk(2, dim=-1).values
        leads[going] = torch.minimum(leads[going], best[:, 0] - best[:, 1])
        token = scores.argmax(dim=-1)
        new[going, step] = token
        is_end = torch.isin(token, end_ids)
        lengths[going[is_end]] = step
        if stop is not None:
            stops = stop(new[going, : step + 1]) & ~is_end
            lengths[going[stops]] = step + 1
            is_end |= stops
        if is_end.any():
            kept = (~is_end).nonzero().flatten()
            if not len(kept):
                break
            going, seen, token = going[kept], seen[kept], token[kept]
            cache = _select(cache, kept)
        ids, seen = token[:, None], torch.cat([seen, seen.new_ones(len(seen), 1)], dim=1)
    return [row[:length] for row, length in zip(new.cpu(), lengths.tolist(), strict=True)], leads


def _select(cache: DynamicCache, rows: Tensor) -> DynamicCache:
    """A cache of some rows; ``batch_select_indices`` takes three times as long on CPU."""
    selected = DynamicCache()
    for layer, (keys, values) in enumerate(cache):
        here = rows.to(keys.device)  # layers may be spread over devices
        selected.update(keys.index_select(0, here), values.index_select(0, here), layer)
    return selected


def until_end(ids: Tensor, ends: int | Sequence[int] | None) -> Tensor:
    """Cut a row before its first end token; what follows is padding."""
    if ends is None:
        return ids
    stop = torch.isin(ids, torch.tensor([ends] if isinstance(ends, int) else list(ends))).nonzero().flatten()
    return ids[: stop[0]] if len(stop) else ids
