"""A conversation with a predictor: its turns, pictures and boxes, to be gone on with, saved and begun anew."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mg_llava.data.inputs import BoxesLike, PictureLike, is_nothing, list_boxes, list_video
from mg_llava.inference.predictor import Predictor
from mg_llava.inference.requests import Answer
from mg_llava.tokens import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER
from mg_llava.work.atomic import write_json


class Conversation:
    """Turns one after the other; a question whose answer does not come to its end is none.

    Args:
        predictor: Answers.
        **generation: Overrides the predictor's arguments of generation.

    Attributes:
        pictures: Those that were shown, or a video.
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
        """Show a picture, or a video, with the next question; boxes as in ``Request``.

        Raises:
            ValueError: There is something beside a video.
        """
        if self.pictures and (self.video is not None or list_video([picture]) is not None):
            raise ValueError("a conversation is about pictures or about one video; begin a new one (/reset)")
        self.pictures.append(picture)
        self.boxes.append(boxes)

    @property
    def _frames(self) -> int:
        """How many frames of a video the predictor sees."""
        return self.predictor.front_end.picture_processor.video.frames

    @property
    def video(self) -> str | None:
        """The path of the video, where one was shown."""
        return list_video(self.pictures)

    def set_boxes(self, boxes: BoxesLike) -> None:
        """Give the last picture other boxes; those of a video are a list with one set for each frame, or empty.

        Raises:
            ValueError: There is no picture, or a video has another number of frames.
        """
        if not self.boxes:
            raise ValueError("there is no picture yet; /image PATH shows one")
        if self.video is not None and not is_nothing(boxes):
            boxes = list_boxes(boxes, self._frames, f"boxes of {self.video}")
        self.boxes[-1] = boxes

    def ask(self, question: str) -> Iterator[str]:
        """The answer in pieces of text as they come.

        Raises:
            PictureError: A picture cannot be read.
            ValueError: The question is empty, or the conversation too long.
        """
        new = len(self.pictures) - self._placed
        mark = IMAGE_PLACEHOLDER if self.video is None else VIDEO_PLACEHOLDER
        text = f"{mark}\n" * new + question.replace(mark, "")
        found = self.boxes[0] if len(self.boxes) == 1 else self.boxes or None
        if self.video is not None and found is not None and is_nothing(found):
            found = [[]] * self._frames
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
        files = [str(picture) for picture in self.pictures if isinstance(picture, str | Path)]
        record: dict[str, Any] = {
            "id": Path(path).stem,
            **({"image": files} if self.video is None else {"video": self.video}),
            "conversations": [{"from": role, "value": text} for role, text in self.turns],
        }
        if self.answer is not None:
            record["seen"] = self.answer.to_dict()["pictures"]
        write_json(path, [record])
