"""Several samples in one row, each of which sees itself alone: no positions are spent on padding.

Shapes: B samples of merged length up to L, R packed rows of length M, D hidden size of the LLM.
"""

import heapq
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mg_llava.models.splice import Spliced
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
    """What attention spends on a pair of positions of a row, as a share of what all else spends on a position.

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


def pack(inputs: Spliced, capacity: int, pair: float = 0.0) -> tuple[Spliced, Tensor]:
    """Put the samples of a batch into few rows.

    Args:
        inputs: One sample in each row, padded.
        capacity: As for :func:`plan_rows`.
        pair: As for :func:`plan_rows`.

    Returns:
        Packed rows ``(R, M)``, in which positions begin at 0 with each sample and the first token of a sample has no
        label (nothing stands before it), and the sample of each position ``(R, M)`` int64, -1 on padding.
    """
    mask = inputs.attention_mask
    lengths = mask.sum(dim=1).tolist()
    rows = plan_rows(lengths, capacity, pair)
    width = max(sum(lengths[number] for number in row) for row in rows)
    samples = torch.full((len(rows), width), _PADDING, device=mask.device)
    order: list[int] = []
    for row, numbers in enumerate(rows):
        owner = torch.tensor(numbers).repeat_interleave(torch.tensor([lengths[number] for number in numbers]))
        samples[row, : len(owner)] = owner.to(mask.device)
        order += numbers
    taken = samples != _PADDING  # (R, M)
    embeds = inputs.inputs_embeds.new_zeros(*samples.shape, inputs.inputs_embeds.shape[-1])
    labels = torch.full_like(samples, IGNORE_INDEX)
    positions = torch.zeros_like(samples)
    embeds[taken] = torch.cat([inputs.inputs_embeds[number][mask[number]] for number in order])
    positions[taken] = torch.cat([inputs.position_ids[number][mask[number]] for number in order])
    labels[taken] = torch.cat([inputs.labels[number][mask[number]] for number in order])
    labels[positions == 0] = IGNORE_INDEX
    return Spliced(embeds, labels, taken, positions), samples


def block_mask(samples: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask ``(R, 1, M, M)``: a position sees those before it in its own sample, and itself.

    Padding sees padding, because a row that sees nothing gives NaN.
    """
    same = samples[:, :, None] == samples[:, None, :]  # (R, M, M)
    allowed = same & torch.ones_like(same[0]).tril()
    blocked = torch.finfo(dtype).min
    return torch.zeros(allowed.shape, dtype=dtype, device=samples.device).masked_fill(~allowed, blocked)[:, None]


def packed_arguments(llm: Any, packed: Spliced, samples: Tensor) -> dict[str, Any]:
    """Arguments with which an LLM reads packed rows.

    Flash attention finds the samples by their positions, which begin at 0, and computes no pair of two samples; other
    backends get a mask.
    """
    if llm.config._attn_implementation == "flash_attention_2":
        mask = None
    else:
        mask = block_mask(samples, packed.inputs_embeds.dtype)
    return {"inputs_embeds": packed.inputs_embeds, "attention_mask": mask, "position_ids": packed.position_ids}
