"""Requests to batches: what shares a picture is brought together, pictures are decoded by threads while the LLM works.

A window is as many requests as are looked at together: their pictures are encoded first, then they are sorted by
length and answered in batches. It bounds what is held in memory, whatever the number of requests.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from PIL import Image

from mg_llava.data.inputs import BoxesLike, list_boxes, list_pictures, load_picture, make_boxes, make_turns
from mg_llava.data.pictures.files import PictureError, to_rgb
from mg_llava.data.pictures.processor import ProcessedPicture
from mg_llava.data.records.schema import BoxRecord
from mg_llava.data.text.conversation import encode_prompt
from mg_llava.inference.requests import Request

if TYPE_CHECKING:
    from mg_llava.inference.predictor import Predictor


class Item:
    """A request that was checked and tokenized; its pictures are opened when they are due.

    Raises:
        TypeError: The picture is no picture.
        ValueError: The question is empty, or boxes or placeholders do not fit.
    """

    def __init__(self, predictor: Predictor, number: int, request: Request) -> None:
        self.predictor = predictor
        self.number = number
        self.request = request
        self.owner = f"request {request.id or number!r}"
        picture, self.boxes = request.picture, request.boxes
        self.listed = [] if callable(picture) else list_pictures(picture, self.owner)
        self.count = request.pictures if callable(picture) else len(self.listed)
        if not callable(self.boxes):
            self.boxes = list_boxes(self.boxes, self.count, self.owner)
        turns = make_turns(request.question, self.count, self.owner)
        self.ids = encode_prompt(turns, predictor.tokenizer, predictor.template, predictor.system)

    @property
    def key(self) -> Hashable:
        """The same for items of one window that show the same pictures."""
        if self.request.key is not None or not self.listed:
            return ("key", self.request.key if self.request.key is not None else self.number)
        return tuple(id(item) if isinstance(item, Image.Image) else str(item) for item in self.listed)

    def open(self) -> list[Image.Image]:
        """The decoded pictures.

        Raises:
            PictureError: One cannot be read, or there are more or fewer than were promised.
        """
        picture = self.request.picture
        if not callable(picture):
            return [load_picture(item, self.owner) for item in self.listed]
        opened = picture()
        images = [opened] if isinstance(opened, Image.Image) else list(opened)
        if len(images) != self.count:
            raise PictureError(f"{self.owner}: {len(images)} pictures or frames were opened, not {self.count}")
        return images

    def boxes_in(self, images: Sequence[Image.Image]) -> list[BoxRecord]:
        """The boxes of each opened picture: given, found, or none."""
        found = list_boxes_of(self.boxes(images), len(images), self.owner) if callable(self.boxes) else self.boxes
        return [self._propose(image) if boxes is None else boxes for image, boxes in zip(images, found, strict=True)]

    def _propose(self, image: Image.Image) -> BoxRecord:
        processor, propose = self.predictor.picture_processor, self.predictor.proposer
        if propose is None:
            return make_boxes([], self.owner)
        found = propose(to_rgb(image, processor.mode, processor.apply_exif))
        return make_boxes(found, f"{self.owner}, proposals")


def list_boxes_of(found: Sequence[BoxesLike], pictures: int, owner: str) -> list[BoxRecord | None]:
    """What a function of boxes gave for each picture, checked."""
    if len(found) != pictures:
        raise ValueError(f"{owner}: boxes for {len(found)} pictures were given, there are {pictures}")
    return [None if boxes is None else make_boxes(boxes, owner) for boxes in found]


@dataclass
class Loaded:
    """The pictures that some items share, processed.

    Attributes:
        variants: For each picture the different ways in which the items see it: with these boxes or with others.
        chosen: For each item's number the variant of each picture.
    """

    variants: list[list[ProcessedPicture]]
    chosen: dict[int, list[int]] = field(default_factory=dict)


class Shared:
    """Items of a window that show the same pictures."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = list(items)

    @property
    def pictures(self) -> int:
        """Number of pictures."""
        return self.items[0].count

    def load(self) -> Loaded:
        """Open the pictures once and process them with the boxes of each item.

        Raises:
            PictureError: A picture cannot be read.
        """
        images = self.items[0].open()
        processor = self.items[0].predictor.picture_processor
        loaded = Loaded([[] for _ in images])
        known: list[dict[Hashable, int]] = [{} for _ in images]
        for item in self.items:
            chosen = []
            for image, record, variants, seen in zip(
                images, item.boxes_in(images), loaded.variants, known, strict=True
            ):
                content = _content(record)
                if content not in seen:
                    seen[content] = len(variants)
                    variants.append(processor(image, record))
                chosen.append(seen[content])
            loaded.chosen[item.number] = chosen
        return loaded


def windows(items: Iterable[Item], questions: int, pictures: int) -> Iterator[list[Shared]]:
    """Cut a stream of items into windows, and group each of them by picture.

    Args:
        items: The items; those that share pictures are best neighbors.
        questions: Most items of a window.
        pictures: Most pictures of a window, but one item's at least.
    """
    window: dict[Hashable, list[Item]] = {}
    asked = shown = 0
    for item in items:
        new = 0 if item.key in window else item.count
        if window and (asked >= questions or shown + new > pictures):
            yield [Shared(group) for group in window.values()]
            window, asked, shown, new = {}, 0, 0, item.count
        window.setdefault(item.key, []).append(item)
        asked, shown = asked + 1, shown + new
    if window:
        yield [Shared(group) for group in window.values()]


def loaded_windows(
    stream: Iterable[list[Shared]], workers: int, ahead: int
) -> Iterator[Iterator[tuple[Shared, Loaded | PictureError]]]:
    """Load the pictures of windows; threads are ahead of what is asked for.

    Args:
        stream: Windows.
        workers: Threads.
        ahead: Groups that are loaded before they are asked for, at most.

    Yields:
        An iterator over the groups of a window with their pictures, or why they cannot be read.
    """
    first, second = itertools.tee(stream)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        try:
            groups = _ahead(pool, itertools.chain.from_iterable(first), max(1, ahead))
            for window in second:
                yield itertools.islice(groups, len(window))
        finally:
            pool.shutdown(cancel_futures=True)


def _ahead(
    pool: ThreadPoolExecutor, groups: Iterator[Shared], ahead: int
) -> Iterator[tuple[Shared, Loaded | PictureError]]:
    waiting: deque[tuple[Shared, Future[Loaded]]] = deque()
    while True:
        for group in itertools.islice(groups, ahead - len(waiting)):
            waiting.append((group, pool.submit(group.load)))
        if not waiting:
            return
        group, future = waiting.popleft()
        try:
            result: Loaded | PictureError = future.result()
        except PictureError as error:
            result = error
        yield group, result


def _content(record: BoxRecord) -> Hashable:
    """Equal for records that the picture processor treats alike."""
    stand_in: Any = getattr(record, "empty_box", None)
    return record.boxes.tobytes(), record.scores.tobytes(), record.labels, stand_in
