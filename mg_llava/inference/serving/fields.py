"""Every known field of a chat completion: done, harmless, or refused unless it asks for what happens anyway."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from mg_llava.inference.serving.errors import RefusedRequest

_MESSAGES = 1024
_LARGE = 1 << 31
_STOP = "stop is a text or a list of up to 4, none of them empty"
_KINDS = ("text-content", "part-content", "no-content")
_PARTS = ("text", "refusal", "image_url")


class Fields(BaseModel):
    """No other fields, and no conversion of types; None stands for an absent field."""

    model_config = ConfigDict(extra="forbid", strict=True)


class PictureField(Fields):
    """``image_url`` of a part; boxes are xyxy in pixels of the picture, and this server's own addition."""

    url: str
    boxes: list[Annotated[list[float], Field(min_length=4, max_length=4)]] | None = None
    scores: list[float] | None = None
    labels: list[str] | None = None
    detail: Literal["auto", "low", "high"] | None = None  # there is one way to see a picture


class TextPart(Fields):
    """Text of a message."""

    type: Literal["text"]
    text: str


class RefusalPart(Fields):
    """What an assistant said in place of an answer."""

    type: Literal["refusal"]
    refusal: str


class PicturePart(Fields):
    """A picture between texts."""

    type: Literal["image_url"]
    image_url: PictureField


ContentPart = Annotated[TextPart | RefusalPart | PicturePart, Field(discriminator="type")]
Content = Annotated[
    Annotated[str, Tag("text-content")]
    | Annotated[Annotated[list[ContentPart], Field(max_length=256)], Tag("part-content")]
    | Annotated[None, Tag("no-content")],
    Discriminator(lambda given: {str: "text-content", type(None): "no-content"}.get(type(given), "part-content")),
]


class MessageField(Fields):
    """A message."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None
    function_call: None = None
    audio: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None


class StreamOptions(Fields):
    """Of a streamed answer."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class ResponseFormat(Fields):
    """Text alone."""

    type: Literal["text"]


class Body(Fields):
    """A body of ``/v1/chat/completions``."""

    # done
    messages: Annotated[list[MessageField], Field(min_length=1, max_length=_MESSAGES)]
    max_tokens: Annotated[int, Field(ge=1, le=_LARGE)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=_LARGE)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=_LARGE)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    # refused, unless they ask for what happens anyway
    n: Literal[1] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    response_format: ResponseFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    functions: Annotated[list[Any], Field(max_length=0)] | None = None
    function_call: Literal["none", "auto"] | None = None
    store: Literal[False] | None = None
    # harmless
    model: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: str | None = None
    parallel_tool_calls: bool | None = None
    metadata: dict[str, Any] | None = None

    def generation(self) -> dict[str, Any]:
        """Arguments of ``Predictor.answering``."""
        names = ("temperature", "top_p", "top_k", "repetition_penalty", "seed")
        given: dict[str, Any] = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        limits = [limit for limit in (self.max_tokens, self.max_completion_tokens) if limit is not None]
        if limits:
            given["max_new_tokens"] = min(limits)
        if self.stop is not None:
            given["stop"] = [self.stop] if isinstance(self.stop, str) else self.stop
        return {**given, "do_sample": bool(self.temperature)}


def read_fields(body: Any) -> Body:
    """The checked fields of a parsed body.

    Raises:
        RefusedRequest: One is unknown, of a wrong type or out of its range, or needs another one.
    """
    if not isinstance(body, dict):
        raise RefusedRequest(
            "the body must be an object with 'messages', a list of {'role', 'content'}", code="invalid_type"
        )
    unknown = next((name for name in body if name not in Body.model_fields), None)
    if unknown is not None:
        known = ", ".join(Body.model_fields)
        raise RefusedRequest(f"unknown field {unknown[:80]!r}; known: {known}", unknown[:80], "unknown_parameter")
    try:
        fields = Body.model_validate(body)
    except ValidationError as error:
        raise field_fault(error) from None
    if fields.stop is not None and not all(fields.generation()["stop"]):
        raise RefusedRequest(_STOP, "stop")
    for name, needed in (("stream_options", "stream"), ("top_logprobs", "logprobs")):
        if getattr(fields, name) and not getattr(fields, needed):
            raise RefusedRequest(f"{name} needs {needed}: true", name)
    return fields


def field_fault(error: ValidationError) -> RefusedRequest:
    """OpenAI's form of the first fault."""
    first = error.errors(include_url=False, include_context=False)[0]
    kind, param = first["type"], _name(first["loc"]) or "the body"
    if first["loc"][:1] == ("stop",):
        return RefusedRequest(_STOP, "stop")
    if kind == "extra_forbidden":
        return RefusedRequest(f"unknown field {param}", param, "unknown_parameter")
    if kind == "missing":
        return RefusedRequest(f"{param} is missing", param, "missing_required_parameter")
    rule = first["msg"].replace("Input should", "must", 1).replace(" after validation", "")
    code = "invalid_type" if kind.endswith("_type") else "invalid_value"
    return RefusedRequest(f"{param} is {_shown(first['input'])}, {rule}", param, code)


def _name(place: tuple[int | str, ...]) -> str:
    """``messages[0].content[1]``, without the names that tell kinds of contents and parts apart."""
    name = ""
    for before, step in zip((None, *place), place, strict=False):
        if isinstance(step, int):
            name += f"[{step}]"
        elif step not in _KINDS and not (isinstance(before, int) and step in _PARTS):
            name += f".{step[:80]}"
    return name.removeprefix(".")


def _shown(value: Any) -> str:
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return json.dumps(value[:60] if isinstance(value, str) else value)[:80]
