"""The contract of data and models: the batch, how many tokens a placeholder stands for, and where they go.

Everything here is planned on the CPU from numbers that the data side knows, so that a training step needs no copy from
the device to the host.

Shapes: B rows, T text ids (a placeholder counts one), N canvases (pictures, frames and crops alike), S side of a
canvas in pixels, n_i boxes of canvas i, M placeholders, L merged length, K labeled positions.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypedDict

import numpy as np
import torch
from torch import Tensor

from mg_llava.tokens import BOX_TOKEN_INDEX, IGNORE_INDEX, IMAGE_TOKEN_INDEX, OBJECT_TOKEN_INDEX, PLACEHOLDER_IDS

PaddingSide = Literal["left", "right"]


@dataclass(frozen=True)
class TokenCount:
    """Tokens of the LLM that a placeholder stands for; asked from a system, never stated in a config.

    Attributes:
        per_canvas: Tokens of each canvas of the placeholder: 576 for a picture of the published model.
        per_box: Tokens of each box.
        per_media: Tokens of the placeholder itself, such as the queries of a Q-Former.
        per_frame: Tokens of a canvas that is a frame of a video; None for as many as of any other.
        per_crop: Tokens of an object image; 0 for a system that reads none.
    """

    per_canvas: int
    per_box: int = 1
    per_media: int = 0
    per_frame: int | None = None
    per_crop: int = 0

    def __call__(self, canvases: int, boxes: int) -> int:
        """Tokens of a placeholder with this many canvases, and boxes on all of them together."""
        return self.per_media + self.per_canvas * canvases + self.per_box * boxes

    @property
    def of_frames(self) -> "TokenCount":
        """The count where every canvas is a frame of a video."""
        return self if self.per_frame is None else replace(self, per_canvas=self.per_frame)


class Layout(NamedTuple):
    """Where every token of a batch goes. Padded positions are zero, masked and without label.

    The tensors may be moved to a device; the numbers beside them stay where they are.
    """

    source: Tensor
    """``(B, L)`` int64 into ``[one zero; B * T word embeddings; tokens of all placeholders, one after the other]``."""
    labels: Tensor
    """``(B, L)`` int64, ``IGNORE_INDEX`` where there is no loss."""
    attention_mask: Tensor
    """``(B, L)`` bool."""
    position_ids: Tensor
    """``(B, L)`` int64, counting from 0 on the first true position of a row; 0 on padding."""
    targets: Tensor
    """``(K,)`` int64 into the ``B * L`` positions, flattened: those whose *next* position carries a label."""
    lengths: tuple[int, ...]
    """Merged length of each row."""
    counts: tuple[int, ...]
    """Tokens of each of the M placeholders."""
    placeholders: tuple[int, ...]
    """Number of the placeholders of each sample, in the order of the samples."""

    def to(self, device: torch.device | str) -> "Layout":
        """The layout with its tensors on a device; copied without waiting."""
        source, labels, mask, positions, targets = (send(part, device) for part in self[:5])
        return Layout(source, labels, mask, positions, targets, *self[5:])


class Batch(TypedDict, total=False):
    """What ``collate`` gives and every system reads; still a dict, so that mmengine moves it to the device."""

    input_ids: Tensor
    """``(B, T)`` int64; a negative id is a placeholder."""
    attention_mask: Tensor
    """``(B, T)`` bool."""
    labels: Tensor
    """``(B, T)`` int64."""
    canvas: Tensor
    """``(N, 3, S, S)`` uint8, in the order of the placeholders; absent where there is none."""
    boxes: list[Tensor]
    """N tensors ``(n_i, 4)`` float32 xyxy, canvas pixels, finite."""
    media: list[int]
    """For each of the N canvases the placeholder (0 to M - 1) that it belongs to; frames of a video share one. Absent
    where every canvas has a placeholder of its own. Numbers, not a tensor, so that they stay on the host."""
    frames: list[bool]
    """For each of the N canvases whether it is a frame of a video; absent where none is."""
    crops: list[bool]
    """For each of the N canvases whether it is an object image; absent where none is."""
    named: list[bool]
    """For each of the N canvases whether its boxes have placeholders of their own, after that of the canvas; absent
    where none has."""
    cached: list[bool]
    """For each of the N canvases whether it is in ``features`` and not in ``canvas``; absent where all are in one."""
    layout: Layout
    """Planned by ``collate``; absent where rows were not counted, and then planned by the model."""
    ids: list[str]
    """Names of the samples, for messages."""
    features: dict[str, Any]
    """Canvases that frozen encoders have seen before, in place of pixels; see :mod:`mg_llava.features`."""
    loss_weights: Sequence[float] | Tensor
    """For each loss how much this batch counts in a step of several; absent where all count the same."""
    extra: dict[str, Any]
    """What some systems alone read, for each of the N canvases: ``pieces``, rows of :class:`mg_llava.pieces.Pieces`,
    and ``planned``, the same as arrays, which stay on the host;
    ``objects``, its annotated objects, ``boxes`` (n, 4) float32 xyxy, canvas pixels, and ``labels``, n names, or None
    where nobody annotated them."""


def plan_layout(
    input_ids: Tensor,
    counts: Sequence[int],
    attention_mask: Tensor | None = None,
    labels: Tensor | None = None,
    padding_side: PaddingSide = "right",
) -> Layout:
    """Plan where the tokens of a batch go.

    Args:
        input_ids: ``(B, T)`` int64 on the CPU, a negative id where a placeholder stands.
        counts: Tokens of each of the M placeholders, in reading order, row by row.
        attention_mask: ``(B, T)`` bool on the CPU, None for all true. Masked positions are dropped before merging.
        labels: ``(B, T)`` int64 on the CPU; None for none. A placeholder's tokens carry no loss.
        padding_side: Where shorter rows of the result are filled up.

    Raises:
        ValueError: Placeholders and counts differ in number, or a negative id stands for nothing.
    """
    kept = np.ones(input_ids.shape, dtype=bool) if attention_mask is None else attention_mask.bool().numpy()
    row_of, column_of = kept.nonzero()  # of each id that is kept, row by row
    ids = input_ids.numpy()[kept]
    is_placeholder = ids < 0
    _check_placeholders(ids[is_placeholder], len(counts))
    sizes = np.ones(len(ids), dtype=np.int64)
    sizes[is_placeholder] = counts
    item_of = np.repeat(np.arange(len(ids)), sizes)  # of each merged token, the id that it comes from
    offset = np.arange(len(item_of)) - (np.cumsum(sizes) - sizes)[item_of]
    rows, width = input_ids.shape
    begin = 1 + row_of * width + column_of  # places of word embeddings in the table
    begin[is_placeholder] = 1 + rows * width + np.cumsum(counts, dtype=np.int64) - np.asarray(counts, dtype=np.int64)
    own_labels = np.full(len(ids), IGNORE_INDEX) if labels is None else labels.numpy()[kept]
    own_labels = np.where(is_placeholder, IGNORE_INDEX, own_labels)

    lengths = np.bincount(row_of, weights=sizes, minlength=rows).astype(np.int64)
    longest = lengths.max(initial=0)
    position = np.arange(len(item_of)) - (np.cumsum(lengths) - lengths)[row_of[item_of]]
    first = np.zeros_like(lengths) if padding_side == "right" else longest - lengths
    slot = (row_of * longest + first[row_of])[item_of] + position

    def fill(values: np.ndarray, padding: int) -> Tensor:
        filled = np.full(rows * longest, padding, dtype=values.dtype)
        filled[slot] = values
        return torch.from_numpy(filled.reshape(rows, longest))

    flat_labels = own_labels[item_of]
    targets = slot[(flat_labels != IGNORE_INDEX) & (position > 0)] - 1
    return Layout(
        source=fill(begin[item_of] + offset, 0),
        labels=fill(flat_labels, IGNORE_INDEX),
        attention_mask=fill(np.ones(len(slot), dtype=bool), False),
        position_ids=fill(position, 0),
        targets=torch.from_numpy(targets),
        lengths=tuple(lengths.tolist()),
        counts=tuple(map(int, counts)),
        placeholders=tuple(np.bincount(row_of[is_placeholder], minlength=rows).tolist()),
    )


def canvas_flags(rows: Iterable[Iterable[int]]) -> dict[str, list[bool]]:
    """``crops`` and ``named`` of a :class:`Batch` by the placeholders in its rows of ids, where there are any."""
    ids = [token for row in rows for token in row if token < 0]
    canvases = [token for token in ids if token in (IMAGE_TOKEN_INDEX, OBJECT_TOKEN_INDEX)]
    flags = {}
    if OBJECT_TOKEN_INDEX in canvases:
        flags["crops"] = [token == OBJECT_TOKEN_INDEX for token in canvases]
    if BOX_TOKEN_INDEX in ids:
        flags["named"] = [token == IMAGE_TOKEN_INDEX for token in canvases]
    return flags


def send(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on a device; the host does not wait for the copy."""
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()  # from other memory the copy waits for all work before it
    return tensor.to(device, non_blocking=True)


def send_together(tensors: list[Tensor], device: torch.device | str) -> list[Tensor]:
    """Tensors of one dtype on a device, by one copy that the host does not wait for."""
    if len(tensors) == 1:
        return [send(tensors[0], device)]
    joined = send(torch.cat([tensor.flatten() for tensor in tensors]), device)
    parts = joined.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def _check_placeholders(negative: np.ndarray, counts: int) -> None:
    """Raise when negative ids and counted placeholders do not fit."""
    unknown = sorted(set(negative.tolist()) - PLACEHOLDER_IDS)
    if unknown:
        raise ValueError(
            f"input_ids holds {unknown[0]}; the negative ids that stand for something are "
            f"{', '.join(map(str, sorted(PLACEHOLDER_IDS, reverse=True)))}, see mg_llava.tokens"
        )
    if len(negative) != counts:
        raise ValueError(f"{len(negative)} placeholders in input_ids but {counts} pictures in the batch")
