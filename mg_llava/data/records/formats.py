"""Records of other projects as records in LLaVA format: ms-swift's, and ShareGPT's under its many column names.

Whatever would be lost is refused; a system text goes before the first question, as it has no place of its own here.
"""

import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

from mg_llava.data.records.schema import RecordError, show_value

RecordFormat = Literal["llava", "ms-swift", "sharegpt"]
"""``llava``: as in data/README.md. ``ms-swift``: ``messages``, ``images`` and ``objects``, whose ``bbox`` are pixels,
or shares of 1 or 1000 by ``bbox_type``. ``sharegpt``: turns under ``conversations``, ``conversation`` or ``messages``.
"""

_FORMATS: tuple[str, ...] = get_args(RecordFormat)
_TURNS = ("messages", "conversations", "conversation")
_ROLES = {"user": "human", "human": "human", "assistant": "gpt", "gpt": "gpt", "bot": "gpt", "system": "system"}
_LOST = ("audios", "audio", "tools", "rejected_response", "rejected_messages", "rejected", "chosen", "label")
"""Keys that would change what is learned."""
_SCALES = {"real": None, "norm1": 1, "norm1000": 1000}
_MARKS = re.compile("<ref-object>|<bbox>")


def to_llava(raw: Any, form: RecordFormat, source: str = "record", index: int = 0) -> Any:
    """A record in LLaVA format, to be checked by ``parse_record``; its id is its place where it has none.

    Args:
        raw: A record.
        form: What it is.
        source: The file, for messages.
        index: Place of the record in the file.

    Raises:
        RecordError: It is of another format, or holds what would be lost.
    """
    if form not in _FORMATS:
        raise RecordError(f"format is {form!r}; allowed: {', '.join(_FORMATS)}")
    if form == "llava" or not isinstance(raw, Mapping):
        return raw
    try:
        return _convert(raw, form, index)
    except _Refused as error:
        raise RecordError(f"{source}, record {index}: {error}{other_format(raw, form)}") from None


def other_format(raw: Any, form: RecordFormat) -> str:
    """A hint where a record that cannot be used seems to be of another format; else nothing."""
    found = detect_format(raw)
    return f"; it looks like format={found!r}" if found not in (None, form) else ""


def detect_format(raw: Any) -> RecordFormat | None:
    """The format that a record seems to have; None where it is none of them."""
    if not isinstance(raw, Mapping):
        return None
    objects, turns = raw.get("objects"), next((raw[key] for key in _TURNS if raw.get(key)), None)
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        return None
    if isinstance(objects, Mapping) or any(_MARKS.search(str(turn.get("content", ""))) for turn in turns):
        return "ms-swift"
    first = turns[0] if turns else {}
    if "conversations" in raw and "from" in first and "id" in raw and not raw.get("images") and not raw.get("system"):
        return "llava" if all(turn.get("from") in ("human", "gpt") for turn in turns) else "sharegpt"
    if "messages" in raw and "role" in first and not raw.get("conversations"):
        return "ms-swift"
    return "sharegpt" if first.keys() & {"from", "role", "human", "user"} else None


class _Refused(Exception):
    """Why a record cannot be converted."""


def _convert(raw: Mapping[str, Any], form: str, index: int) -> dict[str, Any]:
    for key in _LOST:
        if raw.get(key) not in (None, "", [], {}):
            raise _Refused(f"key {key!r}, {show_value(raw[key])}, would be lost; remove it, or the record")
    turns = list(_read_turns(raw))
    images = _paths(raw, "image")
    record: dict[str, Any] = {"id": raw["id"] if raw.get("id") is not None else str(index), "image": images}
    if raw.get("objects") not in (None, "", [], {}):
        if form != "ms-swift":
            raise _Refused("there are 'objects', which ms-swift's records have; set format='ms-swift'")
        boxes, refs = _read_objects(raw["objects"], len(images))
        record["objects"] = boxes
        turns = _place_objects(turns, len(boxes), refs)
    elif form == "ms-swift" and any(_MARKS.search(text) for _, text in turns):
        raise _Refused("<bbox> or <ref-object> stand in the text, but there are no objects")
    if videos := _paths(raw, "video"):
        if len(videos) > 1:
            raise _Refused(f"{len(videos)} videos; a record is about one")
        record["video"] = videos[0]
    record["conversations"] = [{"from": role, "value": text} for role, text in turns]
    return record


def _read_turns(raw: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Roles and texts, with the system's text in front of the first question."""
    given = [key for key in _TURNS if raw.get(key) not in (None, [])]
    if len(given) != 1 or not isinstance(raw[given[0]], list):
        found = ", ".join(given) or f"keys {show_value(sorted(map(str, raw)))}"
        raise _Refused(f"one list of turns is needed, under {', '.join(_TURNS)}; found {found}")
    system = raw.get("system") or ""
    if not isinstance(system, str):
        raise _Refused(f"system is {show_value(system)}; it is text")
    for number, turn in enumerate(raw[given[0]]):
        for role, text in _read_turn(turn, number):
            if role == "system":
                if number:
                    raise _Refused(f"turn {number} is of the system; only the first may be")
                system = "\n".join(filter(None, (system, text)))
                continue
            if role == "human" and system:
                text, system = f"{system}\n{text}", ""
            yield role, text


def _read_turn(turn: Any, number: int) -> Iterator[tuple[str, str]]:
    """One turn; or two of ms-swift's pairs of question and answer."""
    if not isinstance(turn, Mapping):
        raise _Refused(f"turn {number} is {show_value(turn)}; a turn is an object")
    if turn.get("loss") in (False, 0) and turn.get("loss") is not None:
        raise _Refused(f"turn {number} shall be without loss; all answers are learned here: remove 'loss' or the turn")
    role, text = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    pairs = [(role, text)] if role is not None else [(key, turn[key]) for key in _ROLES if key in turn]
    for role, text in pairs:
        if not (isinstance(role, str) and role in _ROLES and isinstance(text, str)):
            known = ", ".join(_ROLES)
            raise _Refused(f"turn {number} is {show_value(turn)}; a turn is text of one of {known}")
        yield _ROLES[role], text
    if not pairs:
        raise _Refused(f"turn {number} is {show_value(turn)}; it has neither role nor from")


def _paths(raw: Mapping[str, Any], kind: str) -> list[Any]:
    """Paths of pictures or videos, under a key in singular or plural."""
    given = [raw[key] for key in (f"{kind}s", kind) if raw.get(key) not in (None, "", [])]
    if len(given) > 1:
        raise _Refused(f"there are {kind!r} and {kind + 's'!r}; one of them is enough")
    values = given[0] if given else []
    values = [values] if isinstance(values, str | Mapping) else values
    if not isinstance(values, Sequence):
        raise _Refused(f"{kind}s is {show_value(values)}; it is a list of paths")
    return [_path(value) for value in values]


def _path(value: Any) -> Any:
    """A path, also of the pairs of path and bytes of the datasets library; the checks of records refuse the rest."""
    if isinstance(value, Mapping) and isinstance(value.get("path"), str) and not value.get("bytes"):
        return value["path"]
    return value


def _read_objects(objects: Any, pictures: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Boxes as the records here have them, and what ``<ref-object>`` stands for."""
    if not isinstance(objects, Mapping):
        raise _Refused(f"objects is a {type(objects).__name__}; ms-swift's is {{'ref': [...], 'bbox': [...]}}")
    if unknown := sorted(set(map(str, objects)) - {"ref", "bbox", "bbox_type", "image_id"}):
        raise _Refused(f"objects has {show_value(unknown)}; known are ref, bbox, bbox_type and image_id")
    refs, boxes = objects.get("ref") or [], objects.get("bbox") or []
    places, kind = objects.get("image_id") or [], objects.get("bbox_type") or "real"
    if not all(isinstance(part, list) for part in (refs, boxes, places)) or str(kind) not in _SCALES:
        known = ", ".join(_SCALES)
        raise _Refused(f"ref, bbox and image_id are lists, bbox_type one of {known}; found {show_value(kind)}")
    places = places or [0] * len(boxes)
    if not all(isinstance(ref, str) for ref in refs) or len(places) != len(boxes):
        raise _Refused(f"{len(boxes)} bbox, {len(places)} image_id; they are parallel, and each ref is text")
    if any(isinstance(box, list) and len(box) == 2 for box in boxes):
        raise _Refused("a bbox is a point; only boxes [x1, y1, x2, y2] are known")
    labels = refs if len(refs) == len(boxes) else [""] * len(boxes)
    scale = {} if _SCALES[kind] is None else {"of": _SCALES[kind]}
    rows = zip(boxes, labels, places, strict=True)
    return [{"box": box, "label": label, "picture": place, **scale} for box, label, place in rows], refs


def _place_objects(turns: Sequence[tuple[str, str]], boxes: int, refs: Sequence[str]) -> list[tuple[str, str]]:
    """Turns with ``<box:i>`` for ms-swift's ``<bbox>``, and words for its ``<ref-object>``, in their order."""
    waiting = {"<bbox>": deque(f"<box:{number}>" for number in range(boxes)), "<ref-object>": deque(refs)}

    def place(mark: re.Match[str]) -> str:
        if not waiting[mark[0]]:
            raise _Refused(f"there are more {mark[0]} in the text than in objects")
        return waiting[mark[0]].popleft()

    placed = [(role, _MARKS.sub(place, text)) for role, text in turns]
    for name, left in waiting.items():
        used = any(name in text for _, text in turns)
        if used and left:
            raise _Refused(f"there are fewer {name} in the text than in objects, {len(left)} are left")
    return placed
