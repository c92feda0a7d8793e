"""From the bytes of a chat completion to a request, checked as a whole; all is counted before it is decoded."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from mg_llava.data.records.schema import Turn
from mg_llava.inference.requests import Request
from mg_llava.inference.serving.errors import RefusedRequest, RequestLimits
from mg_llava.inference.serving.fields import Body, MessageField, PictureField, TextPart, read_fields
from mg_llava.inference.serving.pictures import open_pictures
from mg_llava.tokens import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER

_STRUCTURE = 100_000
"""Values of a body that are not parts of its texts, at most."""


@dataclass(frozen=True)
class ChatQuestion:
    """What a body asks.

    Attributes:
        fields: The body.
        turns: Of the conversation, with placeholders for pictures.
        system: Text before it; None for the predictor's.
        pictures: Each with the name of its field.
    """

    fields: Body
    turns: list[Turn]
    system: str | None
    pictures: list[tuple[str, PictureField]]

    def request(self, limits: RequestLimits, hosts: Collection[str]) -> Request:
        """The request, with decoded pictures.

        Raises:
            RefusedRequest: A picture cannot be read.
        """
        images = open_pictures([(param, picture.url) for param, picture in self.pictures], limits, hosts)
        boxes = [None if picture.boxes is None else _boxes(picture) for _, picture in self.pictures]
        found = boxes[0] if len(boxes) == 1 else boxes or None
        return Request(self.turns, images or None, found, system=self.system)


def read_question(data: bytes, limits: RequestLimits) -> ChatQuestion:
    """The question of a body.

    Raises:
        RefusedRequest: The body is malformed, too large, or asks for what is not done here.
    """
    fields = read_fields(parse_body(data, limits))
    question = ChatQuestion(fields, *_read_messages(fields.messages))
    check_request_texts(_texts(question), limits)
    if len(question.pictures) > limits.pictures:
        raise RefusedRequest(f"{len(question.pictures)} pictures; at most {limits.pictures} are allowed", "messages")
    for param, picture in question.pictures:
        for name in ("boxes", "scores", "labels"):
            count = len(getattr(picture, name) or ())
            if count > limits.boxes:
                raise RefusedRequest(f"{count} {name}; at most {limits.boxes} are allowed", f"{param}.{name}")
    return question


def parse_body(data: bytes, limits: RequestLimits) -> Any:
    """The values of a body, whose number is looked at before.

    Raises:
        RefusedRequest: There are too many, or it is no JSON.
    """
    if sum(map(data.count, (b",", b"[", b"{"))) > limits.characters + _STRUCTURE:
        raise RefusedRequest("the body has too many values", code="invalid_json")
    try:
        return json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        detail = f"{type(error).__name__}: {str(error)[:200]}"
        raise RefusedRequest(f"the body is not JSON ({detail})", code="invalid_json") from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _read_messages(messages: list[MessageField]) -> tuple[list[Turn], str | None, list[tuple[str, PictureField]]]:
    system, turns, pictures = "", [], []
    for number, message in enumerate(messages):
        text, shown = _read_message(message, f"messages[{number}]")
        pictures += shown
        if message.role == "user":
            turns.append(Turn("human", text))
        elif message.role == "assistant":
            turns.append(Turn("gpt", text, is_said=True))
        else:
            system += text
    return turns, system or None, pictures


def _read_message(message: MessageField, owner: str) -> tuple[str, list[tuple[str, PictureField]]]:
    """Text with a placeholder for each picture, and the pictures; beside ``<video>`` they are its frames."""
    content = message.content
    if content is None and message.role == "assistant":
        content = message.refusal or ""
    if content is None:
        raise RefusedRequest(f"{owner}: content must be a text or a list of parts", f"{owner}.content", "invalid_type")
    if isinstance(content, str):
        return _words(content, message, False), []
    text, shown = "", []
    has_pictures = any(part.type == "image_url" for part in content)
    are_frames = any(isinstance(part, TextPart) and VIDEO_PLACEHOLDER in part.text for part in content)
    for place, part in enumerate(content):
        param = f"{owner}.content[{place}]"
        if part.type == "image_url":
            if message.role != "user":
                rule = f"a picture in a message of role {message.role!r}; only users show pictures"
                raise RefusedRequest(f"{owner}: {rule}", param)
            shown.append((f"{param}.image_url", part.image_url))
            text += "" if are_frames else f"{IMAGE_PLACEHOLDER}\n"
        else:
            said = part.text if isinstance(part, TextPart) else part.refusal
            text += _words(said, message, has_pictures)
    return text, shown


def _words(text: str, message: MessageField, has_pictures: bool) -> str:
    """A text without the places of pictures, which have parts of their own, and of a video that is not there.

    What others than users say are words.
    """
    if message.role != "user":
        return text
    text = text.replace(IMAGE_PLACEHOLDER, "")
    return text if has_pictures else text.replace(VIDEO_PLACEHOLDER, "")


def _texts(question: ChatQuestion) -> list[str]:
    texts = [question.system or "", *(turn.text for turn in question.turns)]
    texts += [label for _, picture in question.pictures for label in picture.labels or ()]
    return texts + question.fields.generation().get("stop", [])


def check_request_texts(texts: Sequence[str], limits: RequestLimits) -> None:
    """See whether texts can be read.

    Raises:
        RefusedRequest: They are too long together, or one has half of a character.
    """
    length = sum(map(len, texts))
    if length > limits.characters:
        rule = f"{length} characters of text; the model's context holds at most {limits.characters}"
        raise RefusedRequest(rule, "messages", "context_length_exceeded")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise RefusedRequest(f"a text has half of a surrogate pair ({error.reason})", "messages") from error


def _boxes(picture: PictureField) -> dict[str, Any]:
    """Boxes as :func:`~mg_llava.data.inputs.make_boxes` takes them."""
    given = {"boxes": picture.boxes, "scores": picture.scores, "labels": picture.labels}
    return {name: value for name, value in given.items() if value is not None}
