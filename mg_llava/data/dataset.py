"""Conversations about pictures, in LLaVA format, with boxes from a box file; tokenized and decoded in the workers."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from mg_llava.batch import TokenCount
from mg_llava.data.boxes.store import BoxStore, check_frames
from mg_llava.data.config import below, build_transform, open_boxes, resolve_paths
from mg_llava.data.faults import FAULTS, SkippedSamples, StrayBoxes
from mg_llava.data.features.cache import FeatureError, NoPictureError
from mg_llava.data.features.source import FeatureSource
from mg_llava.data.lengths import check_budget, count_boxes, count_crops, describe_frames, find_lengths
from mg_llava.data.pictures.files import PictureError
from mg_llava.data.pictures.loading import OpenedPicture, PictureLoader
from mg_llava.data.pictures.processor import PictureProcessor
from mg_llava.data.records.formats import RecordFormat
from mg_llava.data.records.index import Samples
from mg_llava.data.records.schema import LLaVARecord, RecordError
from mg_llava.data.samples import LoadedSample, make_sample
from mg_llava.data.settings import (
    BoxUse,
    Caches,
    Draw,
    FaultPolicy,
    build_group,
    build_tokens,
    picture_problems,
    unknown_settings,
)
from mg_llava.data.text.budget import BudgetError, TokenBudget
from mg_llava.data.text.conversation import EncodedConversation, NoLabelError, Template, encode_conversation
from mg_llava.data.text.prompt import apply_parts, build_parts, describe_parts
from mg_llava.data.text.regions import RegionUse, in_pixels, with_names
from mg_llava.data.text.token_cache import TokenCache, cache_key
from mg_llava.data.text.tokenizer import build_tokenizer
from mg_llava.registry import DATASETS

_NAMED = 3
"""Records that a report names of each kind."""


@DATASETS.register_module()
class LLaVADataset(Dataset):
    """Samples for training. What an index gives depends on it, the epoch and the seed alone, so that a run can resume.

    All records are checked at the start: unknown kinds, malformed turns, placeholders that do not match the pictures,
    pictures without boxes. Records and pictures are read, and texts tokenized, when their sample is asked for.

    Args:
        data_path: File of records ``{"id", "image" (optional), "conversations"}``: ``.json`` (a list), ``.jsonl`` or
            ``.parquet``. ``image`` is a path or a list of paths, one per ``<image>``, or there is ``video``, a path.
        image_folder: Folder the paths of ``image`` and ``video`` are relative to; None for text alone.
        tokenizer: The LLM's tokenizer, its folder, or a dict to build it from.
        template: Name of an XTuner prompt template, or such a template.
        picture_processor: A ``PictureProcessor``, or a dict to build it from; None for text alone.
        box_path: Box file, keyed by record id (several pictures: see ``boxes.store.picture_keys``), or an open
            ``BoxStore``; None for no boxes.
        tokens: Tokens of a picture and its boxes in the LLM, or ``dict(type="mg_llava.count_tokens", model=...)``.
        budget: Limits of text, pictures and boxes together (see ``TokenBudget``).
        boxes: What is done with boxes (see ``BoxUse``).
        faults: What happens about data that cannot be used (see ``FaultPolicy``).
        draw: Which records an epoch has (see ``Draw``).
        caches: What is kept from one start to the next (see ``Caches``).
        data_root: Folder that the three paths are relative to; None for the working directory.
        name: What messages and counts call the data; the name of the record file where None.
        more: ``format`` of the records (see ``records.formats``); misspelt settings, refused in one message.

    Raises:
        BudgetError: The pictures of a record exceed the context, and ``over_budget`` is ``error``.
        FileNotFoundError: A file or the image folder does not exist.
        RecordError: A record or box record is malformed, or a picture has no boxes.
        ValueError: Settings are unknown or do not fit each other.
    """

    def __init__(
        self,
        data_path: str | Path,
        image_folder: str | Path | None,
        tokenizer: Any,
        template: Template | str | Mapping[str, Any],
        picture_processor: PictureProcessor | dict | None,
        box_path: str | Path | BoxStore | None = None,
        tokens: TokenCount | Mapping[str, Any] | None = None,
        budget: TokenBudget | Mapping[str, Any] | None = None,
        boxes: BoxUse | Mapping[str, Any] | None = None,
        faults: FaultPolicy | Mapping[str, Any] | None = None,
        draw: Draw | Mapping[str, Any] | None = None,
        caches: Caches | Mapping[str, Any] | None = None,
        data_root: str | Path | None = None,
        name: str | None = None,
        **more: Any,
    ) -> None:
        form: RecordFormat = more.pop("format", None) or "llava"
        if more:
            raise ValueError("; ".join(unknown_settings(more, SETTINGS, type(self).__name__)))
        named = {"data_path": data_path, "image_folder": image_folder, "box_path": box_path}
        paths = resolve_paths({"data_root": data_root, **named})
        self.data_path: str = paths["data_path"]
        self.image_folder: str | None = paths["image_folder"]
        self.name = Path(data_path).stem if name is None else name
        self.tokenizer = build_tokenizer(tokenizer)
        self.template = Template.build(template)
        self.picture_processor: PictureProcessor | None = build_transform(picture_processor)
        self.faults: FaultPolicy = build_group("faults", faults)
        self.boxes: BoxUse = build_group("boxes", boxes)
        self.prompt, self.extra = build_parts(self.boxes.prompt), build_transform(self.boxes.extra)
        self.draw: Draw = build_group("draw", draw)
        self.caches: Caches = build_group("caches", caches)
        self.regions = RegionUse() if self.picture_processor is None else self.picture_processor.regions
        self._tokens = None if tokens is None else build_tokens(tokens)
        counted = with_names(self._tokens or TokenCount(0), self.regions, self.tokenizer)
        self.budget: TokenBudget = build_group("budget", budget).counting(counted)
        drawn = self.draw.max_dataset_length, self.draw.repeat, self.draw.seed
        frames = 1 if self.picture_processor is None else self.picture_processor.video.frames
        self._samples = Samples(self.data_path, *drawn, self.caches.token_cache, frames, form)
        policies, count = {fault: getattr(self.faults, fault) for fault in FAULTS}, len(self._samples.index.rows)
        self._skipped = SkippedSamples(count, policies, self.faults.max_bad_samples, self.data_path)
        self._check_pictures()
        self.token_cache = self._open_token_cache()
        box_faults = self.faults.missing_box, self.faults.bad_box_record
        self.box_store = open_boxes(paths["box_path"], *box_faults, self.boxes.proposer, self.picture_processor)
        self._strays = StrayBoxes(self._samples.positions, str(paths["box_path"]))
        self.missing_boxes = 0
        if self.box_store is not None:
            check_frames(self.box_store, self._samples.index.video_ids(), frames)
            self.missing_boxes = self.box_store.check(self._samples.index.box_keys())
        self.loader = self._make_loader(data_root)
        self.features = self._open_features()
        self._lengths: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Sample ``index``, or the next one that can be used where the policies say so.

        Returns:
            ``id``; ``input_ids`` and ``labels``, lists of ints; ``images``, a list of (3, S, S) uint8 tensors;
            ``boxes``, as many (n, 4) float32 tensors in canvas pixels; and, where ``tokens`` was given, ``tokens``,
            what each placeholder stands for in the LLM. From a feature cache in place of the images: ``features``,
            the arrays of each picture (see ``mg_llava.features``), ``feature_cache``, its name, and ``cached``, which
            pictures come from there. ``is_video`` where the pictures are frames of one; ``crops`` and ``named``, which
            are object images and which have named boxes, where there are any; ``extra`` (see ``BoxUse``).

        Raises:
            PictureError: A picture cannot be read, and ``bad_image`` is ``error``.
            NoLabelError: No token carries loss, and ``no_label`` is ``error``.
            BudgetError: The pictures exceed the context, and ``over_budget`` is ``error``.
            RuntimeError: More records than ``max_bad_samples`` cannot be used.
            FeatureError: The feature cache lacks a picture, or holds stale features, and ``missing_features`` is
                ``error``.
        """
        for candidate in self._candidates(index):
            try:
                return self.load(candidate)
            except (PictureError, NoLabelError, BudgetError) as error:
                self._skipped.add(int(self._samples.positions[candidate]), error)
        raise RuntimeError(f"{self.data_path}: none of the {len(self)} samples can be used")

    def load(self, index: int) -> dict[str, Any]:
        """Sample ``index`` itself, whatever the policies say; errors as from ``__getitem__`` with policy ``error``."""
        loaded = (None if self.features is None else self._load(index, self.features)) or self.open(index)
        count = self._tokens if loaded.record.video is None or self._tokens is None else self._tokens.of_frames
        sample = make_sample(loaded, count, "" if self.features is None else self.features.cache.name)
        if self.extra is not None and loaded.pictures:
            read = [(picture.opened.record, picture.opened.frame) for picture in loaded.pictures]
            sample["extra"] = self.extra(loaded.record.turns, *map(list, zip(*read, strict=True)))
        return sample

    def open(self, index: int) -> LoadedSample:
        """Sample ``index`` with all that is known of its pictures, which are opened; errors as from ``load``."""
        loaded = self._load(index)
        assert loaded is not None  # there is always a picture to open, or an error
        return loaded

    def set_epoch(self, epoch: int) -> None:
        """Draw boxes and their order anew, in workers too; to be called before a loader is opened."""
        if self.loader is not None and self.draw.anew:
            self.loader.epoch.fill_(epoch)

    def record(self, index: int) -> LLaVARecord:
        """Record of sample ``index``."""
        return self._samples.record(index)

    def record_at(self, position: int) -> LLaVARecord:
        """Record ``position`` of those that can be used, however often it comes."""
        return self._samples.at(position)

    def picture_positions(self) -> list[int]:
        """Positions of the records with pictures that come in an epoch."""
        return self._samples.picture_positions().tolist()

    def row(self, index: int) -> int:
        """Place in the record file of the record of sample ``index``; the same for each of its repetitions."""
        return self._samples.row(index)

    def encode(self, index: int) -> EncodedConversation:
        """Text of sample ``index``, cut to its limit; errors as from ``load``."""
        record = self.record(index)
        return self.open(index).encoded if self._reads_pictures(record) else self._encode(index, record, ())

    @property
    def modality_length(self) -> list[int]:
        """The :meth:`modality_lengths` as a list, which XTuner's samplers read."""
        return self.modality_lengths().tolist()

    def modality_lengths(self) -> np.ndarray:
        """(M,) int32 length of each sample, for samplers: positive with pictures, negative without.

        Counted are text (without what prompt parts add), pictures and, with ``count_boxes``, boxes. Texts are exact
        where the token cache was filled, else scaled from characters by a few samples; boxes from the box file.
        """
        if self._lengths is None:
            texts = None if self.token_cache is None else self.token_cache.lengths_of(self._samples.index.rows)
            processor = self.picture_processor if self.boxes.count_boxes else None
            boxes = None if processor is None else partial(count_boxes, processor=processor, store=self.box_store)
            text = self.tokenizer, self.template
            self._lengths = find_lengths(self._samples, texts, *text, boxes, self.budget, self.regions)
        return self._lengths[self._samples.positions]

    @property
    def bad_samples(self) -> int:
        """Number of different records skipped so far, by all workers of this process."""
        return len(self._skipped)

    def report(self) -> dict[str, Any]:
        """What there is, and what all workers of this process skipped so far, with the first few ids of each kind."""
        return {
            "name": self.name,
            "data_path": self.data_path,
            "records": len(self._samples.index.rows),
            "samples": len(self),
            "missing_boxes": self.missing_boxes,
            "encoded_anew": 0 if self.features is None else self.features.encoded_anew,
            "skipped": self._skipped.counts(),
            "skipped_ids": [self._samples.at(position).id for position in self._skipped.first(_NAMED)],
            "stray_boxes": self._strays.boxes,
            "stray_ids": [self._samples.at(position).id for position in self._strays.first(_NAMED)],
        }

    def _candidates(self, index: int) -> Iterator[int]:
        """``index`` and its successors, without those known to be bad."""
        for step in range(len(self)):
            candidate = (index + step) % len(self)
            if int(self._samples.positions[candidate]) not in self._skipped:
                yield candidate

    def _make_loader(self, root: str | Path | None) -> PictureLoader | None:
        """Loads the pictures of records; None where the source is text alone."""
        if self.picture_processor is None or self.image_folder is None:
            return None
        return PictureLoader(
            *(self.image_folder, self.picture_processor, self.budget, self.box_store),
            augmentation=build_transform(self.boxes.box_augmentation),
            crop_augmentation=build_transform(self.boxes.crop_augmentation),
            shuffle=self.boxes.shuffle_boxes,
            seed=self.draw.seed,
            strays=self._strays,
            max_pixels=self.faults.max_pixels,
            allow_outside=self.faults.outside_pictures == "allow",
            targets=open_boxes(below(root, self.boxes.targets), "empty"),
        )

    def _open_features(self) -> FeatureSource | None:
        cache = self.caches.feature_cache
        if cache is None or self.loader is None or not self._samples.index.sizes[:, 1].any():
            return None
        missing, augmentation = self.faults.missing_features, self.loader.augmentation
        return FeatureSource(cache, missing, self._samples, self.picture_processor, augmentation)

    def _load(self, index: int, features: FeatureSource | None = None) -> LoadedSample | None:
        """Sample ``index``; None where its pictures are not in ``features`` and are to be opened.

        Text that depends on boxes is encoded after them; other text before any picture is read.
        """
        record = self.record(index)
        if not record.images:
            return LoadedSample(record, self._encode(index, record, ()), ())
        encoded = None if self._reads_pictures(record) else self._encode(index, record, ())
        owner, cache = self._owner(record), None if features is None else features.cache
        assert self.loader is not None  # checked at the start
        try:
            opened = self.loader.open(record, index, owner, cache)
            encoded = encoded or self._encode(index, record, opened)
            pictures = self.loader.finish(opened, index, encoded, cache)
            if self.regions.names:
                numbers = [picture.box_numbers for picture in pictures if picture.region is None]
                encoded = self.regions.name_boxes(encoded, numbers, self.tokenizer)
            return LoadedSample(record, encoded, pictures)
        except NoPictureError:
            return None  # found again when it is opened, for ``bad_image``
        except FeatureError as error:
            if features is not None:
                features.miss(owner, error)
            return None

    def _encode(self, index: int, record: LLaVARecord, opened: Sequence[OpenedPicture]) -> EncodedConversation:
        """Text of a record, with what prompt parts make of the boxes of its opened pictures."""
        row, is_fixed = self.row(index), not self._reads_pictures(record)
        encoded = self.token_cache.get(row) if self.token_cache is not None and is_fixed else None
        if encoded is not None:
            return encoded
        try:
            objects, sizes = [picture.record for picture in opened], [picture.frame for picture in opened]
            turns, regions = self.regions.resolve_record(in_pixels(record, sizes), objects, sizes)
            limit = self.budget.of(record.video).text_limit(len(record.images), len(regions))
            draw = None if self.loader is None else self.loader.draw_text(index)
            turns = apply_parts(self.prompt, turns, objects, sizes, draw)
            encoded = replace(encode_conversation(turns, self.tokenizer, self.template, limit), regions=regions)
        except (NoLabelError, BudgetError, RecordError) as error:
            raise type(error)(f"{self._owner(record)}: {error}") from error
        if self.token_cache is not None and is_fixed:
            self.token_cache.put(row, encoded)
        return encoded

    def _reads_pictures(self, record: LLaVARecord) -> bool:
        """Whether the text of a record depends on its pictures or their boxes."""
        return bool(record.images) and (bool(self.prompt) or self.regions.concerns(record.turns))

    def _owner(self, record: LLaVARecord) -> str:
        return f"record {record.id!r} of {self.data_path}"

    def _check_pictures(self) -> None:
        """Refuse settings that pictures of the records do not fit."""
        if not self._samples.index.sizes[:, 1].any():
            return
        crops = bool(count_crops(self._samples, self.regions).any())
        for error in picture_problems(self.image_folder, self.picture_processor, self.budget, self._tokens, crops):
            raise type(error)(f"{self.data_path}: {error}")
        describe_frames(self._samples, self.budget, self.picture_processor, self.data_path)
        if self.faults.over_budget == "error":
            check_budget(self._samples, self.budget, self._owner, self.regions)

    def _open_token_cache(self) -> TokenCache | None:
        if self.caches.token_cache is None:
            return None
        data = self._samples.describe() + describe_parts(self.boxes.prompt)
        key = cache_key(self.tokenizer, self.template, self.budget, data)
        return TokenCache(self.caches.token_cache, key, self._samples.file_rows)


SETTINGS = (*(name for name in inspect.signature(LLaVADataset).parameters if name != "more"), "format")
"""Names of the settings of a data set."""
