"""Requests with their pictures as tokens: the encoders see a picture once, whatever the number of its questions."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from mg_llava.data.pictures.processor import ProcessedPicture
from mg_llava.data.text.pieces import question_of
from mg_llava.inference.batching import DecodedPictures, PictureGroup, PreparedRequest
from mg_llava.models.interfaces import Seeing

_NO_PIXELS = torch.empty(0, dtype=torch.uint8)


@dataclass
class Statistics:
    """Counts of a predictor's work.

    Attributes:
        pictures: Pictures that were encoded.
        encodings: Passes of the encoders.
        prefixes: Beginnings of prompts that the LLM read once for several questions.
        rows: Rows that were generated.
        alone: Those among them that were generated again, alone, because rounding could have decided them.
        steps: Passes of the LLM that gave an id to each row of a batch.
    """

    pictures: int = 0
    encodings: int = 0
    prefixes: int = 0
    rows: int = 0
    alone: int = 0
    steps: int = 0


@dataclass
class EncodedRequest:
    """A request with its encoded pictures.

    Attributes:
        seeing: For each placeholder its segments.
        pictures: The pictures and object images as they were processed, with pixels where they may be encoded again.
        alone: Whether the pictures were encoded as for this request alone.
        prefix: The same for rows of the window that are equal up to their last picture; None without pictures.
    """

    prepared: PreparedRequest
    seeing: Seeing
    pictures: list[ProcessedPicture]
    alone: bool
    prefix: Hashable = None

    @property
    def cut(self) -> int:
        """Number of ids up to and with the last placeholder."""
        return max(place for place, token in enumerate(self.prepared.ids) if token < 0) + 1

    @property
    def rest(self) -> int:
        """Number of ids after the last placeholder."""
        return len(self.prepared.ids) - self.cut

    @property
    def length(self) -> int:
        """Length of the row with visual and box tokens in it."""
        tokens = sum(segment.length for segments in self.seeing for segment in segments)
        return len(self.prepared.ids) - len(self.seeing) + tokens


class RequestEncoder:
    """Encodes the pictures of requests.

    Args:
        model: The system.
        statistics: Counted here.
        keeps_pixels: Whether pictures may be encoded again, by :meth:`alone`.
    """

    def __init__(self, model: Any, statistics: Statistics, keeps_pixels: bool) -> None:
        self.model = model
        self.statistics = statistics
        self.keeps_pixels = keeps_pixels

    def encode(self, groups: Sequence[tuple[PictureGroup, DecodedPictures]]) -> list[EncodedRequest]:
        """Encode the pictures of some groups in one batch; anew for each request where the model reads questions."""
        if self.model.reads_question:
            return self._encode_asked(groups)
        seeing = self._run([picture for _, decoded in groups for picture in decoded.pictures])
        ready, first = [], 0
        for group, decoded in groups:
            for request in group.requests:
                chosen = decoded.chosen[request.number]
                places = [first + place for place in chosen]
                seen = [decoded.pictures[place] for place in chosen]
                if not self.keeps_pixels:
                    seen = [replace(picture, pixels=_NO_PIXELS) for picture in seen]
                alone = not chosen or (len(groups) == 1 and len(decoded.pictures) == len(chosen))
                one = EncodedRequest(request, self._of(request, [seeing[place] for place in places]), seen, alone)
                if chosen and one.rest:
                    one.prefix = (id(group), request.is_video, tuple(chosen), tuple(request.ids[: one.cut]))
                ready.append(one)
            first += len(decoded.pictures)
        return ready

    def _encode_asked(self, groups: Sequence[tuple[PictureGroup, DecodedPictures]]) -> list[EncodedRequest]:
        """Encode the pictures of each request with its question."""
        asked = [
            (request, [decoded.pictures[place] for place in decoded.chosen[request.number]])
            for group, decoded in groups
            for request in group.requests
        ]
        questions = [question_of(request.turns) for request, seen in asked for _ in seen]
        rest = iter(self._run([picture for _, seen in asked for picture in seen], questions))
        return [
            EncodedRequest(
                request,
                self._of(request, [next(rest) for _ in seen]),
                seen if self.keeps_pixels else [replace(picture, pixels=_NO_PIXELS) for picture in seen],
                alone=len(asked) == 1,
            )
            for request, seen in asked
        ]

    def alone(self, one: EncodedRequest) -> EncodedRequest:
        """A request with its pictures encoded as for it alone, which rounds differently."""
        if one.alone:
            return one
        questions = [question_of(one.prepared.turns)] * len(one.pictures) if self.model.reads_question else None
        return replace(one, seeing=self._of(one.prepared, self._run(one.pictures, questions)), alone=True)

    def _of(self, request: PreparedRequest, seeing: Seeing) -> Seeing:
        """The segments of a request's placeholders; its pictures may be frames of a video, or have named boxes."""
        seeing = [self.model.as_frame(own) for own in seeing] if request.is_video else seeing
        return [own for one in seeing for own in self.model.apart(one)] if request.is_named else seeing

    @torch.no_grad()
    def _run(self, pictures: Sequence[ProcessedPicture], questions: Sequence[str] | None = None) -> Seeing:
        if not pictures:
            return []
        self.statistics.pictures += len(pictures)
        self.statistics.encodings += 1
        canvas, boxes = torch.stack([one.pixels for one in pictures]), [one.boxes for one in pictures]
        pieces = None if questions is None else self.model.word_pieces(questions)
        crops = [one.region is not None for one in pictures]
        data = self.model.data_preprocessor({"canvas": canvas, "boxes": boxes, "pieces": pieces}, False)
        return self.model.encode(data["canvas"], data["boxes"], crops, data["pieces"])
