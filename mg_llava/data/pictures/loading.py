"""The pictures of a sample with their boxes, from the files to the model's input, within the token budget."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image

from mg_llava.data.boxes.filter import Limits
from mg_llava.data.boxes.policy import Picture
from mg_llava.data.boxes.store import BoxStore, picture_keys
from mg_llava.data.faults import StrayBoxes
from mg_llava.data.features.cache import FeatureCache, unique_boxes
from mg_llava.data.pictures.files import exif_orientation, open_picture
from mg_llava.data.pictures.processor import PictureProcessor
from mg_llava.data.records.schema import NO_BOXES, BoxRecord, LLaVARecord
from mg_llava.data.text.budget import TokenBudget, share_room

BoxAugmentation = Callable[[BoxRecord, tuple[int, int], np.random.Generator], BoxRecord]
"""Changes boxes in original pixels of a picture of a width and height; random numbers come from the generator."""

_TURNED = 5
"""Smallest EXIF orientation that swaps width and height."""


@dataclass(frozen=True)
class PictureLoader:
    """Loads the pictures of records.

    Attributes:
        folder: What the paths of pictures are relative to.
        max_pixels: Largest number of pixels of a picture; see ``pictures.open_picture``.
        processor: Makes canvases of them.
        store: Their boxes; None for no boxes.
        budget: What text, pictures and boxes have room in.
        long_text_margin: Texts within this many ids of their limit get fewer boxes; None for no such rule.
        augmentation: Changes the boxes of each picture; None leaves them alone.
        shuffle: Shuffle the boxes of each picture.
        seed: With the index of the sample, for the last two.
        strays: Counts boxes that lie outside of their pictures; None where there are no boxes.
    """

    folder: str
    max_pixels: int | None
    processor: PictureProcessor
    store: BoxStore | None
    budget: TokenBudget
    long_text_margin: int | None
    augmentation: BoxAugmentation | None
    shuffle: bool
    seed: int
    strays: StrayBoxes | None = None

    def load(
        self, record: LLaVARecord, index: int, ids: int, owner: str
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Load the pictures of sample ``index``.

        Args:
            record: Names them.
            index: Of the sample, for what is random.
            ids: Number of ids of its text.
            owner: Whose they are, for messages.

        Returns:
            For each picture pixels (3, S, S) uint8, and boxes (n, 4) float32 in canvas pixels.

        Raises:
            PictureError: A picture cannot be read.
        """
        images = [open_picture(os.path.join(self.folder, name), owner, self.max_pixels) for name in record.images]
        frames = [self.frame_of(image) for image in images]
        boxes = self._boxes(record, frames, images, index)
        limits = self._limits(frames, boxes, ids)
        pictures = [self.processor(*picture) for picture in zip(images, boxes, limits, strict=True)]
        return (
            [picture.pixels for picture in pictures],
            [self._ordered(picture.boxes, index, number) for number, picture in enumerate(pictures)],
        )

    def load_features(
        self, record: LLaVARecord, index: int, ids: int, owner: str, cache: FeatureCache
    ) -> tuple[list[dict[str, torch.Tensor]], list[torch.Tensor]]:
        """Load what the encoders gave for the pictures of sample ``index``; arguments as for ``load``.

        Returns:
            For each picture its arrays (see ``mg_llava.features``), and boxes as from ``load``.

        Raises:
            FeatureError: Features are absent or stale.
        """
        paths = [os.path.join(self.folder, name) for name in record.images]
        known = [cache.find(name, path) for name, path in zip(record.images, paths, strict=True)]
        frames = [picture.frame for picture in known]
        openers = [partial(open_picture, path, owner, self.max_pixels) for path in paths]
        found = self._boxes(record, frames, openers, index)
        limits = self._limits(frames, found, ids)
        features, boxes = [], []
        for number, (picture, frame, boxes_of, limit) in enumerate(zip(known, frames, found, limits, strict=True)):
            canvas = self.processor.canvas_of(frame)
            placed, _ = self.processor.token_boxes(NO_BOXES if boxes_of is None else boxes_of, canvas, limit)
            boxes.append(self._ordered(placed, index, number))
            features.append(cache.read(picture, boxes[-1]))
        return features, boxes

    def possible_boxes(self, key: str, frame: tuple[int, int], opener: Callable[[], Image.Image]) -> torch.Tensor:
        """All boxes of a picture that may become tokens, whatever the text beside it and the augmentation leave.

        Args:
            key: Of the picture, from ``picture_keys``.
            frame: Width and height of the picture, in the frame of its boxes.
            opener: Opens the picture.

        Returns:
            (n, 4) float32 canvas pixels.
        """
        record = NO_BOXES if self.store is None else self.store.get(key, picture=opener)
        canvas = self.processor.canvas_of(frame)
        placed, _ = self.processor.token_boxes(record, canvas)
        blank = [
            torch.from_numpy(self.processor.stand_in(canvas, item).astype(np.float32)) for item in (record, NO_BOXES)
        ]
        return unique_boxes(torch.cat([placed, *blank]))

    def frame_of(self, image: Image.Image) -> tuple[int, int]:
        """Width and height of an opened picture, in the frame that its boxes are in."""
        is_turned = self.processor.apply_exif and exif_orientation(image) >= _TURNED
        return (image.height, image.width) if is_turned else image.size

    def _boxes(
        self, record: LLaVARecord, frames: Sequence[tuple[int, int]], pictures: Sequence[Picture], index: int
    ) -> list[BoxRecord | None]:
        """Boxes of the pictures in original pixels; pictures are opened, or functions that open them."""
        if self.store is None:
            return [None] * len(frames)
        keys = picture_keys(record.id, len(frames))
        found = [self.store.get(key, picture=picture) for key, picture in zip(keys, pictures, strict=True)]
        if self.strays is not None:
            self.strays.note(index, keys, found, frames)
        if self.augmentation is None:
            return list(found)
        return [
            self.augmentation(boxes, frame, np.random.default_rng([self.seed, index, number, 1])) if boxes else boxes
            for number, (boxes, frame) in enumerate(zip(found, frames, strict=True))
        ]

    def _limits(self, frames: Sequence[tuple[int, int]], boxes: Sequence[BoxRecord | None], ids: int) -> list[Limits]:
        """What a text of ``ids`` ids leaves for the boxes of each picture."""
        limit = self.budget.text_limit(len(frames))
        is_long = limit is not None and self.long_text_margin is not None and ids >= limit - self.long_text_margin
        rooms = self._rooms(frames, boxes, is_long, self.budget.box_room(ids, len(frames)))
        return [Limits(is_long, room) for room in rooms]

    def _rooms(
        self, frames: Sequence[tuple[int, int]], boxes: Sequence[BoxRecord | None], is_long: bool, room: int | None
    ) -> list[int | None]:
        """Number of box tokens that each picture has room for."""
        records = [NO_BOXES if found is None else found for found in boxes]
        # Before the filter; a picture without boxes may get a stand-in.
        if room is None or sum(max(1, len(record)) for record in records) <= room:
            return [None] * len(frames)
        if len(frames) == 1:
            return [room]
        counts = []
        for frame, record in zip(frames, records, strict=True):
            placed, _ = self.processor.place(record, self.processor.canvas_of(frame), Limits(is_long))
            counts.append(len(placed) or self.processor.stand_in_tokens(record))
        return list(share_room(counts, room))

    def _ordered(self, boxes: torch.Tensor, index: int, number: int) -> torch.Tensor:
        if not self.shuffle:
            return boxes
        order = np.random.default_rng([self.seed, index, number]).permutation(len(boxes))
        return boxes[torch.from_numpy(order)]
