"""From a body of OpenAI's chat completions to a request, checked as a whole; all is counted before it is decoded."""

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from PIL import Image

from mg_llava.data.records.schema import Turn
from mg_llava.inference.requests import Request
from mg_llava.tokens import IMAGE_PLACEHOLDER

_ROLES = {"user": "human", "assistant": "gpt"}
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


class BadRequest(ValueError):
    """A request that cannot be answered; the message goes back to the client, with the field that is wrong."""

    def __init__(self, message: str, param: str | None = "messages") -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True)
class Limits:
    """Most characters of all texts, pictures, and pixels of all pictures of a request, whatever its bytes."""

    characters: int = 1 << 20
    pictures: int = 16
    pixels: int = 64_000_000


class Field(NamedTuple):
    """A field of a body that is understood: what it may be in words and as a function, beside null."""

    allowed: str
    is_allowed: Callable[[Any], bool]
    argument: str = ""
    """Its name in ``Predictor.answer``; empty for fields that change nothing."""


def _number(low: float, high: float, argument: str, whole: bool = False) -> Field:
    kinds = int if whole else int | float
    allowed = f"a {'whole ' if whole else ''}number from {low} to {high}"
    return Field(allowed, lambda v: isinstance(v, kinds) and not isinstance(v, bool) and low <= v <= high, argument)


def _only(*values: Any) -> Field:
    allowed = f"{' or '.join([*map(json.dumps, values), 'null'])}; nothing else is supported"
    return Field(allowed, lambda found: any(found == value and type(found) is type(value) for value in values))


def _are_stops(value: Any) -> bool:
    words = [value] if isinstance(value, str) else value
    return isinstance(words, list) and len(words) <= 4 and all(isinstance(word, str) and word for word in words)


_LIMIT = _number(1, 1 << 31, "max_new_tokens", whole=True)
_LABEL = Field("a text", lambda value: isinstance(value, str))

FIELDS: dict[str, Field] = {
    "messages": Field("a list of {'role', 'content'}", lambda value: isinstance(value, list) and value != []),
    "max_tokens": _LIMIT,
    "max_completion_tokens": _LIMIT,
    "temperature": _number(0, 2, "temperature"),
    "top_p": _number(1e-9, 1, "top_p"),
    "top_k": _number(0, 1 << 31, "top_k", whole=True),
    "repetition_penalty": _number(0.01, 100, "repetition_penalty"),
    "seed": _number(-(1 << 63), (1 << 63) - 1, "seed", whole=True),
    "stop": Field("a text or a list of up to 4, none of them empty", _are_stops, "stop"),
    "n": _only(1),
    "stream": _only(False),
    "stream_options": _only(),
    "logprobs": _only(False),
    "top_logprobs": _only(0),
    "frequency_penalty": _only(0, 0.0),
    "presence_penalty": _only(0, 0.0),
    "logit_bias": _only({}),
    "response_format": _only({"type": "text"}),
    "modalities": _only(["text"]),
    "tools": _only([]),
    "tool_choice": _only("none", "auto"),
    "functions": _only([]),
    "function_call": _only("none", "auto"),
    "parallel_tool_calls": _only(True, False),
    "store": _only(False),
    "metadata": Field("an object", lambda value: isinstance(value, dict)),
    **dict.fromkeys(("model", "user", "safety_identifier", "prompt_cache_key", "service_tier"), _LABEL),
}
"""Every field that is known: done, harmless, or refused unless it asks for what happens anyway."""


def read_body(data: bytes) -> Any:
    """The JSON of a body.

    Raises:
        BadRequest: It is none, is nested too deeply, or holds NaN or infinity.
    """

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no number of JSON")

    try:
        return json.loads(data, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON ({type(error).__name__}: {error})", None) from error


def make_request(body: Any, limits: Limits) -> tuple[Request, dict[str, Any]]:
    """What a body of ``/v1/chat/completions`` asks: the request, and arguments of ``Predictor.answer``.

    Raises:
        BadRequest: The body is malformed, too large, or asks for what is not done here.
    """
    settings = _settings(body)
    system, turns, sources = "", [], []
    for number, message in enumerate(body["messages"]):
        role, text, shown = _read_message(message, f"messages[{number}]")
        sources += shown
        if role in _ROLES:
            turns.append(Turn(_ROLES[role], text))  # type: ignore[arg-type]
        else:
            system += text
    _check_texts([system, *(turn.text for turn in turns)], limits)
    pictures = _decode(sources, limits)
    boxes = [{name: source[name] for name in ("boxes", "scores", "labels") if name in source} for source in sources]
    found = [item if "boxes" in item else None for item in boxes]
    return Request(
        turns, pictures or None, found[0] if len(found) == 1 else found or None, system=system or None
    ), settings


def _settings(body: Any) -> dict[str, Any]:
    """Arguments of ``Predictor.answer``, with all fields checked."""
    if not isinstance(body, Mapping):
        raise BadRequest("the body must be an object with 'messages', a list of {'role', 'content'}", None)
    settings: dict[str, Any] = {}
    for name, value in {"messages": None, **body}.items():
        field = FIELDS.get(name)
        if field is None:
            raise BadRequest(f"unknown field {name[:80]!r}; known: {', '.join(FIELDS)}", name)
        if not field.is_allowed(value) and (value is not None or name == "messages"):
            raise BadRequest(f"{name} is {json.dumps(value)[:80]}, must be {field.allowed}", name)
        if field.argument and value is not None:
            settings[field.argument] = value
    if isinstance(settings.get("stop"), str):
        settings["stop"] = [settings["stop"]]
    settings["do_sample"] = bool(settings.get("temperature"))
    return settings


def _read_message(message: Any, owner: str) -> tuple[str, str, list[Mapping[str, Any]]]:
    """Role, text with a placeholder for each picture, and the pictures."""
    role = message.get("role") if isinstance(message, Mapping) else None
    if role not in (*_ROLES, "system", "developer"):
        raise BadRequest(f"{owner} has role {role!r}; allowed: system, user, assistant")
    content = message.get("content")
    if role == "assistant" and content is None and not message.get("tool_calls"):
        content = message.get("refusal") or ""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list):
        raise BadRequest(f"{owner}: content must be a text or a list of parts")
    text, shown = "", []
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in ("text", "refusal") and isinstance(part.get(kind), str):
            text += part[kind].replace(IMAGE_PLACEHOLDER, "")  # pictures have parts of their own
        elif kind != "image_url" or not isinstance(part.get("image_url"), Mapping):
            allowed = "{'type': 'text', 'text'} or {'type': 'image_url', 'image_url'}"
            raise BadRequest(f"{owner}: a part is {allowed}")
        elif role != "user":
            raise BadRequest(f"{owner}: a picture in a message of role {role!r}; only users show pictures")
        else:
            shown.append(part["image_url"])
            text += f"{IMAGE_PLACEHOLDER}\n"
    return role, text, shown


def _check_texts(texts: Sequence[str], limits: Limits) -> None:
    length = sum(map(len, texts))
    if length > limits.characters:
        raise BadRequest(f"{length} characters of text; the model's context holds at most {limits.characters}")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise BadRequest(f"a text has half of a surrogate pair ({error})") from error


def _decode(sources: Sequence[Mapping[str, Any]], limits: Limits) -> list[Image.Image]:
    """The decoded pictures; the headers of all are read before."""
    if len(sources) > limits.pictures:
        raise BadRequest(f"{len(sources)} pictures; at most {limits.pictures} are allowed")
    images: list[Image.Image] = []
    for source in sources:
        head, _, data = str(source.get("url", "")).partition(",")
        if not (head.startswith("data:") and head.endswith(";base64")):
            raise BadRequest("pictures must be data: URLs in base64; nothing is fetched from elsewhere")
        images.append(_tried(Image.open, io.BytesIO(_tried(base64.b64decode, data, validate=True)), formats=_FORMATS))
    pixels = sum(image.width * image.height for image in images)
    if pixels > limits.pixels:
        raise BadRequest(f"the pictures have {pixels} pixels together; at most {limits.pixels} are allowed")
    for image in images:
        _tried(image.load)
    return images


def _tried(decode: Callable[..., Any], *given: Any, **named: Any) -> Any:
    try:
        return decode(*given, **named)
    except Exception as error:  # decoders raise anything on damaged files
        raise BadRequest(f"a picture cannot be decoded ({error})") from error
