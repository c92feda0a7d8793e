"""The pictures of a sample with their boxes, from the files to the model's input, within the token budget."""

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from .box_store import BoxStore, picture_keys
from .budget import TokenBudget, share_room
from .pictures import exif_orientation, open_picture
from .processor import PictureProcessor, ProcessedPicture
from .schema import NO_BOXES, BoxRecord, LLaVARecord

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
        keys = picture_keys(record.id, len(images))
        boxes = [self._boxes(key, images[k], index, k) for k, key in enumerate(keys)]
        pictures = self._process(images, boxes, ids)
        return (
            [picture.pixels for picture in pictures],
            [self._ordered(picture.boxes, index, number) for number, picture in enumerate(pictures)],
        )

    def _boxes(self, key: str, image: Image.Image, index: int, number: int) -> BoxRecord | None:
        """Boxes of a picture in original pixels."""
        if self.store is None:
            return None
        boxes = self.store.get(key, picture=image)
        if self.augmentation is None or not len(boxes):
            return boxes
        return self.augmentation(boxes, self._size(image), np.random.default_rng([self.seed, index, number, 1]))

    def _size(self, image: Image.Image) -> tuple[int, int]:
        """Width and height of the frame that boxes are in."""
        is_turned = self.processor.apply_exif and exif_orientation(image) >= _TURNED
        return (image.height, image.width) if is_turned else image.size

    def _process(self, images: list[Image.Image], boxes: list[BoxRecord | None], ids: int) -> list[ProcessedPicture]:
        """Canvases with the boxes that fit beside ``ids`` ids of text."""
        is_long = self._is_long(ids, len(images))
        rooms = self._rooms(images, boxes, is_long, self.budget.box_room(ids, len(images)))
        return [
            self.processor(image, found, is_long, room=room)
            for image, found, room in zip(images, boxes, rooms, strict=True)
        ]

    def _is_long(self, ids: int, pictures: int) -> bool:
        """Whether the text nearly fills its part of the context."""
        limit = self.budget.text_limit(pictures)
        return limit is not None and self.long_text_margin is not None and ids >= limit - self.long_text_margin

    def _rooms(
        self, images: list[Image.Image], boxes: list[BoxRecord | None], is_long: bool, room: int | None
    ) -> list[int | None]:
        """Number of box tokens that each picture has room for."""
        records = [NO_BOXES if found is None else found for found in boxes]
        # Before the filter; a picture without boxes may get a stand-in.
        if room is None or sum(max(1, len(record)) for record in records) <= room:
            return [None] * len(images)
        if len(images) == 1:
            return [room]
        counts = []
        for image, record in zip(images, records, strict=True):
            placed, _ = self.processor.place(record, self.processor.canvas_of(self._size(image)), is_long)
            counts.append(len(placed) or self.processor.stand_in_tokens(record))
        return list(share_room(counts, room))

    def _ordered(self, boxes: torch.Tensor, index: int, number: int) -> torch.Tensor:
        if not self.shuffle:
            return boxes
        order = np.random.default_rng([self.seed, index, number]).permutation(len(boxes))
        return boxes[torch.from_numpy(order)]
