"""The pictures of a sample with their boxes, from the files to the model's input, within the token budget.

First pictures and boxes are opened, both in original pixels; then, once the text is known, they are placed on
canvases.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from mg_llava.data.boxes.augment import Augmentation, CropAugmentation
from mg_llava.data.boxes.filter import BoxLimits
from mg_llava.data.boxes.policy import Picture
from mg_llava.data.boxes.store import BoxStore
from mg_llava.data.faults import StrayBoxes
from mg_llava.data.features.cache import CachedPicture, FeatureCache, FeatureError, unique_boxes
from mg_llava.data.pictures.files import exif_orientation, open_picture, picture_path
from mg_llava.data.pictures.frames import Canvas
from mg_llava.data.pictures.processor import BoxFate, PictureProcessor
from mg_llava.data.pictures.video import read_frames
from mg_llava.data.records.regions import Region
from mg_llava.data.records.schema import NO_BOXES, BoxRecord, LLaVARecord
from mg_llava.data.text.budget import TokenBudget, share_room
from mg_llava.data.text.conversation import EncodedConversation
from mg_llava.tokens import OBJECT_TOKEN_INDEX

_CROPS = 1
"""Keeps what is drawn for object images apart from what is drawn for boxes."""
_TURNED = 5
"""Smallest EXIF orientation that swaps width and height."""

_TEXT = 1 << 20
"""In the seeds of texts, in place of the number of a picture."""


@dataclass(frozen=True)
class OpenedPicture:
    """A picture before it is placed.

    ``frame`` is its width and height, in the frame of its ``boxes`` in original pixels (None where there is no box
    file); ``source`` the picture, or its entry in a feature cache; ``is_frame`` whether it is a frame of a video;
    ``picture`` the picture, or what opens it; ``annotated`` its annotated objects, None where nobody annotated them.
    """

    frame: tuple[int, int]
    boxes: BoxRecord | None
    source: Image.Image | CachedPicture
    is_frame: bool = False
    picture: Picture | None = None
    annotated: BoxRecord | None = None

    @property
    def record(self) -> BoxRecord:
        """Its boxes, none where there is no box file."""
        return NO_BOXES if self.boxes is None else self.boxes


@dataclass(frozen=True)
class LoadedPicture:
    """A picture as the model gets it, with what it was made of.

    Attributes:
        boxes: (n, 4) float32 canvas pixels, in the order of their tokens.
        canvas: Where the picture lies.
        pixels: (3, S, S) uint8; None from a feature cache.
        features: Its arrays from a feature cache (see ``mg_llava.features``); None with pixels.
        is_empty: Whether ``boxes`` only stands for "no box".
        opened: The picture before.
        limits: What the text left for its boxes.
        order: (n,) int64: which of the boxes, by score, each token is.
        numbers: (n,) int64: which of the boxes of ``opened`` each token is; empty where one stands for "no box".
        region: Of an object image; None for a picture.
    """

    boxes: torch.Tensor
    canvas: Canvas
    pixels: torch.Tensor | None
    features: dict[str, torch.Tensor] | None
    is_empty: bool
    opened: OpenedPicture
    limits: BoxLimits
    order: np.ndarray
    numbers: np.ndarray
    region: Region | None = None

    @property
    def box_numbers(self) -> list[int | None]:
        """For each token the number of its box among those of ``opened``; None for what stands for "no box"."""
        return self.numbers.tolist() if len(self.numbers) else [None] * len(self.boxes)

    @property
    def objects(self) -> dict[str, Any] | None:
        """Annotated objects: ``boxes``, (n, 4) float32 canvas pixels, and ``labels``; None where there are none."""
        if self.opened.annotated is None or self.region is not None:
            return None
        boxes = self.canvas.to_canvas(self.opened.annotated.boxes).astype(np.float32)
        return {"boxes": torch.from_numpy(boxes), "labels": list(self.opened.annotated.labels)}

    def fates(self, processor: PictureProcessor) -> list[BoxFate]:
        """Fate of each box of the box file, in its order."""
        processor = processor.of_frames if self.opened.is_frame else processor
        tokens = {box: token for token, box in enumerate(self.order.tolist())}
        fates = processor.explain(self.opened.frame, self.opened.record, self.limits)
        return [fate if fate.token is None else replace(fate, token=tokens[fate.token]) for fate in fates]


def _shared_number() -> torch.Tensor:
    return torch.zeros((), dtype=torch.int64).share_memory_()


@dataclass(frozen=True)
class PictureLoader:
    """Loads the pictures of records, with their boxes as training sees them.

    Attributes:
        folder: What the paths of pictures are relative to.
        processor: Makes canvases of them.
        budget: What text, pictures and boxes have room in.
        store: Their boxes; None for no boxes.
        augmentation: Changes the boxes of each picture; None leaves them alone.
        crop_augmentation: Changes object images; None leaves them alone.
        shuffle: Draw the order of boxes; else the best come first.
        seed: With the epoch and the index of the sample, for both.
        strays: Counts boxes that lie outside of their pictures; None where there are no boxes.
        max_pixels: Largest number of pixels of a picture; see ``files.open_picture``.
        allow_outside: Whether pictures may lie outside of the folder.
        targets: Annotated objects of the pictures, all of each that it has; None where nothing reads them.
        epoch: () int64, in memory that processes share.
    """

    folder: str
    processor: PictureProcessor
    budget: TokenBudget
    store: BoxStore | None = None
    augmentation: Augmentation | None = None
    crop_augmentation: CropAugmentation | None = None
    shuffle: bool = False
    seed: int = 0
    strays: StrayBoxes | None = None
    max_pixels: int | None = None
    allow_outside: bool = False
    targets: BoxStore | None = None
    epoch: torch.Tensor = field(default_factory=_shared_number, compare=False)

    def open(
        self, record: LLaVARecord, index: int, owner: str, cache: FeatureCache | None = None
    ) -> list[OpenedPicture]:
        """Open the pictures of sample ``index`` and read their boxes; with ``cache``, look them up there instead.

        Raises:
            PictureError: A picture cannot be read.
            FeatureError: Features are absent or stale.
        """
        if record.video is not None:
            return self._open_video(record, index, owner, cache)
        paths = [picture_path(self.folder, name, owner, self.allow_outside) for name in record.images]
        sources: list[Image.Image | CachedPicture]
        pictures: list[Picture]
        if cache is None:
            images = [open_picture(path, owner, self.max_pixels) for path in paths]
            sources, pictures, frames = [*images], [*images], [self.frame_of(image) for image in images]
        else:
            known = [cache.find(name, path) for name, path in zip(record.images, paths, strict=True)]
            sources, frames = [*known], [picture.frame for picture in known]
            pictures = [partial(open_picture, path, owner, self.max_pixels) for path in paths]
        boxes = self._read_boxes(record, frames, pictures, index)
        annotated = [None if self.targets is None else self.targets.find(key) for key in record.box_keys]
        parts = zip(frames, boxes, sources, pictures, annotated, strict=True)
        return [
            OpenedPicture(frame, own, source, picture=picture, annotated=objects)
            for frame, own, source, picture, objects in parts
        ]

    def _open_video(
        self, record: LLaVARecord, index: int, owner: str, cache: FeatureCache | None
    ) -> list[OpenedPicture]:
        assert record.video is not None
        if cache is not None:
            raise FeatureError("a feature cache holds no videos; set missing_features='picture'")
        path = picture_path(self.folder, record.video, owner, self.allow_outside)
        images = read_frames(path, len(record.images), owner)
        sizes = [image.size for image in images]
        boxes = self._read_boxes(record, sizes, images, index)
        return [OpenedPicture(*parts, is_frame=True) for parts in zip(sizes, boxes, images, strict=True)]

    def finish(
        self,
        opened: Sequence[OpenedPicture],
        index: int,
        encoded: EncodedConversation,
        cache: FeatureCache | None = None,
    ) -> tuple[LoadedPicture, ...]:
        """Place the pictures of sample ``index`` with as many boxes as its text leaves room for, and object images.

        Returns:
            Pictures and object images in the order of their placeholders.

        Raises:
            FeatureError: Features are absent or stale.
            PictureError: A picture cannot be read, for its object images.
        """
        limits = self._limits(opened, len(encoded.input_ids), len(encoded.regions))
        pictures = [
            self._finish(picture, own, [index, number], cache)
            for number, (picture, own) in enumerate(zip(opened, limits, strict=True))
        ]
        if not encoded.regions:
            return tuple(pictures)
        whole = iter(pictures)
        crops = iter([self._crop(opened, region, [index, number]) for number, region in enumerate(encoded.regions)])
        places = [token for token in encoded.input_ids if token < 0]
        return tuple(next(crops) if token == OBJECT_TOKEN_INDEX else next(whole) for token in places)

    def _crop(self, opened: Sequence[OpenedPicture], region: Region, seed: Sequence[int]) -> LoadedPicture:
        parent = opened[region.picture]
        image = parent.picture() if callable(parent.picture) else parent.picture
        assert image is not None  # frames of videos have no regions
        box, change = region.box, self.crop_augmentation
        draw = np.random.default_rng([self.seed, *seed, 1 + int(self.epoch), _CROPS])
        if change is not None:
            box = change.move(box, draw)
        pixels, canvas = self.processor.crop(image, box)
        if change is not None:
            pixels = change.brighten(pixels, draw)
        none = np.zeros(0, dtype=np.int64)
        return LoadedPicture(torch.zeros(0, 4), canvas, pixels, None, True, parent, BoxLimits(), none, none, region)

    def _finish(
        self, opened: OpenedPicture, limits: BoxLimits, seed: Sequence[int], cache: FeatureCache | None
    ) -> LoadedPicture:
        processor = self.processor_of(opened)
        canvas = processor.canvas_of(opened.frame)
        boxes, index = processor.token_boxes(opened.record, canvas, limits)
        order = np.arange(len(boxes))
        if self.shuffle:
            epoch = int(self.epoch)
            draw = np.random.default_rng([self.seed, *seed, *([0, epoch] if epoch else [])])
            order = draw.permutation(len(boxes))
            boxes = boxes[torch.from_numpy(order)]
        pixels, features = None, None
        if isinstance(opened.source, Image.Image):
            pixels = processor.draw(opened.source, canvas)
        else:
            assert cache is not None
            features = cache.read(opened.source, boxes)
        numbers = index[order] if len(index) else index
        return LoadedPicture(boxes, canvas, pixels, features, not len(index), opened, limits, order, numbers)

    def possible_boxes(self, key: str, frame: tuple[int, int], opener: Callable[[], Image.Image]) -> torch.Tensor:
        """All boxes of a picture that may become tokens, whatever the text beside it and the augmentation leave.

        (n, 4) float32 canvas pixels; ``frame`` is the width and height of the picture, in the frame of its boxes.
        """
        record = NO_BOXES if self.store is None else self.store.get(key, picture=opener)
        canvas = self.processor.canvas_of(frame)
        placed, _ = self.processor.token_boxes(record, canvas)
        blank = [
            torch.from_numpy(self.processor.stand_in(canvas, item).astype(np.float32)) for item in (record, NO_BOXES)
        ]
        return unique_boxes(torch.cat([placed, *blank]))

    def draw_text(self, index: int) -> np.random.Generator:
        """Random numbers of the text of sample ``index``, drawn anew in each epoch."""
        return np.random.default_rng([self.seed, index, _TEXT, 1 + int(self.epoch)])

    def processor_of(self, opened: OpenedPicture) -> PictureProcessor:
        """Of pictures, or of the frames of videos."""
        return self.processor.of_frames if opened.is_frame else self.processor

    def frame_of(self, image: Image.Image) -> tuple[int, int]:
        """Width and height of an opened picture, in the frame that its boxes are in."""
        is_turned = self.processor.apply_exif and exif_orientation(image) >= _TURNED
        return (image.height, image.width) if is_turned else image.size

    def _read_boxes(
        self, record: LLaVARecord, frames: Sequence[tuple[int, int]], pictures: Sequence[Picture], index: int
    ) -> list[BoxRecord | None]:
        """Boxes of the pictures of sample ``index``, in original pixels; pictures, or functions that open them."""
        if self.store is None:
            return [None] * len(frames)
        keys = record.box_keys
        found = [self.store.get(key, picture=picture) for key, picture in zip(keys, pictures, strict=True)]
        if self.strays is not None:
            self.strays.note(index, keys, found, frames)
        if self.augmentation is None:
            return list(found)
        draws = [np.random.default_rng([self.seed, index, n, 1 + int(self.epoch)]) for n in range(len(found))]
        return [
            self.augmentation(boxes, frame, draw) if boxes else boxes
            for boxes, frame, draw in zip(found, frames, draws, strict=True)
        ]

    def _limits(self, opened: Sequence[OpenedPicture], ids: int, crops: int) -> list[BoxLimits]:
        """What a text of ``ids`` ids and object images leave for the boxes of each picture."""
        budget = self.budget.of_frames if opened and opened[0].is_frame else self.budget
        is_long, room = budget.is_long(ids, len(opened), crops), budget.box_room(ids, len(opened), crops)
        records = [picture.record for picture in opened]
        # Before the filter; a picture without boxes may get a stand-in.
        if room is None or sum(max(1, len(record)) for record in records) <= room:
            return [BoxLimits(is_long)] * len(opened)
        if len(opened) == 1:
            return [BoxLimits(is_long, room)]
        counts = []
        for picture, record in zip(opened, records, strict=True):
            processor = self.processor_of(picture)
            placed, _ = processor.place(record, processor.canvas_of(picture.frame), BoxLimits(is_long))
            counts.append(len(placed) or processor.stand_in_tokens(record))
        return [BoxLimits(is_long, share) for share in share_room(counts, room)]
