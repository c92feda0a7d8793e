"""Regions in a conversation: their coordinates as text, and where their object images stand.

Coordinates as in ``coordinates``; boxes of regions are xyxy in original pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from mg_llava.batch import TokenCount
from mg_llava.data.choices import wrong_choices
from mg_llava.data.pictures.frames import from_shares
from mg_llava.data.records.regions import Region, count_named, names_regions, region_problem
from mg_llava.data.records.schema import BoxRecord, LLaVARecord, RecordError
from mg_llava.data.records.turns import Turn, answered_turns
from mg_llava.data.text.conversation import EncodedConversation
from mg_llava.data.text.coordinates import BoxText
from mg_llava.tokens import (
    BOX_PLACEHOLDER,
    BOX_TOKEN_INDEX,
    IGNORE_INDEX,
    IMAGE_PLACEHOLDER,
    IMAGE_TOKEN_INDEX,
    OBJECT_PLACEHOLDER,
)

_NUMBERS = 999
"""Boxes whose names are measured."""


@dataclass(frozen=True)
class RegionUse:
    """How regions of pictures enter a conversation.

    Args:
        text: How coordinates are written, or a dict of the settings of ``BoxText``.
        attach: ``placeholders``: object images stand where a text has ``<object:i>``; ``coordinates``: also after each
            box in a question, whether ``<box:i>`` or typed.
        context: Share of its width and height by which the crop of a region is wider on each side.
        names: Name that stands before each box token, with the number of the box, from 1 on, for ``{}``; empty for no
            names. Numbers are of the boxes as they were given, whatever becomes of the others.

    Raises:
        ValueError: A setting is unknown or out of its range.
    """

    text: BoxText | Mapping[str, Any] = field(default_factory=BoxText)
    attach: Literal["placeholders", "coordinates"] = "placeholders"
    context: float = 0.0
    names: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", BoxText.build(self.text))
        wrong = wrong_choices(self)
        if not 0 <= self.context <= 10:
            wrong.append(f"context is {self.context!r}, must be a share of the region's sides, from 0 to 10")
        if self.names and self.names.count("{}") != 1:
            wrong.append(f"names is {self.names!r}; it has one {{}} for the number of a box, such as 'obj{{}}'")
        if wrong:
            raise ValueError(f"regions: {'; '.join(wrong)}")

    @property
    def box_text(self) -> BoxText:
        """How coordinates are written."""
        assert isinstance(self.text, BoxText)
        return self.text

    def name(self, tokenizer: Any, number: int) -> list[int]:
        """Ids of the name of a box, by its number from 0 on."""
        return list(tokenizer.encode(self.names.format(number + 1), add_special_tokens=False))

    def name_length(self, tokenizer: Any) -> int:
        """Number of ids of the longest name; 0 without names."""
        return max(len(self.name(tokenizer, number)) for number in range(_NUMBERS)) if self.names else 0

    def name_boxes(
        self, encoded: EncodedConversation, numbers: Sequence[Sequence[int | None]], tokenizer: Any
    ) -> EncodedConversation:
        """Ids in which each box token has a placeholder of its own, with its name before it, after its picture's.

        Args:
            encoded: A conversation.
            numbers: Of each picture the numbers of the boxes, in the order of their tokens; None for no name.
            tokenizer: Makes ids of names.
        """
        ids, labels, waiting = [], [], iter(numbers)
        for token, label in zip(encoded.input_ids, encoded.labels or encoded.input_ids, strict=True):
            added = [token]
            if token == IMAGE_TOKEN_INDEX:
                for number in next(waiting):
                    added += [*([] if number is None else self.name(tokenizer, number)), BOX_TOKEN_INDEX]
            ids += added
            labels += [label, *[IGNORE_INDEX] * (len(added) - 1)]
        return replace(encoded, input_ids=ids, labels=labels if encoded.labels else [])

    def concerns(self, turns: Sequence[Turn]) -> bool:
        """Whether the text of a conversation depends on its pictures' regions or sizes."""
        return self.attach == "coordinates" or names_regions(turns)

    def resolve_record(
        self, record: LLaVARecord, boxes: Sequence[BoxRecord], sizes: Sequence[tuple[int, int]]
    ) -> tuple[tuple[Turn, ...], tuple[Region, ...]]:
        """As :meth:`resolve` for the turns of a record that are encoded; without regions of its own the boxes count.

        Raises:
            RecordError: As of :meth:`resolve`, or regions of a video are named.
        """
        if record.video is not None and (problem := no_regions_of_video(record.turns)):
            raise RecordError(problem)
        if record.video is not None or not self.concerns(record.turns):
            return record.turns, ()
        return self.resolve(answered_turns(record.turns), record.regions or regions_of_boxes(boxes), sizes)

    def measure(self, record: LLaVARecord) -> tuple[tuple[Turn, ...], int]:
        """Turns as long as those of a record with its coordinates, and their object images; without its pictures.

        Raises:
            RecordError: As of :meth:`resolve_record`.
        """
        regions = record.regions or (Region((0, 0, 1, 1)),) * count_named(record.turns)
        turns, shown = self.resolve_record(replace(record, regions=regions), (), [(1, 1)] * len(record.images))
        return turns, len(shown)

    def resolve(
        self, turns: Sequence[Turn], regions: Sequence[Region], sizes: Sequence[tuple[int, int]]
    ) -> tuple[tuple[Turn, ...], tuple[Region, ...]]:
        """Turns with coordinates for ``<box:i>`` and object images numbered as they stand, and these images' regions.

        Args:
            turns: The conversation.
            regions: What its placeholders stand for.
            sizes: Of each picture its width and height.

        Raises:
            RecordError: A placeholder stands for no region, or in an answer for an object image.
        """
        if problem := region_problem(turns, len(regions)):
            raise RecordError(problem)
        regions = [region.in_pixels(sizes[region.picture]) if region.of else region for region in regions]
        known, shown, before = list(regions), list[Region](), 0
        resolved = []
        for turn in turns:
            if turn.is_said:
                resolved.append(turn)
                continue
            text, pictures = _write_boxes(turn.text, regions, sizes, self.box_text)
            if turn.role == "human":
                count = text.count(IMAGE_PLACEHOLDER)
                if self.attach == "coordinates" and sizes:
                    text = self._attach(text, pictures, before, sizes, known)
                before += count
                text = OBJECT_PLACEHOLDER.sub(lambda mark: _take(known[int(mark[1])], shown), text)
            resolved.append(replace(turn, text=text))
        return tuple(resolved), tuple(shown)

    def _attach(
        self,
        text: str,
        pictures: Mapping[int, int],
        before: int,
        sizes: Sequence[tuple[int, int]],
        known: list[Region],
    ) -> str:
        """A question with an object image after each box that has none; their regions are added to ``known``.

        ``pictures`` says where boxes were written and in which picture; those typed are in the one shown last.
        """
        found = self.box_text.find(text)
        pieces, end = [], 0
        is_moved = text.count(IMAGE_PLACEHOLDER) == 1  # a single picture goes before the text
        for (start, stop), shares in zip(found.spans, found.boxes, strict=True):
            pieces.append(text[end:stop])
            end = stop
            if OBJECT_PLACEHOLDER.match(text[stop:].lstrip()):
                continue
            place = before + (1 if is_moved else text.count(IMAGE_PLACEHOLDER, 0, start))
            picture = pictures.get(start, min(max(0, place - 1), len(sizes) - 1))
            x1, y1, x2, y2 = from_shares(shares[None], sizes[picture], self.box_text.frame)[0].tolist()
            pieces.append(f" <object:{len(known)}>")
            known.append(Region((x1, y1, x2, y2), picture=picture))
        return "".join([*pieces, text[end:]])


def no_regions_of_video(turns: Sequence[Turn]) -> str | None:
    """Why a conversation about a video cannot be asked; None where it can."""
    return "the text names regions of a video; regions are of pictures alone" if names_regions(turns) else None


def with_names(tokens: TokenCount, use: RegionUse, tokenizer: Any) -> TokenCount:
    """The count in which each box takes its longest name as well.

    Raises:
        ValueError: There are names, but no box tokens.
    """
    if not use.names:
        return tokens
    if not tokens.per_box:
        raise ValueError("regions have names, but the model no box tokens; set names='' or give it a box_projector")
    return replace(tokens, per_box=tokens.per_box + use.name_length(tokenizer))


def in_pixels(record: LLaVARecord, sizes: Sequence[tuple[int, int]]) -> LLaVARecord:
    """As :func:`regions_in_pixels` for a record."""
    return replace(record, regions=regions_in_pixels(record.regions, sizes)) if record.regions else record


def regions_in_pixels(regions: Sequence[Region], sizes: Sequence[tuple[int, int]]) -> tuple[Region, ...]:
    """Regions in pixels of their pictures, of which width and height are given; or none are.

    Raises:
        RecordError: A region is of another convention than it is said to be, or of another picture.
    """
    try:
        return tuple(region.in_pixels(sizes[region.picture]) if sizes else region for region in regions)
    except ValueError as error:
        raise RecordError(str(error)) from error


def regions_of_boxes(records: Sequence[BoxRecord]) -> list[Region]:
    """The boxes of pictures as regions, one picture after the other."""
    return [
        Region(tuple(box), label, picture)
        for picture, record in enumerate(records)
        for box, label in zip(record.boxes.tolist(), record.labels, strict=True)
    ]


def _write_boxes(
    text: str, regions: Sequence[Region], sizes: Sequence[tuple[int, int]], box_text: BoxText
) -> tuple[str, dict[int, int]]:
    """Text with coordinates, and the picture of each box by the place where it begins."""
    written, pictures, end, length = [], dict[int, int](), 0, 0
    for mark in BOX_PLACEHOLDER.finditer(text):
        region = regions[int(mark[1])]
        before, box = text[end : mark.start()], box_text.write(np.array([region.box]), sizes[region.picture])
        pictures[length + len(before)] = region.picture
        written += [before, box]
        length, end = length + len(before) + len(box), mark.end()
    return "".join([*written, text[end:]]), pictures


def _take(region: Region, shown: list[Region]) -> str:
    """The next placeholder of an object image, for a region that is added to ``shown``."""
    shown.append(region)
    return f"<object:{len(shown) - 1}>"
