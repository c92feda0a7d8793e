"""Lengths of samples for samplers, without reading pictures: exact for cached text, else measured on a few samples."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from mmengine.logging import print_log

from mg_llava.data.boxes.filter import filter_boxes
from mg_llava.data.boxes.store import BoxStore
from mg_llava.data.pictures.processor import PictureProcessor
from mg_llava.data.records.index import Samples
from mg_llava.data.records.schema import LLaVARecord
from mg_llava.data.text.budget import BudgetError, TokenBudget
from mg_llava.data.text.conversation import Template, encode_conversation
from mg_llava.data.text.regions import RegionUse

_CALIBRATION = 64


def find_lengths(
    samples: Samples,
    texts: np.ndarray | None,
    tokenizer: Any,
    template: Template,
    boxes: Callable[[Samples, Sequence[LLaVARecord]], np.ndarray] | None,
    budget: TokenBudget,
    use: RegionUse,
) -> np.ndarray:
    """Lengths of N records within the budget: (N,) int32, positive with pictures, negative without.

    Args:
        samples: The records.
        texts: (N,) exact number of ids of each; None to estimate them.
        tokenizer: Tokenizes a few of them.
        template: Their template.
        boxes: Counts their boxes, (N,) int64, from all and from a few of them; None where boxes do not count.
        budget: The limits.
        use: How regions enter the texts.
    """
    characters, pictures = samples.index.sizes.T
    count = len(characters)
    videos = samples.index.videos
    few = np.concatenate([_spread(np.flatnonzero(kind)) for kind in (~videos, videos)]).tolist()
    records = [samples.at(position) for position in few]
    if texts is None:
        turns = [use.measure(record)[0] for record in records]
        tokens = sum(len(encode_conversation(own, tokenizer, template).input_ids) for own in turns)
        ratio = tokens / max(1, int(characters[few].sum()))
        texts = np.maximum(1, np.ceil(characters * ratio)).astype(np.int64)
    counts = np.zeros(count, dtype=np.int64) if boxes is None else boxes(samples, records)
    return _signed_lengths(texts, pictures, counts, budget, videos, count_crops(samples, use))


def _spread(places: np.ndarray) -> np.ndarray:
    """A few of (n,) int64 places, spread evenly."""
    return places[np.linspace(0, len(places) - 1, min(len(places), _CALIBRATION)).astype(int)]


def count_crops(samples: Samples, use: RegionUse) -> np.ndarray:
    """(N,) int64 object images of records, but for those of coordinates that are typed."""
    images, coordinates = samples.index.regions.T.astype(np.int64)
    return images + coordinates if use.attach == "coordinates" else images


def count_boxes(
    samples: Samples, few: Sequence[LLaVARecord], processor: PictureProcessor, store: BoxStore | None
) -> np.ndarray:
    """(N,) int64 box tokens of records, from the boxes in the file and what ``processor`` leaves of a few records'."""
    pictures, keys = samples.index.sizes[:, 1], samples.index.box_keys()
    blank = processor.stand_in_tokens()
    if store is None:
        return pictures.astype(np.int64) * blank
    counts = store.counts(keys)
    is_frame = np.repeat(samples.index.videos, pictures)
    frames = _share_left([record for record in few if record.video is not None], processor.of_frames, store)
    others = _share_left([record for record in few if record.video is None], processor, store)
    left = np.maximum(1, np.ceil(counts * np.where(is_frame, frames, others)))
    tokens = np.where(counts > 0, left, blank).astype(np.int64)
    # (pictures in all,) -> (N,)
    ends = np.cumsum(pictures)
    sums = np.concatenate([[0], np.cumsum(tokens)])
    return sums[ends] - sums[ends - pictures]


def _share_left(few: Sequence[LLaVARecord], processor: PictureProcessor, store: BoxStore) -> float:
    """The share of the boxes of a few records that ``processor`` leaves; all where they have none."""
    found = [store.find(key) for record in few for key in record.box_keys]
    boxed = [record for record in found if record is not None and len(record)]
    rules = processor.rules  # the filter does not need the picture
    left = (filter_boxes(record.boxes, record.scores, record.labels, rules).kept for record in boxed)
    return sum(map(len, left)) / sum(map(len, boxed)) if boxed else 1.0


def check_budget(samples: Samples, budget: TokenBudget, owner: Callable[[LLaVARecord], str], use: RegionUse) -> None:
    """Refuse records whose pictures, or frames of a video, leave no room for an answer; ``owner`` names a record.

    Raises:
        BudgetError: There is one.
    """
    pictures, videos, crops = samples.index.sizes[:, 1], samples.index.videos, count_crops(samples, use)
    for own, limits in ((pictures * ~videos, budget), (pictures * videos, budget.of_frames)):
        worst = int((own * limits.tokens(1, 0) + (own > 0) * crops * limits.tokens.per_crop).argmax())
        try:
            limits.text_limit(int(own[worst]), int(crops[worst]))
        except BudgetError as error:
            raise BudgetError(f"{owner(samples.at(worst))}: {error}") from error


def describe_frames(samples: Samples, budget: TokenBudget, processor: PictureProcessor | None, owner: str) -> None:
    """Say in the log what a video costs, where there are some."""
    videos = int(samples.index.videos.sum())
    if videos and processor is not None:
        frames, tokens, most = processor.video.frames, budget.of_frames.tokens(1, 0), processor.of_frames.max_boxes
        boxes = "any number of boxes" if most is None else f"at most {most} boxes"
        room = f"; context_length is {budget.context_length}" if budget.context_length is not None else ""
        told = f"{owner}: {videos} videos, {frames} frames of {tokens} tokens and {boxes} each{room}"
        print_log(told, logger="current")


def _signed_lengths(
    texts: np.ndarray,
    pictures: np.ndarray,
    boxes: np.ndarray,
    budget: TokenBudget,
    videos: np.ndarray,
    crops: np.ndarray,
) -> np.ndarray:
    """Lengths of N samples within the budget: positive with pictures, negative without; (N,) int32."""
    visual = np.where(videos, budget.of_frames.tokens(1, 0), budget.tokens(1, 0))  # tokens of a canvas
    limits = np.full(len(texts), np.iinfo(np.int32).max, dtype=np.int64)
    if budget.max_length is not None:
        limits[:] = budget.max_length
    if budget.context_length is not None:
        left = budget.context_length - pictures * (visual - 1) - crops * (budget.tokens.per_crop - 1)
        limits = np.maximum(1, np.minimum(limits, left))
    texts = np.minimum(texts, limits)
    lengths = texts + visual * pictures + budget.tokens.per_crop * crops + budget.tokens.per_box * boxes
    if budget.context_length is not None:
        lengths = np.minimum(lengths, budget.context_length)
    return np.where(pictures > 0, lengths, -lengths).astype(np.int32)
