"""Conversations to token ids and loss mask: the same function for training, evaluation and chat.

Equal, token for token, to what XTuner's LLaVA map function, template map function and encoder make of a conversation
with at most one picture per exchange. A question with one placeholder has it moved to the beginning, followed by a
newline, as the published weights were trained; several placeholders in one question stay where they are written.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mg_llava.data.records.regions import Region
from mg_llava.data.records.schema import Turn, answered_turns
from mg_llava.tokens import (
    IGNORE_INDEX,
    IMAGE_PLACEHOLDER,
    IMAGE_TOKEN_INDEX,
    OBJECT_PLACEHOLDER,
    OBJECT_TOKEN_INDEX,
)

OWN_TEMPLATES: dict[str, dict[str, Any]] = {
    # The published Phi-3 weights were trained without a newline after <|user|>, which XTuner's template has today.
    "phi3_chat_published": dict(
        SYSTEM="<|system|>\n{system}<|end|>\n",
        INSTRUCTION="<|user|>{input}<|end|>\n<|assistant|>\n",
        SUFFIX="<|end|>",
        SUFFIX_AS_EOS=True,
        SEP="\n",
        STOP_WORDS=["<|end|>"],
    ),
}
"""Templates that XTuner does not have, in XTuner's form."""

ENCODING_VERSION = 1
"""Raised when a conversation gives other ids or labels than before: it voids caches of token ids."""

MARKS = re.compile(f"({IMAGE_PLACEHOLDER}|{OBJECT_PLACEHOLDER.pattern.replace('(', '(?:')})")
"""What stands in a question for a picture or an object image."""

_NO_BOS_CLASSES = ("QWenTokenizer", "QWen2Tokenizer", "Qwen2TokenizerFast")
_CHATGLM_BOS = [64790, 64792]


class NoLabelError(ValueError):
    """A conversation in which no token carries loss."""


@dataclass(frozen=True)
class Template:
    """How a conversation is written for one LLM; strings as in XTuner's ``PROMPT_TEMPLATE``."""

    instruction: str
    system: str = "{system}"
    suffix: str = ""
    suffix_as_eos: bool = False
    sep: str = ""
    stop_words: tuple[str, ...] = ()

    @classmethod
    def build(cls, spec: "Template | str | Mapping[str, Any]") -> "Template":
        """Make a template from a name of XTuner's (or ``OWN_TEMPLATES``), or from a dict in XTuner's form.

        Raises:
            ValueError: The name is unknown, or the dict has no ``INSTRUCTION``.
        """
        if isinstance(spec, Template):
            return spec
        if isinstance(spec, str):
            spec = _named_template(spec)
        if "INSTRUCTION" not in spec or "{input}" not in spec["INSTRUCTION"]:
            raise ValueError(f"template has {sorted(spec)}; it needs INSTRUCTION, a string that contains {{input}}")
        return cls(
            instruction=spec["INSTRUCTION"],
            system=spec.get("SYSTEM") or "{system}",
            suffix=spec.get("SUFFIX") or "",
            suffix_as_eos=bool(spec.get("SUFFIX_AS_EOS", False)),
            sep=spec.get("SEP") or "",
            stop_words=tuple(spec.get("STOP_WORDS") or ()),
        )


@dataclass(frozen=True)
class EncodedConversation:
    """Token ids and labels.

    Attributes:
        input_ids: With ``IMAGE_TOKEN_INDEX`` for each picture and ``OBJECT_TOKEN_INDEX`` for each object image.
        labels: ``IGNORE_INDEX`` where no loss is.
        truncated: Whether the text was cut.
        regions: Of the object images, in the order of their placeholders.
    """

    input_ids: list[int]
    labels: list[int]
    truncated: bool = False
    regions: tuple[Region, ...] = ()


@dataclass
class _Segment:
    """Neighboring tokens of one kind; ``answer`` alone carries loss."""

    kind: Literal["frame", "text", "image", "answer"]
    ids: list[int]


def encode_conversation(
    turns: Sequence[Turn],
    tokenizer: Any,
    template: Template | str | Mapping[str, Any],
    max_length: int | None = None,
    system: str = "",
) -> EncodedConversation:
    """Encode a conversation for training.

    Leading answers and trailing questions are dropped, consecutive questions concatenated. What exceeds ``max_length``
    is cut from the right. Where that would lose a picture or every label, the exchanges without pictures go first,
    then the long questions and answers of the others are shortened, so that every placeholder and some of the answer
    stay.

    Args:
        turns: The messages.
        tokenizer: A transformers tokenizer.
        template: The LLM's template, or what ``Template.build`` takes.
        max_length: Largest number of ids, a picture counting as one; None for no limit.
        system: System text before the first question, if any.

    Raises:
        NoLabelError: No token carries loss: no question is answered, or ``max_length`` is too small.
    """
    exchanges = _encode_exchanges(_pair(answered_turns(turns)), tokenizer, Template.build(template), system)
    full = _join(exchanges)
    if not _has_labels(full):
        raise NoLabelError("the conversation has no answer that could carry loss; it needs a human and a gpt turn")
    if max_length is None or len(full.input_ids) <= max_length:
        return full
    cut = EncodedConversation(full.input_ids[:max_length], full.labels[:max_length], truncated=True)
    pictures = _count_placeholders(full)
    if not _has_labels(cut) or _count_placeholders(cut) != pictures:
        cut = _shorten(exchanges, max_length)
    if not _has_labels(cut) or len(cut.input_ids) > max_length:
        raise NoLabelError(
            f"{pictures} pictures and one answer token do not fit into max_length {max_length}; raise max_length"
        )
    return cut


def encode_prompt(
    turns: Sequence[Turn], tokenizer: Any, template: Template | str | Mapping[str, Any], system: str = ""
) -> list[int]:
    """Encode a conversation that waits for an answer, up to and including the header of that answer.

    The ids equal the beginning of the training ids of the same conversation with any answer.

    Raises:
        ValueError: The last turn is not a human one.
    """
    if not turns or turns[-1].role != "human":
        raise ValueError("a prompt ends with a human turn; add the question")
    start = next(i for i, turn in enumerate(turns) if turn.role == "human")
    exchanges = _encode_exchanges(_pair(turns[start:]), tokenizer, Template.build(template), system)
    return _join(exchanges).input_ids


def place_placeholder(question: str) -> str:
    """Move a single placeholder to the beginning, followed by a newline; leave several where they are."""
    count = question.count(IMAGE_PLACEHOLDER)
    if count == 0:
        return question
    if count > 1:
        return question.strip()
    return f"{IMAGE_PLACEHOLDER}\n{question.replace(IMAGE_PLACEHOLDER, '').strip()}".strip()


def special_ids(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Ids that open and close an exchange (BOS, EOS); empty lists where the tokenizer has none."""
    own = {"ChatGLMTokenizer": _CHATGLM_BOS, **dict.fromkeys(_NO_BOS_CLASSES)}
    bos = own.get(type(tokenizer).__name__, tokenizer.bos_token_id)
    return _as_list(bos), _as_list(tokenizer.eos_token_id)


def framing_ids(tokenizer: Any, template: Template) -> tuple[list[int], list[int]]:
    """As :func:`special_ids`, without a BOS that the template writes itself, as ChatML does SmolLM2's <|im_start|>."""
    bos, eos = special_ids(tokenizer)
    return [] if tokenizer.bos_token and template.instruction.startswith(tokenizer.bos_token) else bos, eos


def mark_id(mark: str) -> int:
    """The id of a placeholder in a text, one of ``MARKS``."""
    return IMAGE_TOKEN_INDEX if mark == IMAGE_PLACEHOLDER else OBJECT_TOKEN_INDEX


def _count_placeholders(encoded: EncodedConversation) -> int:
    return sum(token < 0 for token in encoded.input_ids)


def _as_list(value: int | list[int] | None) -> list[int]:
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)


def _named_template(name: str) -> Mapping[str, Any]:
    if name in OWN_TEMPLATES:
        return OWN_TEMPLATES[name]
    from xtuner.utils.templates import PROMPT_TEMPLATE

    if name not in PROMPT_TEMPLATE:
        raise ValueError(
            f"template {name!r} is unknown; known: {', '.join(sorted([*PROMPT_TEMPLATE, *OWN_TEMPLATES]))}"
        )
    return PROMPT_TEMPLATE[name]


def _pair(turns: Iterable[Turn]) -> list[tuple[str, str | None]]:
    """Messages to exchanges of question and answer; the last answer may be None."""
    exchanges: list[tuple[str, str | None]] = []
    question, waiting = "", False
    for turn in turns:
        if turn.role == "human":
            question, waiting = question + place_placeholder(turn.text), True
        else:
            exchanges.append((question, turn.text))
            question, waiting = "", False
    return [*exchanges, (question, None)] if waiting else exchanges


def _encode_exchanges(
    exchanges: Sequence[tuple[str, str | None]], tokenizer: Any, template: Template, system: str
) -> list[list[_Segment]]:
    """Segments of each exchange."""
    bos, eos = framing_ids(tokenizer, template)
    if not eos and not template.suffix_as_eos:
        raise ValueError(
            "the tokenizer has no EOS token and the template no suffix that ends an answer; set eos_token"
        )
    end = [] if template.suffix_as_eos else eos
    separator = _encode(tokenizer, template.sep)
    encoded = []
    for number, (question, answer) in enumerate(exchanges):
        segments = _encode_question(question, number, tokenizer, template, system if number == 0 else "")
        # With a suffix for EOS, the tokenizer's BOS opens the first exchange alone.
        if number == 0 or not template.suffix_as_eos:
            segments.insert(0, _Segment("frame", list(bos)))
        if answer is not None:
            segments.append(_Segment("answer", _encode(tokenizer, answer + template.suffix) + end))
            segments.append(_Segment("frame", list(separator)))
        encoded.append(segments)
    return encoded


def _encode_question(question: str, number: int, tokenizer: Any, template: Template, system: str) -> list[_Segment]:
    """Segments of a question in its template; the pieces between placeholders are tokenized one by one."""
    text = template.instruction.format(input=question, round=number + 1)
    around = template.instruction.partition("{input}")[::2]  # the question
    before, after = (part.format(round=number + 1) for part in around)
    head, tail = _encode(tokenizer, before), _encode(tokenizer, after)
    system_text = template.system.format(system=system) if system else ""
    texts = MARKS.split(text)
    texts[0] = system_text + texts[0]  # in which a placeholder stands for nothing
    pieces = [head if piece == before else _encode(tokenizer, piece) for piece in texts[::2]]
    marks = texts[1::2]
    segments: list[_Segment] = []
    for index, ids in enumerate(pieces):
        first = min(len(head) if index == 0 and not system else 0, len(ids))
        last = max(first, len(ids) - (len(tail) if index == len(pieces) - 1 else 0))
        if index:
            segments.append(_Segment("image", [mark_id(marks[index - 1])]))
        segments += [_Segment("frame", ids[:first]), _Segment("text", ids[first:last]), _Segment("frame", ids[last:])]
    return segments


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False)) if text else []


def _join(exchanges: Iterable[Iterable[_Segment]], truncated: bool = False) -> EncodedConversation:
    input_ids: list[int] = []
    labels: list[int] = []
    for segments in exchanges:
        for segment in segments:
            input_ids += segment.ids
            labels += segment.ids if segment.kind == "answer" else [IGNORE_INDEX] * len(segment.ids)
    return EncodedConversation(input_ids, labels, truncated)


def _has_labels(encoded: EncodedConversation) -> bool:
    return any(label != IGNORE_INDEX for label in encoded.labels)


def _shorten(exchanges: list[list[_Segment]], max_length: int) -> EncodedConversation:
    """Shorten from the inside: keep the exchanges with pictures (or the first), then shrink the longest parts."""
    kept = [part for part in exchanges if any(segment.kind == "image" for segment in part)] or exchanges[:1]
    segments = [_Segment(segment.kind, segment.ids) for part in kept for segment in part]
    answers = [segment for segment in segments if segment.kind == "answer"]
    texts = [segment for segment in segments if segment.kind == "text"]
    frames = [segment for segment in segments if segment.kind == "frame"]
    share = max(1, max_length // (4 * len(kept)))
    steps = [(answers, share), (texts, 0), (answers, 1), (frames, 0), (answers[1:], 0)]
    for group, floor in steps:
        _shrink(group, floor, sum(len(segment.ids) for segment in segments) - max_length)
    return _join([segments], truncated=True)


def _shrink(segments: list[_Segment], floor: int, excess: int) -> None:
    """Cut the longest of these segments from the right to one length, at least ``floor``, to lose ``excess``."""
    level = max((len(segment.ids) for segment in segments), default=0)
    low, high = floor, level
    while excess > 0 and low < high:
        level = (low + high + 1) // 2
        if sum(max(0, len(segment.ids) - level) for segment in segments) >= excess:
            low = level
        else:
            high = level - 1
    if excess > 0:
        for segment in segments:
            segment.ids = segment.ids[: max(low, floor)]
