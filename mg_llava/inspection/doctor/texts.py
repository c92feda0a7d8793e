"""Records and their text: form, placeholders, answers, special tokens, round trip of the tokenizer, lengths."""

import itertools
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mg_llava.data.records.schema import LLaVARecord, RecordError, Turn, answered_turns, parse_record
from mg_llava.data.text.budget import BudgetError
from mg_llava.data.text.conversation import NoLabelError, Template, encode_conversation
from mg_llava.inspection.doctor.findings import Found
from mg_llava.inspection.doctor.sources import Source
from mg_llava.tokens import IGNORE_INDEX, IMAGE_PLACEHOLDER

_SHOWN = 20
_SHORTEST_SPECIAL = 3
_MARKS = re.compile(r"<\|[^|<>\s]+\|>|</?s>")
_OWNER = re.compile(r"^.*?, record \d+(?: \(id .*?\))?: ")
_EXAMPLE = (Turn("human", "How many dogs?"), Turn("gpt", "Two dogs."))


class UsedRecord(NamedTuple):
    """What the other checks need of a record that training uses."""

    row: int
    id: str
    images: tuple[str, ...]
    length: int
    """Ids that training sees, a picture counting as one; 0 where there is no tokenizer."""
    full_length: int
    """The same before truncation."""
    has_labels: bool


class TextResult(NamedTuple):
    """Findings and usable records of a range of records."""

    found: list[Found]
    used: list[UsedRecord]


def check_texts(sources: Sequence[Source], job: tuple[int, int, int]) -> TextResult:
    """Check a range of the records of a source.

    Args:
        sources: All sources.
        job: Number of the source, and start and stop in its ``indices``.
    """
    number, start, stop = job
    source = sources[number]
    specials = special_pattern(source)
    found: list[Found] = []
    used: list[UsedRecord] = []
    texts: list[tuple[LLaVARecord, int, str]] = []
    for row in source.indices[start:stop].tolist():
        record = _parse(source, row, found)
        if record is None:
            continue
        turns = answered_turns(record.turns)
        if not turns:
            found.append(Found("unanswered", record.id, row, "no human turn with a gpt turn after it"))
            continue
        found += _check_turns(record, turns, row, specials)
        order = "; ".join(_odd_turns(record.turns))
        found += [Found("turn_order", record.id, row, order)] if order else []
        used.append(_measure(source, record, row, found))
        texts += [(record, row, piece) for turn in turns for piece in _pieces(turn) if not _matches(specials, piece)]
    if source.tokenizer is not None:
        found += _round_trip(source.tokenizer, texts)
    return TextResult(found, used)


def special_pattern(source: Source) -> re.Pattern[str] | None:
    """Strings that the tokenizer, or the template's stop words, take for more than text."""
    if source.tokenizer is None:
        return None
    added = getattr(source.tokenizer, "added_tokens_decoder", {}).values()
    strings = {str(token) for token in source.tokenizer.all_special_tokens}
    strings |= {token.content for token in added if token.special}
    strings |= set(source.template.stop_words if source.template else ())
    strings = {string for string in strings if len(string) >= _SHORTEST_SPECIAL and string != IMAGE_PLACEHOLDER}
    longest_first = sorted(strings, key=lambda string: (-len(string), string))
    return re.compile("|".join(map(re.escape, longest_first))) if strings else None


def check_template(source: Source) -> dict[str, str]:
    """Whether template and tokenizer fit together; takes the tokenizer away where nothing can be encoded.

    Returns:
        An example as the LLM sees it: ``prompt`` without loss, ``loss`` with it; empty where there is none.
    """
    tokenizer, template = source.tokenizer, source.template
    if tokenizer is None or template is None:
        return {}
    for mark in sorted(_marks_of(template)):
        if tokenizer.convert_tokens_to_ids(mark) in (None, tokenizer.unk_token_id):
            ids = tokenizer.encode(mark, add_special_tokens=False)
            source.findings.add(Found("template_token", "template", detail=f"{mark!r} becomes {len(ids)} tokens"))
    try:
        encoded = encode_conversation(_EXAMPLE, tokenizer, template)
    except ValueError as error:
        source.findings.add(Found("config_setting", "template", detail=str(error)))
        source.tokenizer = None
        return {}
    pairs = list(zip(encoded.input_ids, encoded.labels, strict=True))
    last = max(place for place, (_, label) in enumerate(pairs) if label != IGNORE_INDEX) + 1
    prompt = [token for token, label in pairs[:last] if label == IGNORE_INDEX]
    loss = [token for token, label in pairs if label != IGNORE_INDEX]
    return {"prompt": tokenizer.decode(prompt), "loss": tokenizer.decode(loss)}


def decode(tokenizer: Any, ids: list[list[int]]) -> list[str]:
    """The texts, special tokens included."""
    if getattr(tokenizer, "is_fast", False):
        # What the next line does as well, after it has looked at the type of every single id, which takes most time.
        return tokenizer.backend_tokenizer.decode_batch(ids, skip_special_tokens=False)
    return tokenizer.batch_decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def length_summary(used: Sequence[UsedRecord], limit: int | None, bins: int = 10) -> dict[str, Any]:
    """Statistics of the untruncated lengths, a picture counting as one id.

    Args:
        used: The records.
        limit: Largest number of ids.
        bins: Number of bars of the histogram; they end at the limit, with one more for what exceeds it.
    """
    lengths = np.array([record.full_length for record in used if record.full_length], dtype=np.int64)
    if not len(lengths):
        return {}
    top = int(limit or lengths.max())
    edges = np.unique(np.linspace(0, top, bins + 1).round().astype(np.int64))
    # Bars (a, b], so that a text of exactly max_length is no excess.
    counts = np.bincount(np.searchsorted(edges[1:], lengths, side="left"), minlength=len(edges)).tolist()
    middle, high = (int(value) for value in np.percentile(lengths, [50, 95]))
    return {
        "limit": limit,
        "median": middle,
        "percentile_95": high,
        "longest": int(lengths.max()),
        "total": int(lengths.sum()),
        "edges": edges.tolist(),
        "counts": counts,
    }


def _marks_of(template: Template) -> set[str]:
    texts = (template.system, template.instruction, template.suffix, template.sep, *template.stop_words)
    return {mark for text in texts for mark in _MARKS.findall(text)}


def _parse(source: Source, row: int, found: list[Found]) -> LLaVARecord | None:
    """A record, or None with a finding."""
    raw: Any = None
    try:
        raw = source.records[row]
        return parse_record(raw, source.data_path, row)
    except RecordError as error:
        kind = "placeholder_count" if _placeholders_differ(raw) else "bad_record"
        record_id = raw.get("id") if isinstance(raw, Mapping) else None
        found.append(Found(kind, "" if record_id is None else str(record_id), row, _OWNER.sub("", str(error))))
        return None


def _placeholders_differ(raw: Any) -> bool:
    """Whether a refused record is well-formed but for the number of its placeholders."""
    try:
        parse_record({**raw, "image": [], "conversations": _without_placeholders(raw["conversations"])})
        image, count = raw.get("image"), 0
        turns = answered_turns([Turn(turn["from"], turn["value"]) for turn in raw["conversations"]])
        count = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in turns if turn.role == "human")
    except (AttributeError, KeyError, TypeError, RecordError):
        return False
    return count != (len(image) if isinstance(image, list) else bool(image))


def _without_placeholders(turns: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{**turn, "value": turn["value"].replace(IMAGE_PLACEHOLDER, "")} for turn in turns]


def _check_turns(
    record: LLaVARecord, turns: Sequence[Turn], row: int, specials: re.Pattern[str] | None
) -> Iterator[Found]:
    for number, turn in enumerate(turns):
        if turn.role == "gpt":
            if not turn.text.strip():
                yield Found("empty_answer", record.id, row, f"answer {number // 2 + 1} is empty")
            if IMAGE_PLACEHOLDER in turn.text:
                yield Found("placeholder_in_answer", record.id, row, _around(turn.text, IMAGE_PLACEHOLDER))
        match = _matches(specials, turn.text)
        if match:
            yield Found("special_token", record.id, row, f"{match[0]!r} in {_around(turn.text, match[0])}")


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


def _measure(source: Source, record: LLaVARecord, row: int, found: list[Found]) -> UsedRecord:
    """Lengths, and whether labels are left."""
    if source.tokenizer is None or source.template is None:
        return UsedRecord(row, record.id, record.images, 0, 0, True)
    full = 0
    try:
        limit = source.budget.text_limit(len(record.images))
        encoded = encode_conversation(record.turns, source.tokenizer, source.template)
        full = len(encoded.input_ids)
        if limit is not None and full > limit:
            encoded = encode_conversation(record.turns, source.tokenizer, source.template, limit)
            found.append(Found("truncated_text", record.id, row, f"{full} ids, there is room for {limit}"))
    except (NoLabelError, BudgetError) as error:
        kind = "no_label" if isinstance(error, NoLabelError) else "over_budget"
        found.append(Found(kind, record.id, row, str(error)))
        return UsedRecord(row, record.id, record.images, 0, full, False)
    return UsedRecord(row, record.id, record.images, len(encoded.input_ids), full, True)


def _pieces(turn: Turn) -> list[str]:
    """Pieces of a turn that are tokenized one by one."""
    pieces = turn.text.split(IMAGE_PLACEHOLDER) if turn.role == "human" else [turn.text]
    return [piece.strip() for piece in pieces if piece.strip()]


def _round_trip(tokenizer: Any, texts: Sequence[tuple[LLaVARecord, int, str]]) -> Iterator[Found]:
    """Texts that do not come back, one finding a record."""
    if not texts:
        return
    ids = tokenizer([text for _, _, text in texts], add_special_tokens=False, verbose=False)["input_ids"]
    decoded = decode(tokenizer, ids)
    last = None
    for (record, row, text), back in zip(texts, decoded, strict=True):
        if row != last and not _same_text(text, back):
            yield Found("lossy_text", record.id, row, _difference(text, back.strip()))
            last = row


def _same_text(text: str, back: str) -> bool:
    # Some tokenizers compose accents, which loses nothing.
    back = back.strip()
    return text == back or unicodedata.normalize("NFC", text) == unicodedata.normalize("NFC", back)


def _difference(text: str, back: str) -> str:
    place = int(
        next((i for i, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), min(len(text), len(back)))
    )
    start = max(0, place - _SHOWN)
    return f"{text[start : place + _SHOWN]!r} comes back as {back[start : place + _SHOWN]!r}"


def _matches(pattern: re.Pattern[str] | None, text: str) -> re.Match[str] | None:
    return pattern.search(text) if pattern is not None else None


def _around(text: str, part: str) -> str:
    place = text.index(part)
    return repr(text[max(0, place - _SHOWN) : place + len(part) + _SHOWN])
