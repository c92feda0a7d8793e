"""Rows of a processor's call to ids, labels and pictures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from mg_llava.data.inputs import (
    PictureLike,
    asks_about_video,
    list_video,
    load_picture,
    make_boxes,
    make_turns,
    no_video,
)
from mg_llava.data.pictures.processor import ProcessedPicture
from mg_llava.data.pictures.video import read_frames
from mg_llava.data.records.regions import Region, parse_regions
from mg_llava.data.records.schema import NO_BOXES, Turn
from mg_llava.data.text.conversation import EncodedConversation, encode_conversation, encode_prompt
from mg_llava.data.text.prompt import build_parts
from mg_llava.data.text.regions import no_regions_of_video, regions_in_pixels, regions_of_boxes
from mg_llava.hf.prompts import change_turns, encode_written_prompt, template_of, to_turns, written_turns
from mg_llava.hf.rows import share_boxes, share_objects, share_pictures
from mg_llava.tokens import IMAGE_PLACEHOLDER, IMAGE_TOKEN_INDEX, OBJECT_TOKEN_INDEX, VIDEO_PLACEHOLDER


class EncodedRow(NamedTuple):
    """One row of a batch.

    Attributes:
        ids: Token ids, with a negative one for each picture, object image and named box.
        labels: Ids that count for the loss; none for a prompt.
        shown: Pictures and object images in the order of their placeholders.
        is_video: Whether they are frames of a video.
    """

    ids: list[int]
    labels: list[int]
    shown: list[ProcessedPicture]
    is_video: bool


@dataclass(frozen=True)
class RowEncoder:
    """Encodes the rows of one call.

    Attributes:
        processor: A ``MGLLaVAProcessor``.
        with_labels: Whether the conversations end with an answer and have labels.
        max_length: Conversations with labels are shortened to it.
        settings: Settings of the image processor that differ for this call.
    """

    processor: Any
    with_labels: bool
    max_length: int | None
    settings: Mapping[str, Any]

    def encode(self, rows: Sequence[Any], is_batch: bool, images: Any, boxes: Any, objects: Any) -> list[EncodedRow]:
        """Give each row its share of pictures, boxes and objects, and encode it.

        Args:
            rows: Texts or conversations.
            is_batch: Whether they were given as a batch; then the others are, too.
            images: As the processor takes them, likewise the others.
            boxes: xyxy in original pixels.
            objects: Boxes xyxy in original pixels, or regions.

        Raises:
            PictureError: A picture cannot be read.
            ValueError: Pictures, placeholders and boxes do not match, or a row is malformed; the message names it.
        """
        shared = share_pictures(images, rows, is_batch)
        pictures = [self._frames(own, f"row {number}") for number, own in enumerate(shared)]
        videos = [
            bool(own) and (own is not before or asks_about_video(self._turns(row)))
            for row, own, before in zip(rows, pictures, shared, strict=True)
        ]
        found = share_boxes(boxes, pictures, is_batch)
        named = share_objects(objects, len(rows), is_batch)
        return [
            self._encode_row(*row, f"row {number}")
            for number, row in enumerate(zip(rows, pictures, found, named, videos, strict=True))
        ]

    def _turns(self, row: Any) -> list[Turn]:
        """The turns of a row, whether they are written out or not."""
        if not isinstance(row, str):
            return to_turns(row)[0]
        return written_turns(row, self.processor.tokenizer, template_of(self.processor.template))

    def _frames(self, pictures: list[PictureLike], owner: str) -> list[PictureLike]:
        """The frames of a video where its path is given; pictures as they are."""
        path = list_video(pictures)
        if path is None:
            return pictures
        return [*read_frames(path, self.processor.image_processor.picture_processor.video.frames, owner)]

    def _encode_row(
        self,
        row: Any,
        pictures: Sequence[PictureLike],
        boxes: Sequence[Any],
        objects: Any,
        video: bool,
        owner: str,
    ) -> EncodedRow:
        """Encode one row; ``owner`` names it in messages."""
        images = [load_picture(picture, f"{owner}, picture {number}") for number, picture in enumerate(pictures)]
        seen = self.processor.image_processor.see(images, boxes, f"{owner}, picture {{}}", video, **self.settings)
        process = self.processor.image_processor.settings(**self.settings)
        sizes, use = [(one.canvas.width, one.canvas.height) for one in seen], process.regions
        parts = build_parts(self.processor.parts) if images else ()
        regions: tuple[Region, ...] = ()

        def resolve(turns: Sequence[Turn], is_written: bool = False) -> Sequence[Turn]:
            nonlocal regions
            try:
                records = [NO_BOXES if own is None else make_boxes(own, owner) for own in boxes]
                if problem := no_regions_of_video(turns) if video else None:
                    raise ValueError(problem)
                if not video and use.concerns(turns):
                    known = regions_in_pixels(parse_regions(objects, len(images)), sizes) or regions_of_boxes(records)
                    turns, regions = use.resolve(turns, known, sizes)
            except ValueError as error:
                raise ValueError(f"{owner}: {error}") from error
            return change_turns(parts, turns, records, sizes, is_written)

        encoded = self._encode_text(row, len(images), owner, video, resolve)
        if use.names:
            encoded = use.name_boxes(encoded, [one.numbers for one in seen], self.processor.tokenizer)
        whole, crops = iter(seen), iter(regions)
        shown = [
            process.object_image(images[region.picture], region)
            if token == OBJECT_TOKEN_INDEX and (region := next(crops))
            else next(whole)
            for token in encoded.input_ids
            if token in (IMAGE_TOKEN_INDEX, OBJECT_TOKEN_INDEX)
        ]
        return EncodedRow(encoded.input_ids, encoded.labels, shown, video)

    def _encode_text(
        self,
        row: Any,
        pictures: int,
        owner: str,
        video: bool,
        resolve: Callable[..., Sequence[Turn]],
    ) -> EncodedConversation:
        """Ids and labels of one row; no labels for a prompt."""
        tokenizer, template = self.processor.tokenizer, template_of(self.processor.template)
        if isinstance(row, str):
            frames, turns = IMAGE_PLACEHOLDER * pictures if video else VIDEO_PLACEHOLDER, self._turns(row)
            if problem := None if pictures else no_video(turns):
                raise ValueError(f"{owner}: {problem}")
            written = [
                turn if turn.is_said else replace(turn, text=turn.text.replace(VIDEO_PLACEHOLDER, frames))
                for turn in turns
            ]
            placeholders = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in written if not turn.is_said)
            if placeholders != pictures:
                raise ValueError(
                    f"{owner}: {placeholders} {IMAGE_PLACEHOLDER} in the text, {pictures} pictures; one each"
                )
            text = "".join(turn.text for turn in resolve(written, is_written=True))
            return EncodedConversation(encode_written_prompt(text, tokenizer, template), [])
        turns, system = to_turns(row, owner)
        if not self.with_labels:
            asked = resolve(make_turns(turns, pictures, owner, video))
            return EncodedConversation(encode_prompt(asked, tokenizer, template, system), [])
        if not turns or turns[-1].role != "gpt":
            raise ValueError(f"{owner}: labels are made of answers; the last message has to be the assistant's")
        turns = [replace(turn, is_said=False) for turn in turns]  # as in records
        asked = resolve([*make_turns(turns[:-1], pictures, owner, video), turns[-1]])
        return encode_conversation(asked, tokenizer, template, self.max_length, system)
