"""Requests to batches: what shares a picture is brought together, pictures are decoded by threads while the LLM works.

A window is as many requests as are looked at together: their pictures are encoded first, then they are sorted by
length and answered in batches. It bounds what is held in memory, whatever the number of requests.
"""

import hashlib
import itertools
import os
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from PIL import Image

from mg_llava.data.inputs import (
    BoxesLike,
    asks_about_video,
    list_boxes,
    list_pictures,
    list_video,
    make_boxes,
    make_turns,
    open_shown,
)
from mg_llava.data.pictures.files import PictureError
from mg_llava.data.pictures.processor import ProcessedPicture
from mg_llava.data.records.regions import Region, parse_regions, region_problem
from mg_llava.data.records.schema import BoxRecord, RecordError
from mg_llava.data.text.conversation import EncodedConversation
from mg_llava.data.text.regions import no_regions_of_video, regions_in_pixels, regions_of_boxes
from mg_llava.inference.frontend import FrontEnd
from mg_llava.inference.requests import Request
from mg_llava.tokens import BOX_TOKEN_INDEX, IMAGE_TOKEN_INDEX, OBJECT_TOKEN_INDEX
from mg_llava.work.prefetch import prefetched

MOST_OBJECTS = 64
"""Object images of one request."""


class PreparedRequest:
    """A request that was checked and tokenized; its pictures are opened when they are due.

    Raises:
        TypeError: The picture is no picture.
        ValueError: The question is empty, or boxes or placeholders do not fit.
    """

    def __init__(self, front_end: FrontEnd, number: int, request: Request) -> None:
        self.front_end = front_end
        self.number = number
        self.request = request
        self.owner = f"request {request.id or number!r}"
        picture, self.boxes = request.picture, request.boxes
        self.listed = [] if callable(picture) else list_pictures(picture, self.owner)
        self.count = request.pictures if callable(picture) else len(self.listed)
        self.video = list_video(self.listed)
        if self.video is not None:
            self.count = front_end.picture_processor.video.frames
        self.is_video = self.video is not None or (self.count > 0 and asks_about_video(request.question, self.owner))
        if not callable(self.boxes):
            self.boxes = list_boxes(self.boxes, self.count, self.owner)
        self.turns = make_turns(request.question, self.count, self.owner, self.is_video)
        try:
            self.objects = parse_regions(request.objects, self.count)
            problem = region_problem(self.turns, len(self.objects)) if self._is_known else None
            problem = no_regions_of_video(self.turns) if self.is_video and not problem else problem
        except ValueError as error:
            problem = str(error)
        if problem:
            raise ValueError(f"{self.owner}: {problem}")
        self.regions: tuple[Region, ...] = ()
        self.ids = front_end.encode(self.turns, request.system)

    @property
    def _is_known(self) -> bool:
        """Whether it is known, before pictures are opened, which regions the question may name."""
        return bool(self.objects) or not self.count or self.is_video

    @property
    def is_named(self) -> bool:
        """Whether boxes have placeholders of their own, with names before them."""
        return BOX_TOKEN_INDEX in self.ids

    @property
    def key(self) -> Hashable:
        """The same for requests of one window that show the same pictures."""
        if self.request.key is not None or not self.listed:
            return ("key", self.request.key if self.request.key is not None else self.number)
        return tuple(str(item) if isinstance(item, str | os.PathLike) else id(item) for item in self.listed)

    def open(self) -> list[Image.Image]:
        """The decoded pictures.

        Raises:
            PictureError: One cannot be read, or there are more or fewer than were promised.
        """
        picture = self.request.picture
        if not callable(picture):
            return open_shown(self.listed, self.count, self.owner)
        opened = picture()
        images = [opened] if isinstance(opened, Image.Image) else list(opened)
        if len(images) != self.count:
            raise PictureError(f"{self.owner}: {len(images)} pictures or frames were opened, not {self.count}")
        return images

    def encode_again(self, boxes: Sequence[BoxRecord], seen: Sequence[ProcessedPicture]) -> None:
        """Make the text anew where it depends on the pictures, their boxes and the regions of a question.

        Raises:
            PictureError: A placeholder stands for no region, or there are too many object images.
        """
        if not seen:
            return
        use, turns = self.front_end.picture_processor.regions, tuple(self.turns)
        sizes = [(picture.canvas.width, picture.canvas.height) for picture in seen]
        concerned = use.concerns(turns) and not self.is_video
        if concerned:
            try:
                turns, self.regions = use.resolve(
                    turns, regions_in_pixels(self.objects, sizes) or regions_of_boxes(boxes), sizes
                )
            except RecordError as error:
                raise PictureError(f"{self.owner}: {error}") from error
            if len(self.regions) > MOST_OBJECTS:
                raise PictureError(f"{self.owner}: {len(self.regions)} object images; at most {MOST_OBJECTS} are seen")
        if self.front_end.parts or concerned:
            self.ids = self.front_end.encode(turns, self.request.system, boxes, sizes)
        if use.names:
            encoded = EncodedConversation(self.ids, [])
            self.ids = use.name_boxes(encoded, [one.numbers for one in seen], self.front_end.tokenizer).input_ids

    def boxes_in(self, images: Sequence[Image.Image]) -> list[BoxRecord]:
        """The boxes of each opened picture: given, found, or none."""
        found = list_boxes_of(self.boxes(images), len(images), self.owner) if callable(self.boxes) else self.boxes
        return [
            self.front_end.propose(image, self.owner) if boxes is None else boxes
            for image, boxes in zip(images, found, strict=True)
        ]


def list_boxes_of(found: Sequence[BoxesLike], pictures: int, owner: str) -> list[BoxRecord | None]:
    """What a function of boxes gave for each picture, checked."""
    if len(found) != pictures:
        raise ValueError(f"{owner}: boxes for {len(found)} pictures were given, there are {pictures}")
    return [None if boxes is None else make_boxes(boxes, owner) for boxes in found]


@dataclass
class DecodedPictures:
    """The pictures of some requests, processed.

    Attributes:
        pictures: Each with the boxes that a request sees it with; once for all that see the same.
        chosen: For each request's number its pictures.
    """

    pictures: list[ProcessedPicture] = field(default_factory=list)
    chosen: dict[int, list[int]] = field(default_factory=dict)

    @cached_property
    def content(self) -> Hashable:
        """Equal where pictures and boxes are."""
        return tuple(
            (
                hashlib.sha256(picture.pixels.numpy().tobytes()).digest(),
                picture.boxes.numpy().tobytes(),
                (*picture.labels, *picture.scores, *picture.numbers),
                (picture.canvas, picture.is_empty, picture.region),
            )
            for picture in self.pictures
        )


class PictureGroup:
    """Requests of a window that show the same pictures."""

    def __init__(self, requests: Sequence[PreparedRequest]) -> None:
        self.requests = list(requests)

    def load(self) -> DecodedPictures | PictureError:
        """Open the pictures once and process them with the boxes of each request; an error where one is unreadable."""
        try:
            return self._load()
        except PictureError as error:
            return error

    def _load(self) -> DecodedPictures:
        images = self.requests[0].open()
        decoded = DecodedPictures()
        known: dict[Hashable, int] = {}
        for request in self.requests:
            chosen = decoded.chosen[request.number] = []
            records = request.boxes_in(images)
            for place, (image, record) in enumerate(zip(images, records, strict=True)):
                content = (request.is_video, place, *_content(record))
                if content not in known:
                    known[content] = len(decoded.pictures)
                    processor = request.front_end.picture_processor
                    processor = processor.of_frames if request.is_video else processor
                    decoded.pictures.append(processor(image, record))
                chosen.append(known[content])
            request.encode_again(records, [decoded.pictures[number] for number in chosen])
            if request.regions:
                decoded.chosen[request.number] = _with_crops(request, images, chosen, decoded.pictures)
        return decoded


def _with_crops(
    request: PreparedRequest, images: Sequence[Image.Image], whole: Sequence[int], pictures: list[ProcessedPicture]
) -> list[int]:
    """The pictures and object images of a request in the order of their placeholders; the latter are added."""
    processor, waiting = request.front_end.picture_processor, iter(whole)
    crops = iter(request.regions)
    chosen = []
    for token in request.ids:
        if token == IMAGE_TOKEN_INDEX:
            chosen.append(next(waiting))
        elif token == OBJECT_TOKEN_INDEX:
            region = next(crops)
            chosen.append(len(pictures))
            pictures.append(processor.object_image(images[region.picture], region))
    return chosen


Loaded = tuple[PictureGroup, DecodedPictures | PictureError]
"""A group with its pictures, or why they cannot be read."""


def joined(loaded: Iterable[Loaded]) -> list[Loaded]:
    """Groups of one request each; those that show equal pictures with equal boxes as one."""
    groups: dict[Hashable, list[tuple[PictureGroup, DecodedPictures]]] = {}
    for number, (group, decoded) in enumerate(loaded):
        assert isinstance(decoded, DecodedPictures)
        chosen = tuple(decoded.chosen[group.requests[0].number])
        groups.setdefault((decoded.content, chosen) if chosen else number, []).append((group, decoded))
    return [
        (
            PictureGroup([group.requests[0] for group, _ in same]),
            DecodedPictures(same[0][1].pictures, {n: own for _, one in same for n, own in one.chosen.items()}),
        )
        for same in groups.values()
    ]


def windows(requests: Iterable[PreparedRequest], questions: int, pictures: int) -> Iterator[list[PictureGroup]]:
    """Cut a stream of requests into windows, and group each of them by picture.

    Args:
        requests: The requests; those that share pictures are best neighbors.
        questions: Most requests of a window.
        pictures: Most pictures of a window, but one request's at least.
    """
    window: dict[Hashable, list[PreparedRequest]] = {}
    asked = shown = 0
    for request in requests:
        new = 0 if request.key in window else request.count
        if window and (asked >= questions or shown + new > pictures):
            yield [PictureGroup(group) for group in window.values()]
            window, asked, shown, new = {}, 0, 0, request.count
        window.setdefault(request.key, []).append(request)
        asked, shown = asked + 1, shown + new
    if window:
        yield [PictureGroup(group) for group in window.values()]


def loaded_windows(stream: Iterable[list[PictureGroup]], workers: int, ahead: int) -> Iterator[Iterator[Loaded]]:
    """Load the pictures of windows, each of which is an iterator over its groups; threads are ahead of it.

    Args:
        stream: Windows.
        workers: Threads.
        ahead: Groups that are loaded before they are asked for, at most.
    """
    groups = ((number, group) for number, window in enumerate(stream) for group in window)
    with closing(prefetched(groups, lambda one: [one[1]], PictureGroup.load, workers, ahead)) as loaded:
        for _, window in itertools.groupby(loaded, key=lambda pair: pair[0][0]):
            yield ((group, decoded) for (_, group), (decoded,) in window)


def _content(record: BoxRecord) -> tuple[Hashable, ...]:
    """Equal for records that the picture processor treats alike."""
    stand_in: Any = getattr(record, "empty_box", None)
    return record.boxes.tobytes(), record.scores.tobytes(), record.labels, stand_in
