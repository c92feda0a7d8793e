"""Records and their text: form, placeholders, answers, special tokens, round trip of the tokenizer, lengths."""

import itertools
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mg_llava.data.records.formats import to_llava
from mg_llava.data.records.regions import count_named
from mg_llava.data.records.schema import (
    LLaVARecord,
    PlaceholderError,
    RecordError,
    Turn,
    answered_turns,
    parse_record,
)
from mg_llava.data.text.budget import BudgetError
from mg_llava.data.text.conversation import NoLabelError, Template, encode_conversation
from mg_llava.inspection.doctor.findings import Found
from mg_llava.inspection.doctor.sources import OpenedSource, UsedRecord
from mg_llava.tokens import IGNORE_INDEX, IMAGE_PLACEHOLDER

_SHOWN = 20
_SHORTEST_SPECIAL = 3
_MARKS = re.compile(r"<\|[^|<>\s]+\|>|</?s>")
_OWNER = re.compile(r"^.*?, record \d+(?: \(id .*?\))?: ")
_NOTHING = re.compile(r"(?!)")
_EXAMPLE = (Turn("human", "How many dogs?"), Turn("gpt", "Two dogs."))


class TextResult(NamedTuple):
    """Findings and usable records of a range of records."""

    found: list[Found]
    used: list[UsedRecord]


def check_texts(sources: Sequence[OpenedSource], job: tuple[int, int, int]) -> TextResult:
    """Check a range of the records of a source: its number, and start and stop in its ``indices``."""
    number, start, stop = job
    source = sources[number]
    specials = _special_pattern(source)
    result = TextResult([], [])
    texts: list[tuple[LLaVARecord, int, str]] = []
    for row in source.indices[start:stop].tolist():
        raw: Any = None
        try:
            raw = source.records[row]
            read = to_llava(raw, source.form, source.data_path, row)
            record = parse_record(read, source.data_path, row).with_frames(source.frames)
        except RecordError as error:
            kind = "placeholder_count" if isinstance(error, PlaceholderError) else "bad_record"
            record_id = raw.get("id") if isinstance(raw, Mapping) else None
            name = "" if record_id is None else str(record_id)
            result.found.append(Found(kind, name, row, _OWNER.sub("", str(error))))
            continue
        turns = answered_turns(record.turns)
        if not turns:
            result.found.append(Found("unanswered", record.id, row, "no human turn with a gpt turn after it"))
            continue
        details = [*_judge_turns(turns, specials), ("turn_order", "; ".join(_odd_turns(record.turns)))]
        result.found.extend(Found(kind, record.id, row, detail) for kind, detail in details if detail)
        result.used.append(_measure(source, record, row, result.found))
        texts += [(record, row, piece) for turn in turns for piece in _pieces(turn) if not specials.search(piece)]
    if source.tokenizer is not None:
        result.found.extend(_round_trip(source.tokenizer, texts))
    return result


def check_template(source: OpenedSource) -> dict[str, str]:
    """Check that template and tokenizer fit together; takes the tokenizer away where nothing can be encoded.

    Returns:
        An example as the LLM sees it: ``prompt`` without loss, ``loss`` with it; empty where there is none.
    """
    tokenizer, template = source.tokenizer, source.template
    if tokenizer is None or template is None:
        return {}
    for mark in sorted(_marks_of(template)):
        if tokenizer.convert_tokens_to_ids(mark) in (None, tokenizer.unk_token_id):
            ids = tokenizer.encode(mark, add_special_tokens=False)
            source.tell("template_token", "template", f"{mark!r} becomes {len(ids)} tokens")
    with source.telling("config_setting", "template", ValueError):
        encoded = encode_conversation(_EXAMPLE, tokenizer, template)
        pairs = list(zip(encoded.input_ids, encoded.labels, strict=True))
        last = max(place for place, (_, label) in enumerate(pairs) if label != IGNORE_INDEX) + 1
        prompt = [token for token, label in pairs[:last] if label == IGNORE_INDEX]
        loss = [token for token, label in pairs if label != IGNORE_INDEX]
        return {"prompt": tokenizer.decode(prompt), "loss": tokenizer.decode(loss)}
    source.tokenizer = None
    return {}


def decode(tokenizer: Any, ids: list[list[int]]) -> list[str]:
    """The texts, special tokens included."""
    if getattr(tokenizer, "is_fast", False):
        # What the next line does as well, after it has looked at the type of every single id, which takes most time.
        return tokenizer.backend_tokenizer.decode_batch(ids, skip_special_tokens=False)
    return tokenizer.batch_decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _special_pattern(source: OpenedSource) -> re.Pattern[str]:
    """Strings that the tokenizer, or the template's stop words, take for more than text."""
    if source.tokenizer is None:
        return _NOTHING
    added = getattr(source.tokenizer, "added_tokens_decoder", {}).values()
    strings = {str(token) for token in source.tokenizer.all_special_tokens}
    strings |= {token.content for token in added if token.special}
    strings |= set(source.template.stop_words if source.template else ())
    strings = {string for string in strings if len(string) >= _SHORTEST_SPECIAL and string != IMAGE_PLACEHOLDER}
    longest_first = sorted(strings, key=lambda string: (-len(string), string))
    return re.compile("|".join(map(re.escape, longest_first))) if strings else _NOTHING


def _marks_of(template: Template) -> set[str]:
    texts = (template.system, template.instruction, template.suffix, template.sep, *template.stop_words)
    return {mark for text in texts for mark in _MARKS.findall(text)}


def _judge_turns(turns: Sequence[Turn], specials: re.Pattern[str]) -> Iterator[tuple[str, str]]:
    """Judge single turns; kinds of findings with details."""
    for number, turn in enumerate(turns):
        if turn.role == "gpt" and not turn.text.strip():
            yield "empty_answer", f"answer {number // 2 + 1} is empty"
        if turn.role == "gpt" and IMAGE_PLACEHOLDER in turn.text:
            yield "placeholder_in_answer", _around(turn.text, IMAGE_PLACEHOLDER)
        match = specials.search(turn.text)
        if match:
            yield "special_token", f"{match[0]!r} in {_around(turn.text, match[0])}"


def _odd_turns(turns: Sequence[Turn]) -> Iterator[str]:
    """Where questions and answers do not alternate, from a question to an answer."""
    if turns[0].role == "gpt":
        yield "it begins with an answer, which is dropped"
    for number, (turn, following) in enumerate(itertools.pairwise(turns), start=1):
        if turn.role == following.role:
            side = "questions, which are joined" if turn.role == "human" else "answers to one question"
            yield f"turns {number} and {number + 1} are both {side}"
    if turns[-1].role == "human":
        yield "it ends with a question, which is dropped"


def _measure(source: OpenedSource, record: LLaVARecord, row: int, found: list[Found]) -> UsedRecord:
    """Lengths, and whether labels are left."""
    is_video = record.video is not None
    used = UsedRecord(row, record.id, record.images, 0, 0, True, is_video, record.regions, count_named(record.turns))
    if source.tokenizer is None or source.template is None:
        return used
    full = 0
    try:
        turns, crops = source.regions.measure(record)
        used = used._replace(crops=crops)
        limit = source.budget_of(is_video).text_limit(len(record.images), crops)
        encoded = encode_conversation(turns, source.tokenizer, source.template)
        full = len(encoded.input_ids)
        if limit is not None and full > limit:
            encoded = encode_conversation(turns, source.tokenizer, source.template, limit)
            found.append(Found("truncated_text", record.id, row, f"{full} ids, there is room for {limit}"))
    except (NoLabelError, BudgetError, RecordError) as error:
        kinds = {NoLabelError: "no_label", BudgetError: "over_budget"}
        kind = kinds.get(type(error), "placeholder_count")
        found.append(Found(kind, record.id, row, str(error)))
        return used._replace(full_length=full, has_labels=False)
    return used._replace(length=len(encoded.input_ids), full_length=full)


def _pieces(turn: Turn) -> list[str]:
    """Pieces of a turn that are tokenized one by one."""
    pieces = turn.text.split(IMAGE_PLACEHOLDER) if turn.role == "human" else [turn.text]
    return [piece.strip() for piece in pieces if piece.strip()]


def _round_trip(tokenizer: Any, texts: Sequence[tuple[LLaVARecord, int, str]]) -> Iterator[Found]:
    """Texts that do not come back, one finding a record."""
    if not texts:
        return
    ids = tokenizer([text for _, _, text in texts], add_special_tokens=False, verbose=False)["input_ids"]
    last = None
    for (record, row, text), back in zip(texts, decode(tokenizer, ids), strict=True):
        back = back.strip()
        # Some tokenizers compose accents, which loses nothing.
        is_same = text == back or unicodedata.normalize("NFC", text) == unicodedata.normalize("NFC", back)
        if row != last and not is_same:
            same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(text, back, strict=False))
            place = len(list(same))
            part = slice(max(0, place - _SHOWN), place + _SHOWN)
            yield Found("lossy_text", record.id, row, f"{text[part]!r} comes back as {back[part]!r}")
            last = row


def _around(text: str, part: str) -> str:
    place = text.index(part)
    return repr(text[max(0, place - _SHOWN) : place + len(part) + _SHOWN])
