"""Messages and prompt texts in transformers' manner to the turns and ids of training.

A prompt can reach the model in two ways: as messages, or as a text that a chat template has written from them. Both
give the ids of training: what was tokenized separately there is found in the text by the template's own pieces.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from string import Formatter
from typing import Any

from mg_llava.data.records.schema import BoxRecord, Turn
from mg_llava.data.text.conversation import MARKS, Template, framing_ids, mark_id
from mg_llava.data.text.prompt import PromptPart, apply_parts
from mg_llava.tokens import IMAGE_PLACEHOLDER

_ROLES = {"user": "human", "human": "human", "assistant": "gpt", "gpt": "gpt", "system": "system"}


def template_to_dict(template: Any) -> dict[str, Any]:
    """A template as plain values for JSON; takes what :func:`template_of` takes."""
    values = asdict(template_of(template))
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def template_of(spec: Any) -> Template:
    """A template from what :func:`template_to_dict` made of it, or from anything that ``Template.build`` takes."""
    if isinstance(spec, Mapping) and "instruction" in spec:
        values: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in spec.items()}
        return Template(**values)
    return Template.build(spec)


def to_turns(messages: Sequence[Any], owner: str = "conversation") -> tuple[list[Turn], str]:
    """Messages to turns and system text.

    Args:
        messages: Dicts with ``role`` (user, assistant, system) and ``content``, a text or a list of parts such as
            ``{"type": "image"}`` and ``{"type": "text", "text": ...}``: what an assistant said are words. Or, as in
            records, dicts with ``from`` and ``value``, or ``Turn``.
        owner: Whose messages they are, for errors.

    Raises:
        ValueError: A message is malformed.
    """
    turns: list[Turn] = []
    system = ""
    for message in messages:
        if isinstance(message, Turn):
            turns.append(message)
            continue
        if not isinstance(message, Mapping):
            raise ValueError(
                f"{owner}: found the message {str(message)[:80]!r}; a message is a dict with role, content"
            )
        role = _ROLES.get(str(message.get("role", message.get("from"))))
        text = _flat(message.get("content", message.get("value")), owner)
        if role is None:
            raise ValueError(f"{owner}: found the message {str(message)[:80]!r}; roles are user, assistant, system")
        if role == "system":
            system = text
        else:
            turns.append(Turn(role, text, role == "gpt" and "role" in message))  # type: ignore[arg-type]
    return turns, system


def _flat(content: Any, owner: str) -> str:
    """Content of a message as one text, with a placeholder for each picture."""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise ValueError(f"{owner}: content is a {type(content).__name__}; it is a text or a list of parts")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "image":
            texts.append(f"{IMAGE_PLACEHOLDER}\n")
        elif kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            raise ValueError(f"{owner}: found the part {str(part)[:80]!r}; parts have type image, or text with a text")
    return "".join(texts)


def change_turns(
    parts: Sequence[PromptPart],
    turns: Sequence[Turn],
    records: Sequence[BoxRecord],
    sizes: Sequence[tuple[int, int]],
    is_written: bool,
) -> Sequence[Turn]:
    """Turns after the parts; in a prompt that is written out, the question begins with the first picture."""
    pictured = (n for n, turn in enumerate(turns) if turn.role == "human" and IMAGE_PLACEHOLDER in turn.text)
    place = next(pictured, 0) if is_written else 0
    start = max(turns[place].text.find(IMAGE_PLACEHOLDER), 0) if is_written else 0
    before = turns[place].text[:start]
    question = replace(turns[place], text=turns[place].text[start:])
    first, *others = apply_parts(parts, (question, *turns[place + 1 :]), records, sizes)
    return [*turns[:place], replace(first, text=before + first.text), *others]


# -- from text to ids -------------------------------------------------------------------------------------------------


def written_turns(text: str, tokenizer: Any, template: Template) -> list[Turn]:
    """A prompt that is written out as turns that are the text together, with all that stands around them."""
    pieces = _written_pieces(text, tokenizer, template)
    return [Turn("human", piece) if kind == "question" else Turn("gpt", piece, is_said=True) for kind, piece in pieces]


def encode_written_prompt(text: str, tokenizer: Any, template: Template) -> list[int]:
    """Ids of a prompt that is written out, as :func:`chat_template` writes it, with or without the first BOS.

    Ids of training come from pieces that are tokenized separately: question, answer, separator. A text that does not
    follow the template is one piece.
    """
    bos, eos = framing_ids(tokenizer, template)
    opening, ending = _written(tokenizer, bos), _written(tokenizer, eos)
    ids = [] if opening and text.startswith(opening) else list(bos)
    for kind, piece in _written_pieces(text, tokenizer, template):
        if kind == "opening":
            ids += list(bos)
        elif kind == "question":
            ids += _encode_pieces(piece, tokenizer)
        elif kind == "whole answer" and not template.suffix_as_eos:
            ids += _encode(piece[: len(piece) - len(ending)], tokenizer) + list(eos)
        else:
            ids += _encode(piece, tokenizer)
    return ids


def _written_pieces(text: str, tokenizer: Any, template: Template) -> Iterator[tuple[str, str]]:
    """Kind and text of the pieces of a prompt: an opening, a question, an answer, whole or not, a separator."""
    opening, ending = (_written(tokenizer, ids) for ids in framing_ids(tokenizer, template))
    stop = template.suffix + ("" if template.suffix_as_eos else ending)
    number, rest = 0, text
    while rest:
        if opening and rest.startswith(opening):
            yield "opening", opening
            rest = rest[len(opening) :]
        number += 1
        question, rest = _cut_after(rest, _instruction(template)[1].format(round=number))
        yield "question", question
        answer, rest = _cut_after(rest, stop)
        is_whole = bool(stop) and answer.endswith(stop)
        yield "whole answer" if is_whole else "answer", answer
        if is_whole and template.sep and rest.startswith(template.sep):
            yield "separator", template.sep
            rest = rest[len(template.sep) :]


def _cut_after(text: str, mark: str) -> tuple[str, str]:
    """The text up to and including the first ``mark``, and what follows; all of it where there is none."""
    at = text.find(mark) if mark else -1
    return (text, "") if at < 0 else (text[: at + len(mark)], text[at + len(mark) :])


def _encode_pieces(text: str, tokenizer: Any) -> list[int]:
    ids: list[int] = []
    for number, piece in enumerate(MARKS.split(text)):
        ids += [mark_id(piece)] if number % 2 else _encode(piece, tokenizer)
    return ids


def _encode(text: str, tokenizer: Any) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False)) if text else []


def _written(tokenizer: Any, ids: Sequence[int]) -> str:
    return "".join(tokenizer.convert_ids_to_tokens(list(ids)))


# -- the chat template ------------------------------------------------------------------------------------------------

_MACROS = (
    "{%- macro flat(content) -%}{%- if content is string -%}{{- content -}}{%- else -%}{%- for part in content -%}"
    "{%- if part['type'] == 'image' -%}{{- IMAGE ~ '\\n' -}}{%- else -%}{{- part['text'] -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{%- endmacro -%}"
    "{%- macro placed(text) -%}{%- set count = text.split(IMAGE) | length - 1 -%}"
    "{%- if count == 1 -%}{{- (IMAGE ~ '\\n' ~ text.replace(IMAGE, '').strip()).strip() -}}"
    "{%- elif count > 1 -%}{{- text.strip() -}}{%- else -%}{{- text -}}{%- endif -%}{%- endmacro -%}"
)
_LOOP = (
    "{%- set ns = namespace(round=0, system='', question='', waiting=false) -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{%- set ns.system = flat(message['content']) -%}"
    "{%- elif message['role'] == 'user' -%}"
    "{%- set ns.question = ns.question ~ placed(flat(message['content'])) -%}{%- set ns.waiting = true -%}"
    "{%- elif ns.waiting -%}"
    "OPENING{{- flat(message['content']) -}}CLOSING"
    "{%- set ns.question = '' -%}{%- set ns.waiting = false -%}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if ns.waiting -%}OPENING{%- endif -%}"
)


def chat_template(template: Template, tokenizer: Any) -> str:
    """The template in Jinja, as transformers' chat templates are written.

    The header of the answer belongs to the question before it, so that ``add_generation_prompt`` changes nothing.
    """
    bos, eos = (_written(tokenizer, ids) for ids in framing_ids(tokenizer, template))
    head, tail = _instruction(template)
    system = "".join(_jinja(literal, {"system": "ns.system"}) for literal in Formatter().parse(template.system))
    names = {"round": "ns.round"}
    first = f"{_quoted(bos)}{{%- if ns.system -%}}{system}{{%- endif -%}}"
    later = "" if template.suffix_as_eos else _quoted(bos)
    opening = (
        "{%- set ns.round = ns.round + 1 -%}"
        f"{{%- if ns.round == 1 -%}}{first}{{%- else -%}}{later}{{%- endif -%}}"
        + "".join(_jinja(piece, names) for piece in Formatter().parse(head))
        + "{{- ns.question -}}"
        + "".join(_jinja(piece, names) for piece in Formatter().parse(tail))
    )
    closing = _quoted(template.suffix + ("" if template.suffix_as_eos else eos) + template.sep)
    constants = f"{{%- set IMAGE = {json.dumps(IMAGE_PLACEHOLDER)} -%}}"
    return constants + _MACROS + _LOOP.replace("OPENING", opening).replace("CLOSING", closing)


def _instruction(template: Template) -> tuple[str, str]:
    """Format strings of what stands before and after the question."""
    head, _, tail = template.instruction.partition("{input}")
    return head, tail


def _jinja(piece: tuple[str, str | None, str | None, str | None], names: Mapping[str, str]) -> str:
    """One piece of a format string in Jinja."""
    literal, field = piece[0], piece[1]
    return _quoted(literal) + (f"{{{{- {names[field]} -}}}}" if field else "")


def _quoted(text: str) -> str:
    return f"{{{{- {json.dumps(text, ensure_ascii=False)} -}}}}" if text else ""
