"""What a page works on: a picture with its boxes, and the conversations about it with and without them."""

import secrets
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from PIL import Image

from mg_llava.data.inputs import make_boxes, said_turns
from mg_llava.data.pictures.files import to_rgb
from mg_llava.data.records.schema import BoxRecord
from mg_llava.inference.frontend import FrontEnd
from mg_llava.inference.requests import Answer, Request
from mg_llava.inference.serving.errors import RefusedRequest
from mg_llava.tokens import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER

Side = Literal["with", "without"]
"""A conversation: with the boxes that are switched on, or without any."""

SIDES: tuple[Side, ...] = ("with", "without")
DRAWN = 1.0
"""Score of a box that a person drew."""


@dataclass(frozen=True)
class BoardBox:
    """A box of a board.

    Attributes:
        box: xyxy in pixels of the picture.
        label: Its name.
        score: How sure the detector was.
        on: Whether the model gets it.
    """

    box: tuple[float, float, float, float]
    label: str = ""
    score: float = DRAWN
    on: bool = True

    def inside(self, width: int, height: int) -> "BoardBox":
        """The box with its corners in order, clipped to a picture.

        Raises:
            RefusedRequest: Nothing of it is left.
        """
        x1, x2 = sorted(min(max(value, 0.0), float(width)) for value in self.box[::2])
        y1, y2 = sorted(min(max(value, 0.0), float(height)) for value in self.box[1::2])
        if x1 == x2 or y1 == y2:
            found = [round(value, 2) for value in self.box]
            raise RefusedRequest(f"box {found} has no part of the picture ({width} x {height} pixels)", "boxes")
        return replace(self, box=(x1, y1, x2, y2))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"box": list(self.box), "label": self.label, "score": self.score, "on": self.on}


class Board:
    """A picture, its boxes, and what was asked about it.

    Args:
        image: RGB, in the frame of the boxes.
        boxes: Those that were found.

    Attributes:
        key: Its name; it cannot be guessed.
        turns: Of each conversation.
        asked: The last question of each that was answered, with its answer.
        is_busy: Whether an answer is being given.
    """

    def __init__(self, image: Image.Image, boxes: Sequence[BoardBox] = ()) -> None:
        self.image = image
        self.boxes = tuple(boxes)
        self.key = secrets.token_urlsafe(16)
        self.is_busy = False
        self.reset()

    @classmethod
    def of(cls, image: Image.Image, front_end: FrontEnd) -> "Board":
        """A board for a decoded picture, with the boxes that the front end's proposer finds."""
        processor = front_end.picture_processor
        rgb = to_rgb(image, processor.mode, processor.apply_exif)
        found = front_end.propose(rgb, "the picture")
        rows = zip(found.boxes.tolist(), found.labels, found.scores.tolist(), strict=True)
        return cls(rgb, [BoardBox(tuple(box), label, score) for box, label, score in rows])

    @property
    def pixels(self) -> int:
        """Of its picture."""
        return self.image.width * self.image.height

    def reset(self) -> None:
        """Begin both conversations anew."""
        self.turns: dict[Side, list[tuple[str, str]]] = {side: [] for side in SIDES}
        self.asked: dict[Side, tuple[Request, Answer]] = {}

    def set_boxes(self, boxes: Sequence[BoardBox]) -> None:
        """Take other boxes, clipped to the picture.

        Raises:
            RefusedRequest: One lies outside; the old ones stay then.
        """
        self.boxes = tuple(box.inside(*self.image.size) for box in boxes)

    def record(self, side: Side) -> BoxRecord:
        """The boxes that the model gets."""
        shown = [box for box in self.boxes if box.on and side == "with"]
        columns = {"boxes": [one.box for one in shown], "scores": [one.score for one in shown]}
        return make_boxes({**columns, "labels": [one.label for one in shown]}, "the picture")

    def request(self, question: str, side: Side) -> Request:
        """The next question of a conversation."""
        for placeholder in (IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER):
            question = question.replace(placeholder, "")
        return Request([*said_turns(self.turns[side]), ("human", question)], self.image, self.record(side))

    def begin(self) -> None:
        """Say that an answer is being given.

        Raises:
            RefusedRequest: One is already.
        """
        if self.is_busy:
            raise RefusedRequest("an answer about this picture is being given; wait or stop it", None, "busy", 409)
        self.is_busy = True

    def end(self) -> None:
        """Say that no answer is being given."""
        self.is_busy = False

    def take(self, side: Side, request: Request, answer: Answer) -> None:
        """Go on from an answer."""
        question = request.question[-1][1]
        self.turns[side] += [("human", question), ("gpt", answer.text)]
        self.asked[side] = request, answer

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        size = {"width": self.image.width, "height": self.image.height}
        return {"key": self.key, **size, "boxes": [box.to_dict() for box in self.boxes]}


class Boards:
    """The boards of all who look at the page; the one that was not used for longest makes room.

    Args:
        most: Boards.
        pixels: Of all their pictures.
    """

    def __init__(self, most: int = 64, pixels: int = 128_000_000) -> None:
        self.most, self.pixels = most, pixels
        self._boards: OrderedDict[str, Board] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._boards)

    def add(self, board: Board) -> Board:
        """Keep a board."""
        with self._lock:
            self._boards[board.key] = board
            idle = (key for key, old in list(self._boards.items()) if old is not board and not old.is_busy)
            while len(self._boards) > self.most or sum(one.pixels for one in self._boards.values()) > self.pixels:
                key = next(idle, None)
                if key is None:
                    break
                del self._boards[key]
        return board

    def __getitem__(self, key: str) -> Board:
        """The board of a name.

        Raises:
            RefusedRequest: There is none.
        """
        with self._lock:
            if key not in self._boards:
                raise RefusedRequest("this picture is not here any more; choose it again", "board", "not_found", 404)
            self._boards.move_to_end(key)
            return self._boards[key]
