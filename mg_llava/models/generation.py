"""Generation for questions about one picture: the LLM reads what they have in common once, and keeps it.

Shapes: U prefixes of merged length P at most, B rows of T text ids at most, D hidden size of the LLM.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from mg_llava.models.loss import decoder_of

_HARMLESS = {
    "_from_model_config",
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
    "transformers_version",
    "use_cache",
}
"""Arguments of ``generate`` that do not look at the ids of the prompt."""


def can_share(llm: Any, settings: dict[str, Any]) -> bool:
    """Whether generation with these arguments gives the same with shared prefixes.

    Not so with beams, and with what looks at the prompt's ids, such as a repetition penalty: those of a prefix with
    pictures do not exist.
    """
    if settings.get("num_beams") not in (None, 1):
        return False
    return set(settings) <= _HARMLESS and set(llm.generation_config.to_diff_dict()) <= _HARMLESS


def generation_settings(llm: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ``llm.generate``: greedy, with the LLM's own end tokens, unless ``given`` says otherwise."""
    settings: dict[str, Any] = {"do_sample": False, "max_new_tokens": 100, "use_cache": True} | given
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


@torch.no_grad()
def read_prefixes(llm: nn.Module, embeds: Tensor, mask: Tensor, positions: Tensor) -> DynamicCache:
    """Let the LLM read U prefixes.

    Args:
        llm: A causal LM, possibly with adapters.
        embeds: ``(U, P, D)``, padded on the left.
        mask: ``(U, P)`` bool.
        positions: ``(U, P)`` int64.

    Returns:
        Keys and values of all layers, for U rows.
    """
    cache = decoder_of(llm)(
        inputs_embeds=embeds, attention_mask=mask.long(), position_ids=positions, use_cache=True
    ).past_key_values
    return cache if isinstance(cache, DynamicCache) else DynamicCache.from_legacy_cache(cache)


@torch.no_grad()
def generate_after(
    llm: Any, cache: DynamicCache, prefix_mask: Tensor, rows: Tensor, ids: Tensor, mask: Tensor, **settings: Any
) -> Tensor:
    """Generate for B rows of text, each of which follows one of U prefixes.

    Args:
        llm: The causal LM.
        cache: Of :func:`read_prefixes`; it is changed.
        prefix_mask: ``(U, P)`` bool.
        rows: ``(B,)`` int64, the prefix of each row.
        ids: ``(B, T)`` int64, padded on the left with any id.
        mask: ``(B, T)`` bool.
        **settings: Passed to ``llm.generate``; what looks at ids sees P + T of the prompt before the new ones.

    Returns:
        ``(B, new)`` int64, the new ids.
    """
    cache.batch_select_indices(rows)
    before = prefix_mask[rows]  # (B, P)
    blank = torch.full(before.shape, settings["pad_token_id"], dtype=ids.dtype, device=ids.device)
    prompt = torch.cat([blank, ids], dim=1)
    attention = torch.cat([before, mask], dim=1).long()
    output = llm.generate(input_ids=prompt, attention_mask=attention, past_key_values=cache, **settings)
    return output[:, prompt.shape[1] :]


def until_end(ids: Tensor, ends: int | Sequence[int] | None) -> Tensor:
    """Cut a row before its first end token; what follows is padding."""
    if ends is None:
        return ids
    stop = torch.isin(ids, torch.tensor([ends] if isinstance(ends, int) else list(ends))).nonzero().flatten()
    return ids[: stop[0]] if len(stop) else ids
