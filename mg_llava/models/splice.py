"""Puts visual and box tokens into the sequence of the LLM: the only place where they enter it.

Shapes: B rows, T text ids (a placeholder counts one), D hidden size of the LLM, M placeholders, m tokens of one, L
merged length.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mg_llava.batch import Layout, PaddingSide, plan_layout
from mg_llava.models.interfaces import Seeing


class Spliced(NamedTuple):
    """Inputs of the LLM, and where they came from; padded positions are zero, masked and without label."""

    inputs_embeds: Tensor
    """``(B, L, D)``"""
    layout: Layout
    """On the device of the inputs."""
    rows: Sequence[Seeing]
    """For each row the segments of its placeholders, of which prompts are not in the sequence."""

    @property
    def labels(self) -> Tensor:
        """``(B, L)`` int64."""
        return self.layout.labels

    @property
    def attention_mask(self) -> Tensor:
        """``(B, L)`` bool."""
        return self.layout.attention_mask

    @property
    def position_ids(self) -> Tensor:
        """``(B, L)`` int64, counting from 0 on the first true position of a row; 0 on padding."""
        return self.layout.position_ids


def layout_of(
    data: Mapping[str, Any], pieces: Sequence[Sequence[Tensor]], padding_side: PaddingSide = "right"
) -> Layout:
    """Where the tokens of a batch go, on the device of its ids.

    Args:
        data: A :class:`mg_llava.batch.Batch`. Its ``layout`` is taken where there is one and rows are padded on the
            right; else it is planned here, and for that ids are copied to the host.
        pieces: Tokens ``(m, D)`` of each of the M placeholders, one tensor after the other.
        padding_side: Where shorter rows are filled up.

    Raises:
        ValueError: Placeholders and pieces differ in number, or the layout was planned for other numbers of tokens.
    """
    counts = tuple(sum(len(piece) for piece in own) for own in pieces)
    ids, planned = data["input_ids"], data.get("layout")
    if planned is None or padding_side == "left":
        mask, labels = (None if data.get(key) is None else data[key].cpu() for key in ("attention_mask", "labels"))
        planned = plan_layout(ids.cpu(), counts, mask, labels, padding_side)
    elif planned.counts != counts:
        raise ValueError(
            f"the batch was planned for placeholders of {_summary(planned.counts)} tokens, the model gives "
            f"{_summary(counts)}; let the data set count as the model does"
        )
    return planned.to(ids.device)


def splice(text_embeds: Tensor, pieces: Sequence[Sequence[Tensor]], layout: Layout) -> Tensor:
    """Replace every placeholder by its tokens.

    Args:
        text_embeds: ``(B, T, D)`` word embeddings; what stands at a placeholder is not used.
        pieces: Tokens ``(m, D)`` of each placeholder, one tensor after the other, on any device and of any dtype.
        layout: On the device of the text, possibly of packed rows.

    Returns:
        ``(B, L, D)`` in dtype and on the device of the text.
    """
    words = text_embeds.flatten(0, 1)
    tokens = [piece.to(words) for own in pieces for piece in own]  # parts may lie on several devices
    table = torch.cat([words.new_zeros(1, words.shape[1]), words, *tokens])
    return table.index_select(0, layout.source.flatten()).unflatten(0, layout.source.shape)


def _summary(counts: Sequence[int]) -> str:
    """The first few numbers."""
    return "[" + ", ".join(map(str, counts[:8])) + (", ..." if len(counts) > 8 else "") + "]"
