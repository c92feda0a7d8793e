"""Lengths of samples for samplers, without reading pictures: exact for cached text, else measured on a few samples."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from mg_llava.data.boxes.filter import filter_boxes
from mg_llava.data.boxes.store import BoxStore, picture_keys
from mg_llava.data.pictures.processor import PictureProcessor
from mg_llava.data.records.index import Samples
from mg_llava.data.records.schema import BoxRecord, LLaVARecord
from mg_llava.data.text.budget import TokenBudget
from mg_llava.data.text.conversation import Template, encode_conversation

_CALIBRATION = 64


def find_lengths(
    samples: Samples,
    texts: np.ndarray | None,
    tokenizer: Any,
    template: Template,
    boxes: Callable[[Samples, Sequence[LLaVARecord]], np.ndarray] | None,
    budget: TokenBudget,
) -> np.ndarray:
    """Lengths of N records within the budget.

    Args:
        samples: The records.
        texts: (N,) exact number of ids of each; None to estimate them.
        tokenizer: Tokenizes a few of them.
        template: Their template.
        boxes: Counts their boxes, (N,) int64, from all and from a few of them; None where boxes do not count.
        budget: The limits.

    Returns:
        (N,) int32, positive with pictures, negative without.
    """
    few = spread(len(samples.index.rows))
    records = [samples.at(position) for position in few]
    if texts is None:
        texts = estimate_texts(samples.index.sizes[:, 0], few, records, tokenizer, template)
    counts = np.zeros(len(texts), dtype=np.int64) if boxes is None else boxes(samples, records)
    return signed_lengths(texts, samples.index.sizes[:, 1], counts, budget)


def spread(count: int) -> list[int]:
    """Indices of a few of ``count`` records, spread evenly."""
    return np.unique(np.linspace(0, count - 1, min(count, _CALIBRATION)).astype(int)).tolist()


def estimate_texts(
    characters: np.ndarray, chosen: Sequence[int], records: Iterable[LLaVARecord], tokenizer: Any, template: Template
) -> np.ndarray:
    """Number of ids of N conversations, from their characters and the conversations of a few.

    Args:
        characters: (N,) characters.
        chosen: Indices of the ``records``.
        records: The few.
        tokenizer: Tokenizes them.
        template: Their template.

    Returns:
        (N,) int64, at least 1.
    """
    tokens = sum(len(encode_conversation(record.turns, tokenizer, template).input_ids) for record in records)
    ratio = tokens / max(1, int(characters[list(chosen)].sum()))
    return np.maximum(1, np.ceil(characters * ratio)).astype(np.int64)


def count_boxes(
    samples: Samples, few: Sequence[LLaVARecord], processor: PictureProcessor, store: BoxStore | None
) -> np.ndarray:
    """Number of box tokens of N records, from the boxes in the file and what the filter leaves of a few records'.

    Args:
        samples: The records.
        few: Some of them.
        processor: Filters their boxes.
        store: Their boxes.

    Returns:
        (N,) int64.
    """
    pictures, keys = samples.index.sizes[:, 1], samples.index.box_keys()
    blank = processor.stand_in_tokens()
    if store is None:
        return pictures.astype(np.int64) * blank
    counts = store.counts(keys)
    found = [store.find(key) for record in few for key in picture_keys(record.id, len(record.images))]
    boxed = [record for record in found if record is not None and len(record)]
    ratio = sum(_left(record, processor) for record in boxed) / max(1, sum(map(len, boxed)))
    tokens = np.where(counts > 0, np.maximum(1, np.ceil(counts * ratio)), blank).astype(np.int64)
    # (pictures in all,) -> (N,)
    ends = np.cumsum(pictures)
    sums = np.concatenate([[0], np.cumsum(tokens)])
    return sums[ends] - sums[ends - pictures]


def signed_lengths(texts: np.ndarray, pictures: np.ndarray, boxes: np.ndarray, budget: TokenBudget) -> np.ndarray:
    """Lengths of N samples within the budget: positive with pictures, negative without; (N,) int32."""
    limits = np.full(len(texts), np.iinfo(np.int32).max, dtype=np.int64)
    if budget.max_length is not None:
        limits[:] = budget.max_length
    if budget.context_length is not None:
        left = budget.context_length - pictures * (budget.tokens(1, 0) - 1)
        limits = np.maximum(1, np.minimum(limits, left))
    texts = np.minimum(texts, limits)
    lengths = texts + budget.tokens(1, 0) * pictures + budget.tokens.per_box * boxes
    if budget.context_length is not None:
        lengths = np.minimum(lengths, budget.context_length)
    return np.where(pictures > 0, lengths, -lengths).astype(np.int32)


def _left(record: BoxRecord, processor: PictureProcessor) -> int:
    """Number of boxes that the filter leaves; it does not need the picture."""
    return len(filter_boxes(record.boxes, record.scores, record.labels, processor.rules).kept)
