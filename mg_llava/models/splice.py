"""Puts visual and box tokens into the sequence of the LLM: the only place where they enter it.

Shapes: B rows, T text ids (a placeholder counts one), D hidden size of the LLM, N pictures in the batch, P visual
tokens a picture, n_i boxes of picture i, L merged length.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mg_llava.tokens import IGNORE_INDEX, IMAGE_TOKEN_INDEX


class Vision(NamedTuple):
    """Tokens of the pictures of a batch."""

    visual: Tensor
    """``(N, P, D)``"""
    boxes: list[Tensor] | None
    """N tensors ``(n_i, D)``; ``None`` when the model has no object branch."""


class Spliced(NamedTuple):
    """Inputs of the LLM; padded positions are zero, masked and without label."""

    inputs_embeds: Tensor
    """``(B, L, D)``"""
    labels: Tensor
    """``(B, L)`` int64"""
    attention_mask: Tensor
    """``(B, L)`` bool"""
    position_ids: Tensor
    """``(B, L)`` int64, counting from 0 on the first true position of a row; 0 on padding."""


def splice(
    input_ids: Tensor,
    text_embeds: Tensor,
    visual_tokens: Tensor | None = None,
    box_tokens: Sequence[Tensor] | None = None,
    labels: Tensor | None = None,
    attention_mask: Tensor | None = None,
    padding_side: Literal["left", "right"] = "right",
) -> Spliced:
    """Replace every placeholder by the visual tokens and the box tokens of its picture.

    Args:
        input_ids: ``(B, T)`` int64 with ``IMAGE_TOKEN_INDEX`` where a picture goes; pictures are taken in reading
            order, row by row.
        text_embeds: ``(B, T, D)`` word embeddings; what stands at a placeholder is not used.
        visual_tokens: ``(N, P, D)``; may be ``None`` when there is no placeholder.
        box_tokens: N tensors ``(n_i, D)``, or ``None`` for no box tokens.
        labels: ``(B, T)`` int64, or ``None`` for none.
        attention_mask: ``(B, T)`` bool, ``None`` for all true. Masked positions are dropped before merging.
        padding_side: Where shorter rows are filled up.

    Returns:
        One row for each row of ``input_ids``.

    Raises:
        ValueError: If the numbers of placeholders, pictures and lists of boxes differ, or another negative id stands
            in ``input_ids``.
    """
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids, dtype=torch.bool)
    attention_mask = attention_mask.bool()
    if labels is None:
        labels = torch.full_like(input_ids, IGNORE_INDEX)
    if visual_tokens is None:
        visual_tokens = text_embeds.new_zeros(0, 0, text_embeds.shape[-1])
    _check_counts(input_ids[attention_mask], len(visual_tokens), box_tokens)

    rows, row_labels = [], []
    picture = 0
    for ids, embeds, row_label, mask in zip(input_ids, text_embeds, labels, attention_mask, strict=True):
        ids, embeds, row_label = ids[mask], embeds[mask], row_label[mask]
        pieces, piece_labels = [], []
        begin = 0
        for at in (ids == IMAGE_TOKEN_INDEX).nonzero().flatten().tolist():
            pieces += [embeds[begin:at], visual_tokens[picture]]
            visible = len(visual_tokens[picture])
            if box_tokens is not None:
                pieces.append(box_tokens[picture])
                visible += len(box_tokens[picture])
            piece_labels += [row_label[begin:at], row_label.new_full((visible,), IGNORE_INDEX)]
            begin = at + 1
            picture += 1
        pieces.append(embeds[begin:])
        piece_labels.append(row_label[begin:])
        rows.append(torch.cat([piece.to(text_embeds) for piece in pieces]))  # parts may lie on several devices
        row_labels.append(torch.cat(piece_labels))
    return _pad(rows, row_labels, padding_side)


def interleave(seen: Vision, known: Vision, cached: Sequence[bool]) -> Vision:
    """Tokens of pictures in their order; ``cached`` says which of the N come from ``known``."""
    order = torch.tensor(cached).int().argsort(stable=True).argsort()  # place of each picture in (seen, known)
    visual = torch.cat([seen.visual, known.visual])[order.to(seen.visual.device)]
    if seen.boxes is None or known.boxes is None:
        return Vision(visual, None)
    boxes = [*seen.boxes, *known.boxes]
    return Vision(visual, [boxes[place] for place in order.tolist()])


def _check_counts(ids: Tensor, pictures: int, box_tokens: Sequence[Tensor] | None) -> None:
    """Raise when the ``ids`` of all rows together do not fit the tokens at hand."""
    placeholders = ids == IMAGE_TOKEN_INDEX
    count = int(placeholders.sum())
    if count != pictures:
        raise ValueError(f"{count} picture placeholders in input_ids but {pictures} pictures in the batch")
    if box_tokens is not None and len(box_tokens) != pictures:
        raise ValueError(
            f"{pictures} pictures but {len(box_tokens)} lists of box tokens; give one, maybe empty, for each"
        )
    unknown = ids[(ids < 0) & ~placeholders]
    if len(unknown):
        raise ValueError(
            f"input_ids holds {int(unknown[0])}; the only negative id that stands for something is "
            f"{IMAGE_TOKEN_INDEX}, a picture"
        )


def _pad(rows: list[Tensor], row_labels: list[Tensor], padding_side: Literal["left", "right"]) -> Spliced:
    lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
    longest = int(lengths.max())
    slots = torch.arange(longest, device=rows[0].device)
    first = torch.zeros_like(lengths) if padding_side == "right" else longest - lengths
    mask = (slots >= first[:, None]) & (slots < (first + lengths)[:, None])  # (B, L)
    positions = ((slots - first[:, None]) * mask).long()
    embeds = rows[0].new_zeros(len(rows), longest, rows[0].shape[-1])
    labels = row_labels[0].new_full((len(rows), longest), IGNORE_INDEX)
    embeds[mask] = torch.cat(rows)
    labels[mask] = torch.cat(row_labels)
    return Spliced(embeds, labels, mask, positions)
