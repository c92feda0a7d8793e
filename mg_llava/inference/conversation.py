"""A conversation with a predictor: its turns, pictures and boxes, to be gone on with, saved and begun anew."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mg_llava.data.inputs import BoxesLike, PictureLike
from mg_llava.inference.predictor import Predictor
from mg_llava.inference.requests import Answer
from mg_llava.tokens import IMAGE_PLACEHOLDER
from mg_llava.work.atomic import write_json


class Conversation:
    """Turns one after the other; a question whose answer does not come to its end is none.

    Args:
        predictor: Answers.
        **generation: Overrides the predictor's arguments of generation.

    Attributes:
        pictures: Those that were shown.
        boxes: Of each picture, as in ``Request``.
        answer: The last one.
    """

    def __init__(self, predictor: Predictor, **generation: Any) -> None:
        self.predictor, self.generation = predictor, generation
        self.reset()

    def reset(self) -> None:
        """Begin anew, without pictures."""
        self.turns: list[tuple[str, str]] = []
        self.pictures: list[PictureLike] = []
        self.boxes: list[BoxesLike] = []
        self.answer: Answer | None = None
        self._placed = 0

    def show(self, picture: PictureLike, boxes: BoxesLike = None) -> None:
        """Show a picture with the next question; boxes as in ``Request``."""
        self.pictures.append(picture)
        self.boxes.append(boxes)

    def set_boxes(self, boxes: BoxesLike) -> None:
        """Give the last picture other boxes.

        Raises:
            ValueError: There is no picture.
        """
        if not self.boxes:
            raise ValueError("there is no picture yet; /image PATH shows one")
        self.boxes[-1] = boxes

    def ask(self, question: str) -> Iterator[str]:
        """The answer in pieces of text as they come.

        Raises:
            PictureError: A picture cannot be read.
            ValueError: The question is empty, or the conversation too long.
        """
        new = len(self.pictures) - self._placed
        text = f"{IMAGE_PLACEHOLDER}\n" * new + question.replace(IMAGE_PLACEHOLDER, "")
        found = self.boxes[0] if len(self.boxes) == 1 else self.boxes or None
        reply = self.predictor.chat(self.pictures or None, text, found, self.turns, stream=True, **self.generation)
        yield from reply
        self.answer = reply.whole
        self.turns += [("human", text), ("gpt", reply.whole.text)]
        self._placed = len(self.pictures)

    def save(self, path: str | Path) -> None:
        """Write turns and pictures as a record of training data; pictures without a file are not named.

        Raises:
            OSError: The file cannot be written.
        """
        record: dict[str, Any] = {
            "id": Path(path).stem,
            "image": [str(picture) for picture in self.pictures if isinstance(picture, str | Path)],
            "conversations": [{"from": role, "value": text} for role, text in self.turns],
        }
        if self.answer is not None:
            record["seen"] = self.answer.to_dict()["pictures"]
        write_json(path, [record])
