"""Conversations about pictures, in LLaVA format, with boxes from a box file; tokenized and decoded in the workers."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from mg_llava.data.boxes.store import BadRecord, BoxStore, MissingBox
from mg_llava.data.config import build_transform, open_boxes, resolve_paths
from mg_llava.data.faults import BadSample, SkippedSamples, StrayBoxes
from mg_llava.data.features.cache import FeatureCache, FeatureError, NoPictureError
from mg_llava.data.features.source import FeatureSource, MissingFeatures
from mg_llava.data.lengths import estimate_boxes, estimate_texts, signed_lengths, spread
from mg_llava.data.pictures.files import PictureError
from mg_llava.data.pictures.loading import BoxAugmentation, PictureLoader
from mg_llava.data.pictures.processor import PictureProcessor
from mg_llava.data.records.catalog import RecordCatalog
from mg_llava.data.records.schema import LLaVARecord
from mg_llava.data.text.budget import BudgetError, TokenBudget
from mg_llava.data.text.conversation import EncodedConversation, NoLabelError, Template, encode_conversation
from mg_llava.data.text.token_cache import TokenCache, cache_key
from mg_llava.data.text.tokenizer import build_tokenizer
from mg_llava.registry import DATASETS

_NAMED = 3
"""Records that a report names of each kind."""


@DATASETS.register_module()
class LLaVADataset(Dataset):
    """Samples for training. What an index gives depends on the index and ``seed`` alone, so that a run can resume.

    All records are checked at the start: unknown kinds, malformed turns, placeholders that do not match the pictures,
    pictures without boxes. Records and pictures are read, and texts tokenized, when their sample is asked for.

    Args:
        data_path: File of records ``{"id", "image" (optional), "conversations"}``: ``.json`` (a list), ``.jsonl`` or
            ``.parquet``. ``image`` is a path or a list of paths, one per placeholder.
        image_folder: Folder the paths of ``image`` are relative to; None for text alone.
        tokenizer: The LLM's tokenizer, its folder, or a dict to build it from.
        template: Name of an XTuner prompt template, or such a template.
        picture_processor: A ``PictureProcessor``, or a dict to build it from; None for text alone.
        box_path: Box file, keyed by record id (several pictures: see ``box_store.picture_keys``), or an open
            ``BoxStore``; None for no boxes.
        data_root: Folder that the three paths are relative to; None for the working directory.
        name: What messages and counts call the data; the name of the record file where None.
        repeat: Times that each record comes in an epoch; 0.5 takes half of the records, drawn with ``seed``.
        max_dataset_length: Keep this many records, drawn with ``seed``; None for all.
        max_length: Largest number of ids of a sample, a picture counting as one; None for no limit.
        context_length: Largest number of tokens that the LLM sees of a sample, text, pictures and boxes together (see
            ``budget``); None for no limit.
        tokens_per_image: Visual tokens of a picture.
        long_text_margin: Texts within this many ids of their limit get fewer boxes (see ``box_filter.cap_boxes``);
            None for no such rule.
        box_augmentation: Changes the boxes of a picture before they are filtered, or a dict to build it from.
        shuffle_boxes: Shuffle the boxes of each picture.
        missing_box: What to do about pictures without a box record (see ``box_store.open_box_store``).
        proposer: Finds boxes for ``missing_box="detect"``, or a dict to build it from.
        bad_box_record: ``error`` or ``drop``: what to do about malformed box records.
        bad_image: ``error`` or ``skip``: what to do about pictures that cannot be read. ``skip`` takes the next sample
            that works in place of the whole sample.
        max_pixels: Largest number of pixels of a picture that is read (see ``pictures.open_picture``).
        no_label: The same for samples in which truncation leaves no token with loss.
        over_budget: The same for samples whose pictures alone exceed ``context_length``.
        max_bad_samples: Number of different records that may be skipped, in each process, before the run stops with an
            error.
        token_cache: Folder that keeps token ids (see ``token_cache``) and what was learned of the records; None for no
            cache.
        feature_cache: Folder with what the frozen encoders give for each picture (see ``feature_cache``), or an open
            ``FeatureCache``: samples then hold that in place of pictures. None to open pictures.
        missing_features: ``error``, or ``picture``: open the pictures of samples that the feature cache lacks.
        count_boxes: Whether boxes count in ``modality_length``.
        seed: Of everything that is drawn.

    Raises:
        BudgetError: The pictures of a record exceed the context, and ``over_budget`` is ``error``.
        FileNotFoundError: A file or the image folder does not exist.
        RecordError: A record or box record is malformed, or a picture has no boxes.
        ValueError: The settings do not fit each other.
    """

    def __init__(
        self,
        data_path: str | Path,
        image_folder: str | Path | None,
        tokenizer: Any,
        template: Template | str | Mapping[str, Any],
        picture_processor: PictureProcessor | dict | None,
        box_path: str | Path | BoxStore | None = None,
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
        context_length: int | None = None,
        over_budget: BadSample = "error",
        data_root: str | Path | None = None,
        name: str | None = None,
        repeat: float = 1.0,
        box_augmentation: BoxAugmentation | dict | None = None,
        token_cache: str | Path | None = None,
        count_boxes: bool = True,
        proposer: Any = None,
        max_pixels: int | None = None,
        feature_cache: str | Path | FeatureCache | None = None,
        missing_features: MissingFeatures = "error",
    ) -> None:
        named = {"data_path": data_path, "image_folder": image_folder, "box_path": box_path}
        paths = resolve_paths({"data_root": data_root, **named})
        self.data_path: str = paths["data_path"]
        self.image_folder: str | None = paths["image_folder"]
        self.name = Path(data_path).stem if name is None else name
        self.tokenizer = build_tokenizer(tokenizer)
        self.template = Template.build(template)
        self.picture_processor: PictureProcessor | None = build_transform(picture_processor)
        self.box_augmentation: BoxAugmentation | None = build_transform(box_augmentation)
        self.max_length = max_length
        self.tokens_per_image = tokens_per_image
        self.budget = TokenBudget(context_length, tokens_per_image, max_length)
        self.long_text_margin = long_text_margin
        self.missing_box = missing_box
        self.max_pixels = max_pixels
        self.count_boxes = count_boxes
        self.shuffle_boxes = shuffle_boxes
        self.seed = seed
        self._catalog = RecordCatalog(self.data_path, max_dataset_length, repeat, seed, token_cache)
        self._skipped = SkippedSamples(
            len(self._catalog.survey.rows),
            {"bad_image": bad_image, "no_label": no_label, "over_budget": over_budget},
            max_bad_samples,
            self.data_path,
        )
        self._check_pictures(over_budget)
        self.token_cache = None if token_cache is None else self._open_token_cache(token_cache)
        self.box_store = open_boxes(paths["box_path"], missing_box, bad_box_record, proposer, self.picture_processor)
        has_boxes = self.box_store is not None
        self._strays = StrayBoxes(self._catalog.positions, str(paths["box_path"])) if has_boxes else None
        keys = self._catalog.survey.box_keys()
        self.missing_boxes = 0 if self.box_store is None else self.box_store.check(keys)
        self.features: FeatureSource | None = None
        if feature_cache is not None and self._catalog.survey.sizes[:, 1].any():
            self.features = FeatureSource(
                feature_cache, missing_features, self._catalog, self.picture_processor, self.box_augmentation
            )
        self._lengths: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._catalog)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Sample ``index``, or the next one that can be used where the policies say so.

        Returns:
            ``id``; ``input_ids`` and ``labels``, lists of ints; ``images``, a list of (3, S, S) uint8 tensors; and
            ``boxes``, as many (n, 4) float32 tensors in canvas pixels. From a feature cache in place of the images:
            ``features``, the arrays of each picture (see ``mg_llava.features``), and ``feature_cache``, its name.

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
                self._skipped.add(int(self._catalog.positions[candidate]), error)
        raise RuntimeError(f"{self.data_path}: none of the {len(self)} samples can be used")

    def load(self, index: int) -> dict[str, Any]:
        """Sample ``index`` itself, whatever the policies say; see ``__getitem__``.

        Raises:
            PictureError: A picture cannot be read.
            NoLabelError: No token carries loss.
            BudgetError: The pictures exceed the context.
        """
        record = self.record(index)
        encoded = self._encode(index, record)
        sample = {"id": record.id, "input_ids": encoded.input_ids, "labels": encoded.labels, "images": [], "boxes": []}
        if record.images:
            sample |= self._load_pictures(record, index, len(encoded.input_ids))
        return sample

    def record(self, index: int) -> LLaVARecord:
        """Record of sample ``index``."""
        return self._catalog.record(index)

    def record_at(self, position: int) -> LLaVARecord:
        """Record ``position`` of those that can be used, however often it comes."""
        return self._catalog.at(position)

    def picture_positions(self) -> list[int]:
        """Positions of the records with pictures that come in an epoch."""
        return self._catalog.picture_positions().tolist()

    def row(self, index: int) -> int:
        """Place in the record file of the record of sample ``index``; the same for each of its repetitions."""
        return self._catalog.row(index)

    def encode(self, index: int) -> EncodedConversation:
        """Text of sample ``index``, cut to its limit.

        Raises:
            NoLabelError: No token carries loss.
            BudgetError: The pictures exceed the context.
        """
        return self._encode(index, self.record(index))

    @property
    def modality_length(self) -> list[int]:
        """Length of each sample, for samplers: positive with pictures, negative without.

        Counted are text, ``tokens_per_image`` for each picture and, with ``count_boxes``, boxes. Texts are exact where
        the token cache was filled, else characters scaled to tokens by a few samples; so are boxes, from the box file
        to what the filter leaves.
        """
        if self._lengths is None:
            self._lengths = self._find_lengths()
        return self._lengths[self._catalog.positions].tolist()

    @property
    def skips_bad_pictures(self) -> bool:
        """Whether pictures that cannot be read are left out."""
        return self._skipped.policies["bad_image"] == "skip"

    @property
    def bad_samples(self) -> int:
        """Number of different records skipped so far, by all workers of this process."""
        return len(self._skipped)

    def report(self) -> dict[str, Any]:
        """What there is, and what all workers of this process skipped so far, with the first few ids of each kind."""
        strays = [] if self._strays is None else self._strays.first(_NAMED)
        return {
            "name": self.name,
            "data_path": self.data_path,
            "records": len(self._catalog.survey.rows),
            "samples": len(self),
            "missing_boxes": self.missing_boxes,
            "encoded_anew": 0 if self.features is None else self.features.encoded_anew,
            "skipped": self._skipped.counts(),
            "skipped_ids": [self._catalog.at(position).id for position in self._skipped.first(_NAMED)],
            "stray_boxes": 0 if self._strays is None else self._strays.boxes,
            "stray_ids": [self._catalog.at(position).id for position in strays],
        }

    def _candidates(self, index: int) -> Iterator[int]:
        """``index`` and its successors, without those known to be bad."""
        for step in range(len(self)):
            candidate = (index + step) % len(self)
            if int(self._catalog.positions[candidate]) not in self._skipped:
                yield candidate

    def picture_loader(self) -> PictureLoader:
        """What loads the pictures of records.

        Raises:
            ValueError: The source is text alone.
        """
        if self.picture_processor is None or self.image_folder is None:
            raise ValueError(f"{self.data_path} is read as text alone; set image_folder and picture_processor")
        return PictureLoader(
            folder=self.image_folder,
            max_pixels=self.max_pixels,
            processor=self.picture_processor,
            store=self.box_store,
            budget=self.budget,
            long_text_margin=self.long_text_margin,
            augmentation=self.box_augmentation,
            shuffle=self.shuffle_boxes,
            seed=self.seed,
            strays=self._strays,
        )

    def _load_pictures(self, record: LLaVARecord, index: int, ids: int) -> dict[str, Any]:
        """Pixels or features, and boxes, of each picture, beside ``ids`` ids of text."""
        loader, owner = self.picture_loader(), self._owner(record)
        if self.features is not None:
            try:
                features, boxes = loader.load_features(record, index, ids, owner, self.features.cache)
                return {"features": features, "feature_cache": self.features.cache.name, "boxes": boxes}
            except NoPictureError:
                pass  # found again below, for ``bad_image``
            except FeatureError as error:
                self.features.miss(owner, error)
        images, boxes = loader.load(record, index, ids, owner)
        return {"images": images, "boxes": boxes}

    def _encode(self, index: int, record: LLaVARecord) -> EncodedConversation:
        row = self.row(index)
        encoded = None if self.token_cache is None else self.token_cache.get(row)
        if encoded is not None:
            return encoded
        try:
            limit = self.budget.text_limit(len(record.images))
            encoded = encode_conversation(record.turns, self.tokenizer, self.template, limit)
        except (NoLabelError, BudgetError) as error:
            raise type(error)(f"{self._owner(record)}: {error}") from error
        if self.token_cache is not None:
            self.token_cache.put(row, encoded)
        return encoded

    def _owner(self, record: LLaVARecord) -> str:
        return f"record {record.id!r} of {self.data_path}"

    def _check_pictures(self, over_budget: BadSample) -> None:
        """Refuse settings that pictures of the records do not fit."""
        pictures = self._catalog.survey.sizes[:, 1]
        if not pictures.any():
            return
        if self.picture_processor is None or self.image_folder is None:
            raise ValueError(f"{self.data_path} has records with pictures; set image_folder and picture_processor")
        if not os.path.isdir(self.image_folder):
            raise FileNotFoundError(f"image_folder {self.image_folder} does not exist; check the path in the config")
        if self.budget.context_length is not None and self.budget.tokens_per_image < 1:
            raise ValueError(f"{self.data_path} has records with pictures; context_length needs tokens_per_image")
        if over_budget == "error":
            worst = int(pictures.argmax())
            try:
                self.budget.text_limit(int(pictures[worst]))
            except BudgetError as error:
                raise BudgetError(f"{self._owner(self._catalog.at(worst))}: {error}") from error

    def _open_token_cache(self, folder: str | Path) -> TokenCache:
        assert self._catalog.fingerprint is not None
        key = cache_key(self.tokenizer, self.template, self.budget, self._catalog.fingerprint)
        return TokenCache(folder, key, self._catalog.file_rows)

    def _find_lengths(self) -> np.ndarray:
        """(N,) int32 signed lengths of the records."""
        survey, few = self._catalog.survey, spread(len(self._catalog.survey.rows))
        records = [self._catalog.at(position) for position in few]
        texts = None if self.token_cache is None else self.token_cache.lengths_of(survey.rows)
        if texts is None:
            texts = estimate_texts(survey.sizes[:, 0], few, records, self.tokenizer, self.template)
        boxes = np.zeros(len(texts), dtype=np.int64)
        if self.count_boxes and self.picture_processor is not None:
            processor, keys = self.picture_processor, survey.box_keys()
            boxes = estimate_boxes(survey.sizes[:, 1], keys, records, self.box_store, processor)
        return signed_lengths(texts, survey.sizes[:, 1], boxes, self.budget)
