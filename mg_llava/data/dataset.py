"""Conversations about pictures, in LLaVA format, with boxes from a box file; tokenized and decoded in the workers."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from mmengine.logging import print_log
from torch.utils.data import Dataset

from mg_llava.registry import DATASETS, TRANSFORMS

from .box_store import BadRecord, BoxStore, MissingBox, picture_keys
from .conversation import EncodedConversation, NoLabelError, Template, encode_conversation
from .pictures import PictureError, open_picture
from .processor import PictureProcessor
from .records import PackedRecords, read_record_list
from .schema import LLaVARecord, RecordError, answered_turns, parse_record
from .tokenizer import build_tokenizer

BadSample = Literal["error", "skip"]

_SHOWN = 5
_CALIBRATION = 64


@DATASETS.register_module()
class LLaVADataset(Dataset):
    """Samples for training. What an index gives depends on the index and ``seed`` alone, so that a run can resume.

    All records are checked at the start: unknown kinds, malformed turns, placeholders that do not match the pictures,
    pictures without boxes. Picture files are opened when their sample is asked for.

    Args:
        data_path: ``.json`` (a list) or ``.jsonl`` file of records ``{"id", "image" (optional), "conversations"}``;
            ``image`` is a path or a list of paths, one per placeholder.
        image_folder: Folder the paths of ``image`` are relative to; None for text alone.
        tokenizer: The LLM's tokenizer, its folder, or a dict to build it from.
        template: Name of an XTuner prompt template, or such a template.
        picture_processor: A ``PictureProcessor``, or a dict to build it from; None for text alone.
        box_path: Box file, keyed by record id (several pictures: see ``box_store.picture_keys``); None for no boxes.
        max_length: Largest number of ids of a sample, a picture counting as one; None for no limit.
        long_text_margin: Texts within this many ids of ``max_length`` get fewer boxes (see ``box_filter.cap_boxes``);
            None for no such rule.
        missing_box: ``error`` or ``empty``: what to do about pictures without a box record.
        bad_box_record: ``error`` or ``drop``: what to do about malformed box records.
        bad_image: ``error`` or ``skip``: what to do about pictures that cannot be read. ``skip`` takes the next sample
            that works in place of the whole sample.
        no_label: The same for samples in which truncation leaves no token with loss.
        max_bad_samples: Number of different samples that may be skipped before the run stops with an error.
        max_dataset_length: Keep this many records, drawn with ``seed``; None for all.
        shuffle_boxes: Shuffle the boxes of each picture, with ``seed`` and the index.
        seed: For the two above.
        tokens_per_image: Length of a picture in ``modality_length``; matters where records hold different numbers.
    """

    def __init__(
        self,
        data_path: str | Path,
        image_folder: str | Path | None,
        tokenizer: Any,
        template: Template | str | Mapping[str, Any],
        picture_processor: PictureProcessor | dict | None,
        box_path: str | Path | None = None,
        max_length: int | None = None,
        long_text_margin: int | None = 50,
        missing_box: MissingBox = "error",
        bad_box_record: BadRecord = "error",
        bad_image: BadSample = "error",
        no_label: BadSample = "skip",
        max_bad_samples: int = 100,
        max_dataset_length: int | None = None,
        shuffle_boxes: bool = False,
        seed: int = 0,
        tokens_per_image: int = 0,
    ) -> None:
        for name, value in (("bad_image", bad_image), ("no_label", no_label)):
            if value not in ("error", "skip"):
                raise ValueError(f"{name} is {value!r}; allowed: 'error', 'skip'")
        self.data_path = str(data_path)
        self.image_folder = None if image_folder is None else os.fspath(image_folder)
        self.tokenizer = build_tokenizer(tokenizer)
        self.template = Template.build(template)
        self.picture_processor = (
            TRANSFORMS.build(picture_processor) if isinstance(picture_processor, dict) else picture_processor
        )
        self.max_length = max_length
        self.long_text_margin = long_text_margin
        self.max_bad_samples = max_bad_samples
        self.shuffle_boxes = shuffle_boxes
        self.seed = seed
        self.tokens_per_image = tokens_per_image
        self._policies: dict[type[ValueError], BadSample] = {PictureError: bad_image, NoLabelError: no_label}

        raw, sizes, keys = _check_records(read_record_list(data_path), self.data_path, max_dataset_length, seed)
        self._records = PackedRecords(raw)
        # (N, 2): characters of text, pictures
        self._sizes = np.array(sizes, dtype=np.int64)
        self._check_picture_settings()
        self.box_store = None if box_path is None else BoxStore.from_json(box_path, missing_box, bad_box_record)
        self.missing_boxes = 0 if self.box_store is None else self.box_store.check(keys)
        # Shared by the worker processes.
        self._bad = torch.zeros(len(self._records), dtype=torch.uint8).share_memory_()
        self._lengths: list[int] | None = None

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Sample ``index``, or the next one that can be used where the policies say so.

        Returns:
            ``id``; ``input_ids`` and ``labels``, lists of ints; ``images``, a list of (3, S, S) uint8 tensors; and
            ``boxes``, as many (n, 4) float32 tensors in canvas pixels.

        Raises:
            PictureError: A picture cannot be read, and ``bad_image`` is ``error``.
            NoLabelError: No token carries loss, and ``no_label`` is ``error``.
            RuntimeError: More samples than ``max_bad_samples`` cannot be used.
        """
        for candidate in self._candidates(index):
            try:
                return self._load(candidate)
            except (PictureError, NoLabelError) as error:
                if self._policies[type(error)] == "error":
                    raise
                self._count_bad(candidate, error)
        raise RuntimeError(f"{self.data_path}: none of the {len(self)} samples can be used")

    def record(self, index: int) -> LLaVARecord:
        """Record ``index``, without its pictures."""
        return parse_record(self._records[index], self.data_path, index)

    @property
    def modality_length(self) -> list[int]:
        """Approximate length of each sample, for samplers: positive with pictures, negative without.

        Text is counted in characters and scaled to tokens by a few samples; nothing else is tokenized.
        """
        if self._lengths is None:
            ratio = self._tokens_per_character()
            texts = np.maximum(1, np.ceil(self._sizes[:, 0] * ratio)).astype(np.int64)
            if self.max_length is not None:
                texts = np.minimum(texts, self.max_length)
            pictures = self._sizes[:, 1]
            lengths = np.where(pictures > 0, texts + self.tokens_per_image * pictures, -texts)
            self._lengths = lengths.tolist()
        return self._lengths

    @property
    def bad_samples(self) -> int:
        """Number of different samples skipped so far, by all workers."""
        return int(self._bad.sum())

    def _candidates(self, index: int) -> Iterator[int]:
        """``index`` and its successors, without those known to be bad."""
        for step in range(len(self)):
            candidate = (index + step) % len(self)
            if not self._bad[candidate]:
                yield candidate

    def _load(self, index: int) -> dict[str, Any]:
        record = self.record(index)
        owner = f"record {record.id!r} of {self.data_path}"
        encoded = self._encode(record, owner)
        text_is_long = self._is_long(len(encoded.input_ids))
        images: list[torch.Tensor] = []
        boxes: list[torch.Tensor] = []
        for name, key in zip(record.images, picture_keys(record.id, len(record.images)), strict=True):
            assert self.picture_processor is not None and self.image_folder is not None
            image = open_picture(os.path.join(self.image_folder, name), owner)
            found = None if self.box_store is None else self.box_store.get(key)
            processed = self.picture_processor(image, found, text_is_long)
            images.append(processed.pixels)
            boxes.append(self._shuffle(processed.boxes, index, len(boxes)))
        return {
            "id": record.id,
            "input_ids": encoded.input_ids,
            "labels": encoded.labels,
            "images": images,
            "boxes": boxes,
        }

    def _encode(self, record: LLaVARecord, owner: str) -> EncodedConversation:
        try:
            return encode_conversation(record.turns, self.tokenizer, self.template, self.max_length)
        except NoLabelError as error:
            raise NoLabelError(f"{owner}: {error}") from error

    def _is_long(self, length: int) -> bool:
        if self.max_length is None or self.long_text_margin is None:
            return False
        return length >= self.max_length - self.long_text_margin

    def _shuffle(self, boxes: torch.Tensor, index: int, picture: int) -> torch.Tensor:
        if not self.shuffle_boxes:
            return boxes
        order = np.random.default_rng([self.seed, index, picture]).permutation(len(boxes))
        return boxes[torch.from_numpy(order)]

    def _count_bad(self, index: int, error: ValueError) -> None:
        self._bad[index] = 1
        message = f"skipped {self.bad_samples} samples so far, now: {error}"
        if self.bad_samples > self.max_bad_samples:
            raise RuntimeError(
                f"{self.data_path}: more than max_bad_samples={self.max_bad_samples}; {message}"
            ) from error
        print_log(message, logger="current", level=logging.WARNING)

    def _check_picture_settings(self) -> None:
        if not self._sizes[:, 1].any():
            return
        if self.picture_processor is None or self.image_folder is None:
            raise ValueError(f"{self.data_path} has records with pictures; set image_folder and picture_processor")
        if not os.path.isdir(self.image_folder):
            raise FileNotFoundError(f"image_folder {self.image_folder} does not exist; check the path in the config")

    def _tokens_per_character(self) -> float:
        """Measured on records spread evenly over the data set."""
        chosen = np.unique(np.linspace(0, len(self) - 1, min(len(self), _CALIBRATION)).astype(int))
        characters = int(self._sizes[chosen, 0].sum())
        tokens = 0
        for index in chosen.tolist():
            tokens += len(encode_conversation(self.record(index).turns, self.tokenizer, self.template).input_ids)
        return tokens / max(1, characters)


def _check_records(
    raw: list[Any], source: str, max_length: int | None, seed: int
) -> tuple[list[Any], list[tuple[int, int]], list[str]]:
    """Validate all records and drop those without an answer.

    Returns:
        The records left, their sizes (characters, pictures), and the box ids of all their pictures.
    """
    kept, sizes, keys, problems, unanswered, silent = [], [], [], [], 0, 0
    for index in _draw(len(raw), max_length, seed):
        try:
            record = parse_record(raw[index], source, index)
        except RecordError as error:
            problems.append(str(error))
            continue
        turns = answered_turns(record.turns)
        if not turns:
            unanswered += 1
            continue
        silent += any(turn.role == "gpt" and not turn.text.strip() for turn in turns)
        kept.append(raw[index])
        sizes.append((sum(len(turn.text) for turn in turns) + 1, len(record.images)))
        keys += picture_keys(record.id, len(record.images))
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise RecordError("; ".join(problems[:_SHOWN]) + more)
    if not kept:
        raise RecordError(f"{source}: none of the {len(raw)} records has a question with an answer")
    for count, what in ((unanswered, "records without an answered question, left out"), (silent, "empty answers")):
        if count:
            print_log(f"{source}: {count} {what}", logger="current", level=logging.WARNING)
    return kept, sizes, keys


def _draw(count: int, limit: int | None, seed: int) -> Sequence[int]:
    """Indices of at most ``limit`` of ``count`` records, ascending."""
    if limit is None or limit >= count:
        return range(count)
    return sorted(np.random.default_rng(seed).choice(count, limit, replace=False).tolist())
