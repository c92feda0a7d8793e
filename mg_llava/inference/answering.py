"""Answers a window of requests: encodes its pictures once, then generates batch by batch.

Shapes: B rows of a batch, T text ids, N pictures, P visual tokens of a picture, D hidden size of the LLM, n_i boxes.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mg_llava.data.pictures.files import PictureError
from mg_llava.data.pictures.processor import ProcessedPicture
from mg_llava.inference.batching import Item, Loaded, Shared
from mg_llava.inference.requests import Answer, SeenPicture
from mg_llava.inference.ties import MARGIN, Leads
from mg_llava.models.generation import can_share
from mg_llava.models.systems.mg_llava import Vision
from mg_llava.tokens import IMAGE_TOKEN_INDEX, PAD_TOKEN_ID

if TYPE_CHECKING:
    from mg_llava.inference.predictor import Predictor

Batch = list[tuple[int, Answer | ValueError]]
"""Numbers of requests with their answers, or why there is none."""

MOST_PICTURES = 16
"""Pictures that are encoded at a time, at most."""

_NO_PIXELS = torch.empty(0, dtype=torch.uint8)

_Item = TypeVar("_Item")


@dataclass
class _Ready:
    """An item with its encoded pictures.

    Attributes:
        visual: For each picture ``(P, D)``.
        boxes: For each picture ``(n_i, D)``; None for a model without object branch.
        pictures: The pictures as they were processed, with pixels where they may be encoded again.
        alone: Whether the pictures were encoded as for this item alone.
        prefix: The same for rows of the window that are equal up to their last picture; None without pictures.
    """

    item: Item
    visual: list[Tensor]
    boxes: list[Tensor] | None
    pictures: list[ProcessedPicture]
    alone: bool
    prefix: Hashable = None

    @property
    def cut(self) -> int:
        """Number of ids up to and with the last placeholder."""
        return len(self.item.ids) - list(reversed(self.item.ids)).index(IMAGE_TOKEN_INDEX)

    @property
    def rest(self) -> int:
        """Number of ids after the last placeholder."""
        return len(self.item.ids) - self.cut

    @property
    def length(self) -> int:
        """Length of the row with visual and box tokens in it."""
        tokens = sum(map(len, self.visual)) + sum(map(len, self.boxes or ()))
        return len(self.item.ids) - len(self.visual) + tokens


class Answering:
    """How requests are answered with one set of arguments of ``generate``.

    Args:
        predictor: Has model, tokenizer, stops.
        generation: Arguments of ``generate``.
        batch_size: Questions at a time.
    """

    def __init__(self, predictor: Predictor, generation: dict[str, Any], batch_size: int) -> None:
        self.predictor = predictor
        self.model = predictor.model
        self.stops = predictor.stops
        self.batch_size = batch_size
        self.settings = {"eos_token_id": self.stops.ids, **generation}
        is_greedy = not self.settings["do_sample"] and self.settings.get("num_beams") in (None, 1)
        floats = [parameter.dtype for parameter in self.model.parameters() if parameter.is_floating_point()]
        self.can_share = batch_size > 1 and can_share(self.model.llm, self.settings)
        self.is_exact = is_greedy and all(dtype in (torch.float32, torch.float64) for dtype in floats)
        self.context: int | None = getattr(self.model.llm.config, "max_position_embeddings", None)

    @property
    def picture_bytes(self) -> int:
        """Most bytes that an encoded picture takes."""
        boxes = (self.predictor.picture_processor.max_boxes or 100) if self.model.bbox_projector is not None else 0
        parameter = next(self.model.projector.parameters())
        width = self.model.llm.get_input_embeddings().embedding_dim
        return (self.predictor.visual_tokens + boxes) * width * parameter.element_size()

    def window(self, groups: Iterable[tuple[Shared, Loaded | PictureError]]) -> Iterator[Batch]:
        """Answer the items of a window; long rows first, so that memory runs out early or never."""
        ready: list[_Ready] = []
        failed: Batch = []
        for done in self._encoded(groups, failed):
            problem = self._too_long(done)
            if problem is None:
                ready.append(done)
            else:
                failed.append((done.item.number, problem))
        if failed:
            yield failed
        plain, shared = self._sorted(ready)
        for batch in plain:
            yield self._answers(batch, *self._generate(batch))
        for block in shared:
            yield from self._after_prefixes(block)

    # -- pictures -----------------------------------------------------------------------------------------------

    def _encoded(self, groups: Iterable[tuple[Shared, Loaded | PictureError]], failed: Batch) -> Iterator[_Ready]:
        """Items with their encoded pictures; those whose pictures cannot be read are added to ``failed``."""
        waiting: list[tuple[Shared, Loaded]] = []
        for group, loaded in groups:
            if isinstance(loaded, PictureError):
                failed += [(item.number, loaded) for item in group.items]
                continue
            waiting.append((group, loaded))
            if sum(shared.pictures for shared, _ in waiting) >= min(self.batch_size, MOST_PICTURES):
                yield from self._encode(waiting)
                waiting = []
        yield from self._encode(waiting)

    def _encode(self, groups: Sequence[tuple[Shared, Loaded]]) -> list[_Ready]:
        """Encode the pictures of some groups in one batch, each with the boxes of all its variants."""
        pictures = [variants for _, loaded in groups for variants in loaded.variants]
        vision = self._run_encoders(pictures) if pictures else Vision(torch.zeros(0), None)
        ready, first = [], 0
        for group, loaded in groups:
            places = range(first, first + group.pictures)
            first += group.pictures
            # boxes of several variants at once round differently than those of one
            alone = len(groups) == 1 and all(len(variants) == 1 for variants in loaded.variants)
            for item in group.items:
                chosen = list(zip(places, loaded.chosen[item.number], strict=True))
                boxes = vision.boxes and [self._variant(pictures[p], vision.boxes[p], v) for p, v in chosen]
                seen = [pictures[place][variant] for place, variant in chosen]
                if not self.is_exact:
                    seen = [replace(picture, pixels=_NO_PIXELS) for picture in seen]
                done = _Ready(item, [vision.visual[place] for place in places], boxes, seen, alone)
                if chosen and done.rest:
                    done.prefix = (id(group), tuple(loaded.chosen[item.number]), tuple(item.ids[: done.cut]))
                ready.append(done)
        return ready

    @torch.no_grad()
    def _run_encoders(self, pictures: Sequence[Sequence[ProcessedPicture]]) -> Vision:
        """Encode N pictures with the boxes of all their variants, one after the other."""
        images = torch.stack([variants[0].pixels for variants in pictures])
        boxes = [torch.cat([variant.boxes for variant in variants]) for variants in pictures]
        data = self.model.data_preprocessor({"canvas": images, "boxes": boxes}, False)
        return self.model.encode(data["canvas"], data["boxes"])

    @staticmethod
    def _variant(variants: Sequence[ProcessedPicture], tokens: Tensor, number: int) -> Tensor:
        """Box tokens of one variant among those of all."""
        return tokens.split([len(variant.boxes) for variant in variants])[number]

    # -- text ---------------------------------------------------------------------------------------------------

    def _too_long(self, one: _Ready) -> ValueError | None:
        if self.context is None or one.length < self.context:
            return None
        return ValueError(
            f"{one.item.owner}: question, picture and box tokens are {one.length} long, the LLM's context is "
            f"{self.context}; shorten the question or give fewer boxes"
        )

    def _limit(self, one: _Ready) -> int:
        """Number of tokens that the answer has room for."""
        limit = int(self.settings["max_new_tokens"])
        return limit if self.context is None else min(limit, self.context - one.length)

    def _sorted(self, ready: Sequence[_Ready]) -> tuple[list[list[_Ready]], list[list[_Ready]]]:
        """Batches of rows of similar length, and blocks of rows that share prefixes of similar length.

        Rows that the context cuts short are alone, so that they do not cut others. A block has one prefix for each two
        rows of a batch: what the LLM keeps of its prefixes is half of what it keeps of a batch.
        """
        whole = [one for one in ready if self._limit(one) == self.settings["max_new_tokens"]]
        plain = [[one] for one in ready if self._limit(one) < self.settings["max_new_tokens"]]
        groups: dict[Hashable, list[_Ready]] = {}
        for one in whole:
            groups.setdefault(one.prefix if self.can_share else None, []).append(one)
        single = [one for key, rows in groups.items() if key is None or len(rows) == 1 for one in rows]
        single.sort(key=lambda one: (-one.length, one.item.number))
        plain += _chunks(single, self.batch_size)
        several = [rows for key, rows in groups.items() if key is not None and len(rows) > 1]
        several.sort(key=lambda rows: -max(one.length for one in rows))
        blocks = _chunks(several, (self.batch_size + 1) // 2)
        return plain, [[one for rows in block for one in rows] for block in blocks]

    def _after_prefixes(self, block: Sequence[_Ready]) -> Iterator[Batch]:
        """Answer a block batch by batch; the LLM reads its prefixes once."""
        first = {one.prefix: one for one in reversed(block)}
        numbers = {prefix: number for number, prefix in enumerate(first)}
        starts = list(first.values())
        prefixes = self.model.read_prefixes(self._inputs(starts, [one.item.ids[: one.cut] for one in starts]))
        criteria = self.stops.criteria()
        settings = {
            "ends": self.settings["eos_token_id"],
            "max_new_tokens": self.settings["max_new_tokens"],
            "stop": None if criteria is None else partial(criteria, scores=None),
        }
        for batch in self._by_rest(block):
            texts = _pad([one.item.ids[one.cut :] for one in batch], left=True)
            chosen = torch.tensor([numbers[one.prefix] for one in batch])
            data = self.model.data_preprocessor({"rows": chosen, **texts}, False)
            ids, leads = self.model.generate_after(prefixes, data.pop("rows"), data, **settings)
            yield self._answers(batch, ids, leads.tolist())

    def _by_rest(self, block: Sequence[_Ready]) -> Iterator[list[_Ready]]:
        """Batches of rows by length after the prefix, long ones first.

        Where rows become half as long, a batch that is a quarter full ends: padding would cost more than it saves.
        """
        batch: list[_Ready] = []
        for one in sorted(block, key=lambda one: -one.rest):
            is_short = 4 * len(batch) >= self.batch_size and 2 * one.rest <= batch[0].rest
            if is_short or len(batch) == self.batch_size:
                yield batch
                batch = []
            batch.append(one)
        yield batch

    def _answers(self, batch: Sequence[_Ready], rows: Sequence[Tensor], leads: Sequence[float]) -> Batch:
        """Answers of the new ids of each row; what rounding could decide is asked again alone."""
        answers: Batch = []
        for one, ids, lead in zip(batch, rows, leads, strict=True):
            if self.is_exact and lead < MARGIN:
                ids = self._generate([self._encode_alone(one)])[0][0]
            answers.append((one.item.number, self._make_answer(one, ids)))
        return answers

    def _encode_alone(self, one: _Ready) -> _Ready:
        if one.alone or not one.pictures:
            return one
        vision = self._run_encoders([[picture] for picture in one.pictures])
        return replace(one, visual=list(vision.visual), boxes=vision.boxes, alone=True)

    def _generate(self, batch: Sequence[_Ready]) -> tuple[list[Tensor], list[float]]:
        """New ids of each row, and its smallest lead of the best token over the second; endless for one row alone."""
        settings = {**self.settings, "max_new_tokens": min(map(self._limit, batch))}
        criteria = self.stops.criteria()
        if criteria is not None:
            settings["stopping_criteria"] = [*criteria, *settings.get("stopping_criteria", [])]
        leads = Leads(settings["eos_token_id"])
        if self.is_exact:
            settings["logits_processor"] = [*settings.get("logits_processor", []), leads]
        rows = self.model.generate(self._inputs(batch, [one.item.ids for one in batch]), **settings)
        is_alone = len(batch) == 1 and batch[0].alone
        return rows, leads.smallest.tolist() if self.is_exact and not is_alone else [torch.inf] * len(batch)

    def _inputs(self, batch: Sequence[_Ready], ids: Sequence[Sequence[int]]) -> dict[str, Any]:
        """Rows of ids with the encoded pictures of ``batch``, on the device."""
        data = self.model.data_preprocessor(_pad(ids), False)
        if any(one.visual for one in batch):
            visual = torch.stack([tokens for one in batch for tokens in one.visual])  # (N, P, D)
            boxes = None
            if self.model.bbox_projector is not None:
                boxes = [tokens for one in batch for tokens in one.boxes or ()]
            data["vision"] = Vision(visual, boxes)
        return data

    def _make_answer(self, one: _Ready, ids: Tensor) -> Answer:
        text, stopped = self.stops.cut(self.predictor.tokenizer.decode(ids, skip_special_tokens=True))
        truncated = len(ids) >= self._limit(one) and not stopped
        return Answer(text, tuple(ids.tolist()), tuple(map(_seen, one.pictures)), truncated, one.item.request.id)


def _chunks(items: Sequence[_Item], size: int) -> list[list[_Item]]:
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def _pad(ids: Sequence[Sequence[int]], left: bool = False) -> dict[str, Tensor]:
    """``input_ids`` (B, T) and ``attention_mask`` (B, T)."""
    rows = [torch.as_tensor(row, dtype=torch.int64) for row in ids]
    lengths = torch.tensor([len(row) for row in rows])
    input_ids = pad_sequence(
        [row.flip(0) for row in rows] if left else rows, batch_first=True, padding_value=PAD_TOKEN_ID
    )
    mask = torch.arange(input_ids.shape[1])[None] < lengths[:, None]
    if left:
        input_ids, mask = input_ids.flip(1), mask.flip(1)
    return {"input_ids": input_ids, "attention_mask": mask}


def _seen(picture: ProcessedPicture) -> SeenPicture:
    if picture.is_empty:
        return SeenPicture(picture.canvas, picture.canvas.to_original(picture.boxes.double().numpy()[:0]))
    boxes = picture.canvas.to_original(picture.boxes.double().numpy())
    return SeenPicture(picture.canvas, boxes, tuple(picture.labels), tuple(picture.scores))
