"""Requests to a predictor and its answers."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from mg_llava.data.inputs import BoxesLike, PictureLike
from mg_llava.data.pictures.frames import Canvas
from mg_llava.data.records.regions import Region

PictureOpener: TypeAlias = Callable[[], Image.Image | Sequence[Image.Image]]
"""Opens a picture, or several, when they are due."""


BoxFinder: TypeAlias = Callable[[Sequence[Image.Image]], Sequence[BoxesLike]]
"""Gives the boxes of each of a request's opened pictures; called by threads."""


@dataclass(frozen=True)
class Request:
    """One question.

    Attributes:
        question: The question, or the turns of a conversation that ends with one; ``<image>`` in it places a picture.
            Without any, the pictures come first. With ``<video>`` in it the pictures are the frames of a video.
            Answers are as in records; those that a model gave (``data.inputs.said_turns``) are words alone.
        picture: No, one or several pictures, a video file, of whose frames as many are taken as in training, or a
            function that opens pictures when they are due.
        boxes: Boxes of the picture in original pixels; of several pictures a sequence as long as theirs; or a function
            that gives them for the opened pictures. None where the predictor's proposer, if it has one, shall find
            them; ``[]`` for no boxes.
        id: Name of the request in messages.
        key: The same for requests about the same pictures, which are then opened and encoded once. None for as many
            keys as there are different paths and objects.
        pictures: How many pictures a function ``picture`` opens.
        system: System text before the first question; None for the predictor's.
        objects: What ``<box:i>`` and ``<object:i>`` in the question stand for: boxes xyxy in original pixels, or
            ``{"box", "label", "picture"}``. Without any, the boxes of the pictures.
    """

    question: str | Sequence[Any]
    picture: PictureLike | Sequence[PictureLike] | PictureOpener | None = None
    boxes: BoxesLike | BoxFinder = None
    id: str = ""
    key: Hashable = None
    pictures: int = 1
    system: str | None = None
    objects: Sequence[Any] = ()


@dataclass(frozen=True)
class SeenPicture:
    """How the model saw a picture.

    Attributes:
        canvas: The picture's place on the canvas.
        boxes: (n, 4) float64 xyxy, original pixels: those that became box tokens, in the order of the tokens. Empty
            where only a stand-in for "no box" did.
        labels: n labels.
        scores: n scores.
    """

    canvas: Canvas
    boxes: np.ndarray
    labels: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()


@dataclass(frozen=True)
class Answer:
    """An answer.

    Attributes:
        text: The answer without end tokens and stop words, stripped.
        token_ids: The ids it was decoded from.
        pictures: How the model saw each picture of the request.
        truncated: Whether the limit of new tokens ended it.
        prompt_tokens: Length of what the LLM read before it, with template, visual and box tokens.
        id: Name of the request.
        objects: The regions whose object images the model saw, in their order.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    pictures: tuple[SeenPicture, ...] = field(default=(), repr=False)
    truncated: bool = False
    id: str = ""
    prompt_tokens: int = 0
    objects: tuple[Region, ...] = ()

    @property
    def boxes(self) -> np.ndarray:
        """(n, 4) boxes of all pictures, one after the other, original pixels."""
        return np.concatenate([np.zeros((0, 4)), *(picture.boxes for picture in self.pictures)])

    def to_dict(self) -> dict[str, Any]:
        """The answer as plain values for JSON."""
        pictures = [
            {
                "width": seen.canvas.width,
                "height": seen.canvas.height,
                "boxes": seen.boxes.round(2).tolist(),
                "labels": list(seen.labels),
                "scores": [round(score, 4) for score in seen.scores],
            }
            for seen in self.pictures
        ]
        plain = {"id": self.id, "text": self.text, "truncated": self.truncated, "pictures": pictures}
        return {**plain, "objects": [asdict(region) for region in self.objects]} if self.objects else plain
