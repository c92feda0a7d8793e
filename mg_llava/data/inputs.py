"""From loose inputs (paths, lists, arrays) to typed pictures, boxes and turns."""

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeAlias

import numpy as np
from PIL import Image

from mg_llava.data.pictures.files import PictureError, open_picture
from mg_llava.data.pictures.video import is_video, read_frames
from mg_llava.data.records.schema import BoxRecord, RecordError, Turn, make_box_record
from mg_llava.data.records.turns import expand_video
from mg_llava.tokens import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER

PictureLike: TypeAlias = str | os.PathLike | bytes | Image.Image | np.ndarray
"""A picture, the path or the bytes of a file, or ``(H, W, 3)`` or ``(H, W)`` uint8 values."""

BoxesLike: TypeAlias = Any
"""Boxes xyxy in original pixels: (n, 4) numbers, a ``BoxRecord``, or anything with ``boxes`` and, optionally,
``scores`` and ``labels`` as keys or attributes."""


class Proposer(Protocol):
    """Finds boxes in a picture, as ``mg_llava.detection.ConnectedComponentProposals`` does."""

    def __call__(self, image: Image.Image) -> BoxesLike:
        """Boxes in pixels of ``image``, best first."""


def is_nothing(given: Any) -> bool:
    """Whether pictures, boxes or regions were left out or are none; arrays and tensors have no truth value."""
    return given is None or (hasattr(given, "__len__") and len(given) == 0)


def list_pictures(picture: Any, owner: str) -> list[PictureLike]:
    """The pictures of a request.

    Raises:
        TypeError: Something is neither a picture nor a path.
    """
    if picture is None:
        return []
    pictures = [picture] if isinstance(picture, PictureLike) else picture
    if not isinstance(pictures, Sequence) or not all(isinstance(item, PictureLike) for item in pictures):
        raise TypeError(
            f"{owner}: picture is a {type(picture).__name__}; allowed: a path, bytes of a file, a PIL picture, "
            "an array, a list of them"
        )
    return list(pictures)


def load_picture(picture: PictureLike, owner: str) -> Image.Image:
    """A decoded picture.

    Raises:
        PictureError: The file is missing or cannot be read, or the array is none of a picture.
    """
    if isinstance(picture, Image.Image):
        return picture
    if isinstance(picture, bytes):
        return open_picture(io.BytesIO(picture), owner)
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or picture.shape[2:] not in ((), (3,)):
            found = f"{picture.dtype} of shape {picture.shape}"
            raise PictureError(f"{owner}: found an array {found}; a picture is uint8 of shape (H, W, 3) or (H, W)")
        return Image.fromarray(picture)
    return open_picture(os.fspath(picture), owner)


def list_boxes(boxes: BoxesLike, pictures: int, owner: str) -> list[BoxRecord | None]:
    """The boxes of each of ``pictures`` pictures; None where a proposer is to find them.

    Of one picture, or frame, they may be given themselves, or in a list as of several.

    Raises:
        ValueError: Boxes without a picture, or other than one set of boxes for each of several pictures.
        RecordError: As of ``make_boxes``.
    """
    if boxes is None:
        return [None] * pictures
    if pictures == 0:
        raise ValueError(f"{owner}: boxes were given, but no picture")
    if pictures == 1 and not (isinstance(boxes, Sequence) and boxes and all(map(_is_set, boxes))):
        return [make_boxes(boxes, owner)]
    if not isinstance(boxes, Sequence) or len(boxes) != pictures:
        found = f"found {len(boxes)}" if isinstance(boxes, Sequence) else f"found {type(boxes).__name__}"
        raise ValueError(
            f"{owner}: {pictures} pictures or frames need a list of {pictures} sets of boxes (None, or (n, 4) each), "
            f"{found}"
        )
    return [None if part is None else make_boxes(part, f"{owner}, picture {i}") for i, part in enumerate(boxes)]


def _is_set(item: Any) -> bool:
    """Whether this is what one picture has, and not one box."""
    if item is None or isinstance(item, BoxRecord | Mapping) or hasattr(item, "boxes"):
        return True
    if hasattr(item, "ndim"):
        return item.ndim > 1
    first = item[0] if isinstance(item, list | tuple) and item else None
    return isinstance(first, list | tuple) or getattr(first, "ndim", 0) > 0


def make_boxes(boxes: BoxesLike, owner: str = "boxes") -> BoxRecord:
    """Check the boxes of one picture.

    Raises:
        RecordError: They are not (n, 4) finite numbers with x1 <= x2 and y1 <= y2, or scores or labels do not match.
    """
    if isinstance(boxes, BoxRecord):
        return boxes
    scores, labels = None, None
    if isinstance(boxes, Mapping):
        if "boxes" not in boxes:
            raise RecordError(f"{owner}: found the keys {sorted(map(str, boxes))}; 'boxes' is needed")
        boxes, scores, labels = boxes["boxes"], boxes.get("scores"), boxes.get("labels")
    elif hasattr(boxes, "boxes"):
        boxes, scores, labels = boxes.boxes, getattr(boxes, "scores", None), getattr(boxes, "labels", None)
    if hasattr(boxes, "detach"):
        boxes = boxes.detach().cpu().float().numpy()
    try:
        array = np.asarray(boxes, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise RecordError(f"{owner}: boxes are not n lists of four numbers ({error})") from error
    if array.size and (array.ndim != 2 or array.shape[1] != 4):
        raise RecordError(
            f"{owner}: boxes have shape {array.shape}; give (n, 4): [x1, y1, x2, y2] in pixels of the picture, each"
        )
    return make_box_record(array.reshape(-1, 4), scores, labels, owner)


def list_video(pictures: Sequence[PictureLike]) -> str | None:
    """The path of the video where that is all that was given."""
    only = pictures[0] if len(pictures) == 1 else None
    return os.fspath(only) if isinstance(only, str | os.PathLike) and is_video(only) else None


def open_shown(pictures: Sequence[PictureLike], frames: int, owner: str) -> list[Image.Image]:
    """Decoded pictures, or so many frames of a video.

    Raises:
        PictureError: As of ``load_picture`` and ``read_frames``.
    """
    video = list_video(pictures)
    if video is not None:
        return read_frames(video, frames, owner)
    return [load_picture(picture, owner) for picture in pictures]


def asks_about_video(question: str | Sequence[Any], owner: str = "question") -> bool:
    """Whether ``<video>`` stands in a question, for pictures that are its frames."""
    turns = [turn.text for turn in _list_turns(question, owner) if turn.role == "human"]
    return any(VIDEO_PLACEHOLDER in text for text in turns) and not any(IMAGE_PLACEHOLDER in text for text in turns)


def no_video(turns: Sequence[Turn]) -> str | None:
    """Why turns without any picture cannot be asked: ``<video>`` stands in a question; None where it does not."""
    videos = sum(turn.text.count(VIDEO_PLACEHOLDER) for turn in turns if turn.role == "human")
    return f"{videos} {VIDEO_PLACEHOLDER} in the questions, 0 videos; give one, or its frames" if videos else None


def make_turns(question: str | Sequence[Any], pictures: int, owner: str, is_video: bool = False) -> list[Turn]:
    """The turns of a request, with one placeholder per picture; ``<video>`` in a question stands for all of them.

    Args:
        question: The question, or the turns.
        pictures: Number of pictures.
        owner: Whose they are, for messages.
        is_video: Whether pictures without a placeholder are the frames of one video.

    Raises:
        ValueError: The question is empty, a turn is malformed, the last one is not a question, or the placeholders
            do not match the pictures.
    """
    turns = _list_turns(question, owner)
    if problem := None if pictures else no_video(turns):
        raise ValueError(f"{owner}: {problem}")
    asked = "".join(turn.text for turn in turns if turn.role == "human")
    images, videos = asked.count(IMAGE_PLACEHOLDER), asked.count(VIDEO_PLACEHOLDER)
    if pictures and videos > 1 and not images:
        raise ValueError(f"{owner}: {videos} {VIDEO_PLACEHOLDER} in the questions; one stands for all frames")
    if is_video and not (images or videos):
        first = next((place for place, turn in enumerate(turns) if turn.role == "human"), None)
        if first is not None and turns[first].text.strip():
            turns[first] = Turn("human", f"{VIDEO_PLACEHOLDER}\n{turns[first].text}")
    if pictures and not any(IMAGE_PLACEHOLDER in turn.text for turn in turns if turn.role == "human"):
        turns = expand_video(turns, pictures)
    if not turns or turns[-1].role != "human" or not turns[-1].text.replace(IMAGE_PLACEHOLDER, "").strip():
        raise ValueError(f"{owner}: the question is empty; the last turn is a human one with text")
    found = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in turns if turn.role == "human")
    if found == 0 and pictures:
        first = next(i for i, turn in enumerate(turns) if turn.role == "human")
        turns[first] = Turn("human", f"{IMAGE_PLACEHOLDER}\n" * pictures + turns[first].text)
    elif found != pictures:
        raise ValueError(f"{owner}: {found} {IMAGE_PLACEHOLDER} in the questions, {pictures} pictures; one each")
    return turns


def said_turns(history: Sequence[Any], owner: str = "history") -> list[Turn]:
    """The turns of a chat so far, whose answers a model gave: whatever they say, they stand for nothing else.

    Raises:
        ValueError: A turn is malformed.
    """
    turns = [_make_turn(turn, owner) for turn in history]
    return [replace(turn, is_said=True) if turn.role == "gpt" else turn for turn in turns]


def _list_turns(question: str | Sequence[Any], owner: str) -> list[Turn]:
    return [Turn("human", question)] if isinstance(question, str) else [_make_turn(turn, owner) for turn in question]


def _make_turn(turn: Any, owner: str) -> Turn:
    if isinstance(turn, Turn):
        return turn
    pair = (turn.get("from"), turn.get("value")) if isinstance(turn, Mapping) else turn
    role, text = pair if isinstance(pair, Sequence) and len(pair) == 2 else (None, None)
    if role not in ("human", "gpt") or not isinstance(text, str):
        raise ValueError(f"{owner}: found the turn {str(turn)[:80]!r}; a turn is ('human' or 'gpt', text)")
    return Turn(role, text)
