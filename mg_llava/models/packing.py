"""Several samples in one row, each of which sees itself alone: no positions are spent on padding.

Shapes: B samples of merged length up to L, R packed rows of length M, D hidden size of the LLM.
"""

import heapq
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mg_llava.batch import Layout, send_together
from mg_llava.models.flash import tell_rows, uses_flash
from mg_llava.tokens import IGNORE_INDEX

_PADDING = -1


def check_packing(llm: Any) -> None:
    """Whether an LLM keeps packed samples apart.

    Raises:
        ValueError: If it does not, as far as is known.
    """
    whole = llm.get_base_model() if hasattr(llm, "get_base_model") else llm
    backend = getattr(whole.config, "_attn_implementation", None)
    known = type(whole).__module__.startswith("transformers.models.")
    if not known or backend not in ("flash_attention_2", "sdpa", "eager"):
        raise ValueError(
            f"packing needs an LLM of transformers itself with flash_attention_2, sdpa or eager attention, found "
            f"{type(whole).__name__} with {backend}; set packing=None"
        )


def pair_cost(llm: Any) -> float:
    """Cost of attention for a pair of positions of a row, as a share of all other cost of a position.

    A layer takes about 24 D^2 operations for a position and 4 D for a pair. Flash attention computes no pairs of
    different samples, so that rows may be of any length.
    """
    if llm.config._attn_implementation == "flash_attention_2":
        return 0.0
    return 1 / (6 * llm.get_input_embeddings().embedding_dim)


def plan_rows(lengths: Sequence[int], capacity: int, pair: float = 0.0) -> list[list[int]]:
    """Distribute samples over rows so that they cost least.

    All rows become as long as the longest, so that a row more may waste less: every number of rows is tried, with the
    samples spread evenly. Of equals the one with the shortest rows is taken.

    Args:
        lengths: Of the samples.
        capacity: Longest row; with a sample that is longer, rows are as long as this one.
        pair: See :func:`pair_cost`; with 0 only positions count.

    Returns:
        Numbers of the samples in each row.
    """
    total, limit = sum(lengths), max(capacity, *lengths)
    best: list[list[int]] = [[number] for number in range(len(lengths))]
    least = len(lengths) * max(lengths) * (1 + pair * max(lengths))
    for count in range(len(lengths) - 1, -(-total // limit) - 1, -1):
        rows, width = _spread(lengths, count)
        cost = count * width * (1 + pair * width)
        if width <= limit and cost < least:
            best, least = rows, cost
    return best


def _spread(lengths: Sequence[int], count: int) -> tuple[list[list[int]], int]:
    """Rows of about the same length, and that of the longest: the longest sample first, into the emptiest row."""
    rows: list[list[int]] = [[] for _ in range(count)]
    filled = [(0, row) for row in range(count)]
    for number in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length, row = heapq.heappop(filled)
        rows[row].append(number)
        heapq.heappush(filled, (length + lengths[number], row))
    return rows, max(length for length, _ in filled)


class Packed(NamedTuple):
    """Samples of a batch in few rows."""

    layout: Layout
    """Of the packed rows. Positions begin at 0 with each sample, and the first token of a sample has no label."""
    samples: Tensor
    """``(R, M)`` int64, the sample of each position; -1 on padding."""
    stretches: tuple[int, ...]
    """Lengths of samples and padding in ``R * M``, one after the other."""


def pack(layout: Layout, capacity: int, pair: float = 0.0) -> Packed:
    """Put the samples of a batch into few rows; the plan is made on the host from their lengths.

    Args:
        layout: One sample in each row, padded on the right; on any device.
        capacity: As for :func:`plan_rows`.
        pair: As for :func:`plan_rows`.
    """
    lengths, (rows, padded) = layout.lengths, layout.source.shape
    plan = plan_rows(lengths, capacity, pair)
    width = max(sum(lengths[number] for number in row) for row in plan)
    origin = np.full((len(plan), width), _PADDING)  # of each position, that in the padded rows
    for row, numbers in enumerate(plan):
        places = [np.arange(number * padded, number * padded + lengths[number]) for number in numbers]
        origin[row, : sum(map(len, places))] = np.concatenate(places)
    taken = origin != _PADDING
    place = np.zeros(rows * padded, dtype=np.int64)  # the inverse
    place[origin[taken]] = np.flatnonzero(taken)
    samples = np.where(taken, origin // padded, _PADDING)
    positions = np.where(taken, origin % padded, 0)
    plans = [torch.from_numpy(array) for array in (origin.clip(min=0), positions, samples, place)]
    index, position_ids, sample_of, target_of = send_together(plans, layout.source.device)
    mask = sample_of != _PADDING
    source = layout.source.flatten().index_select(0, index.flatten()).view(index.shape)
    labels = layout.labels.flatten().index_select(0, index.flatten()).view(index.shape)
    return Packed(
        Layout(
            source=source.masked_fill(~mask, 0),
            labels=labels.masked_fill(position_ids == 0, IGNORE_INDEX),  # nothing stands before; padding is at 0, too
            attention_mask=mask,
            position_ids=position_ids,
            targets=target_of.index_select(0, layout.targets),
            lengths=tuple(sum(lengths[number] for number in row) for row in plan),
            counts=layout.counts,
            placeholders=layout.placeholders,
        ),
        sample_of,
        _stretches(plan, lengths, width),
    )


def _stretches(plan: Sequence[Sequence[int]], lengths: Sequence[int], width: int) -> tuple[int, ...]:
    """Lengths of the samples of each row and of its padding."""
    rows = [[lengths[number] for number in row] for row in plan]
    return tuple(length for row in rows for length in (*row, width - sum(row)))


def block_mask(samples: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask ``(R, 1, M, M)``: a position sees those before it in its own sample, and itself.

    Padding sees padding, because a row that sees nothing gives NaN.
    """
    same = samples[:, :, None] == samples[:, None, :]  # (R, M, M)
    allowed = same & torch.ones_like(same[0]).tril()
    blocked = torch.finfo(dtype).min
    return torch.zeros(allowed.shape, dtype=dtype, device=samples.device).masked_fill(~allowed, blocked)[:, None]


def training_arguments(llm: Any, embeds: Tensor, rows: Layout | Packed) -> dict[str, Any]:
    """Arguments with which an LLM reads the rows of a training step.

    Rows of one sample come without a mask: padding on the right is behind every token that counts, and nothing looks
    ahead. With a mask, attention would look for padding on the host, and wait for the device. Packed rows come with
    one, but for flash attention: it is told where samples begin and computes no pair of two of them.

    Args:
        llm: The LLM.
        embeds: ``(R, M, D)``
        rows: The layout of the embeddings, padded on the right, or that of packed rows.
    """
    packed = rows if isinstance(rows, Packed) else None
    layout = rows.layout if isinstance(rows, Packed) else rows
    is_flash = uses_flash(llm)
    if is_flash:
        width = embeds.shape[1]
        plain = [length for row in layout.lengths for length in (row, width - row)]
        tell_rows(llm, layout.position_ids, plain if packed is None else packed.stretches)
    mask = None if is_flash or packed is None else block_mask(packed.samples, embeds.dtype)
    return {
        "inputs_embeds": embeds,
        "attention_mask": mask,
        "position_ids": layout.position_ids,
        "use_cache": False,
    }
