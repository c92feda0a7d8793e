"""Typed records, and the one validator of records in LLaVA format and of box records."""

import difflib
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from mg_llava.data.records.regions import Region, count_regions, regions_of
from mg_llava.data.records.turns import VIDEO_SUFFIXES, Turn, answered_turns, expand_video
from mg_llava.tokens import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER

SCHEMA_VERSION = 5
"""Raised when a record stands for something else than before, or another one is refused: it voids caches."""

_ROLES = ("human", "gpt")
_OWN_KEYS = ("id", "image", "video", "conversations", "objects")
_OTHER_TEXTS = ("system", "system_prompt", "instruction", "history", "messages", "tools")
"""Keys of other formats whose text would belong to the conversation."""

_SHOWN = 80
_OTHER_MEDIA = ("videos", "audio", "audios", "frames", "images", "pictures", "point_cloud", "pcd")


class RecordError(ValueError):
    """A record that cannot be used; the message names file and record and says what to do, ``kind`` is for counts."""

    def __init__(self, message: str, kind: str = "malformed") -> None:
        super().__init__(message)
        self.kind = kind


class PlaceholderError(RecordError):
    """A record that is well-formed but for the number of its placeholders."""


@dataclass(frozen=True)
class LLaVARecord:
    """One sample: a conversation about no, one or several pictures, or about a video.

    ``images`` holds paths relative to the image folder, in the order of the placeholders. ``video`` is such a path; of
    a record about a video ``images`` is empty until :meth:`with_frames` has its frames. ``regions`` are what
    ``<box:i>`` and ``<object:i>`` stand for; without any, the boxes of its box file.
    """

    id: str
    images: tuple[str, ...]
    turns: tuple[Turn, ...]
    video: str | None = None
    regions: tuple[Region, ...] = ()

    def with_frames(self, frames: int) -> "LLaVARecord":
        """A record about a video as one about so many pictures, whose placeholders stand side by side."""
        if self.video is None:
            return self
        return replace(self, images=(self.video,) * frames, turns=tuple(expand_video(self.turns, frames)))

    @property
    def box_keys(self) -> list[str]:
        """Ids of the boxes of each picture: the record's id, or ``id#0``, ``id#1``... of several and of frames."""
        is_alone = len(self.images) == 1 and self.video is None
        return [self.id] if is_alone else [f"{self.id}#{number}" for number in range(len(self.images))]


@dataclass(frozen=True)
class BoxRecord:
    """The boxes of one picture: (n, 4) float64 xyxy in original pixels, (n,) scores and n labels, parallel.

    ``tags`` were looked for in this picture. Build it with ``make_box_record``, which checks.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: tuple[str, ...]
    tags: tuple[str, ...] = field(default=(), kw_only=True)

    def __len__(self) -> int:
        return len(self.labels)


NO_BOXES = BoxRecord(np.zeros((0, 4)), np.zeros(0), ())
"""A picture without boxes."""


def make_box_record(
    boxes: Any,
    scores: Sequence[float] | None = None,
    labels: Sequence[str] | None = None,
    owner: str = "boxes",
    tags: Sequence[str] | None = None,
) -> BoxRecord:
    """Check and pack the boxes of one picture.

    Args:
        boxes: n boxes, xyxy in original pixels.
        scores: n scores; 1 for every box where None.
        labels: n labels; empty strings where None.
        owner: Whose boxes they are, for messages.
        tags: Of the picture.

    Raises:
        RecordError: Lists of unequal length, values that are not finite numbers, or x2 < x1 or y2 < y1.
    """
    try:
        array = np.array(boxes, dtype=np.float64).reshape(-1, 4) if len(boxes) else np.zeros((0, 4))
        score_array = np.ones(len(array)) if scores is None else np.array(scores, dtype=np.float64).reshape(-1)
        label_tuple = ("",) * len(array) if labels is None else tuple(str(label) for label in labels)
        counts = (len(boxes), len(score_array), len(label_tuple))
    except (TypeError, ValueError, OverflowError) as error:
        raise RecordError(f"{owner}: boxes must be lists of four numbers, scores numbers ({error})") from error
    if len(set(counts)) != 1 or counts[0] != len(array):
        kind = "malformed" if len(set(counts)) == 1 else "with lists of unequal length"
        found = f"found {counts[0]} boxes, {counts[1]} scores, {counts[2]} labels"
        raise RecordError(f"{owner}: {found}; they are parallel", kind)
    if not (np.isfinite(array).all() and np.isfinite(score_array).all()):
        raise RecordError(f"{owner}: boxes and scores must be finite numbers", "with values that are not finite")
    inverted = np.flatnonzero((array[:, 2:] < array[:, :2]).any(axis=1))
    if len(inverted):
        raise RecordError(
            f"{owner}: box {inverted[0]} is {array[inverted[0]].tolist()}; boxes are [x1, y1, x2, y2] in pixels of "
            "the original picture, with x1 <= x2 and y1 <= y2",
            "with inverted boxes",
        )
    return BoxRecord(array, score_array, label_tuple, tags=tuple(map(str, tags or ())))


def parse_record(raw: Any, source: str = "record", index: int = 0) -> LLaVARecord:
    """Check one record in LLaVA format.

    Args:
        raw: ``{"id": str | int, "image": str | list (optional), "conversations": [{"from", "value"}, ...]}``, with
            ``video``, a path, in place of ``image`` for a conversation about a video, and ``objects`` where the text
            names regions (see ``records.regions``). Other keys are metadata and ignored, unless they name other media
            or look like a misspelled key.
        source: The file, for messages.
        index: Place of the record in the file, for messages.

    Raises:
        RecordError: The record is of an unknown kind or malformed, or its placeholders do not match its pictures.
    """
    where = f"{source}, record {index}"
    if not isinstance(raw, Mapping):
        raise RecordError(f"{where}: found a {type(raw).__name__}; a record is an object with id and conversations")
    if not isinstance(raw.get("id"), str | int) or isinstance(raw.get("id"), bool):
        raise RecordError(
            f"{where}: id is {show_value(raw.get('id'))}; every record needs an id, a string or an integer"
        )
    record_id = str(raw["id"])
    where = f"{where} (id {show_value(record_id)})"
    _check_kind(raw, where)
    images, video = _parse_images(raw.get("image"), where), _parse_video(raw.get("video"), where)
    turns = _parse_turns(raw["conversations"], where)
    record = LLaVARecord(record_id, images, turns, video)
    if not _is_unicode([record.id, *record.images, video or "", *(turn.text for turn in record.turns)]):
        raise RecordError(f"{where}: half of a surrogate pair stands in the text, which is no Unicode; mend the text")
    _check_placeholders(record, where)
    try:
        return replace(record, regions=regions_of(turns, raw.get("objects"), len(images)))
    except ValueError as error:
        raise RecordError(f"{where}: {error}") from error


def show_value(value: Any) -> str:
    """A value as it stands in messages, at most 80 characters of it."""
    text = repr(value[:_SHOWN]) if isinstance(value, str) else reprlib.repr(value)
    return text if len(text) <= _SHOWN + 2 else f"{text[:_SHOWN]}..."


class Measure(NamedTuple):
    """What a data set knows of a record without keeping it."""

    id: str
    characters: int
    """Of the turns that are encoded, plus one; 0 where no question has an answer."""
    pictures: int
    """-1 for a video, whose frames are as many as the data set takes."""
    is_silent: bool
    """Whether an answer is empty."""
    crops: int = 0
    """Object images in questions."""
    boxes: int = 0
    """Coordinates of regions in questions."""


def measure_record(raw: Any, source: str = "record", index: int = 0) -> Measure:
    """Check one record and measure it: ``parse_record`` in a third of the time, for the start of a run.

    Raises:
        RecordError: As ``parse_record``.
    """
    measure = _measure_plain(raw)
    if measure is None:
        record = parse_record(raw, source, index)
        turns = answered_turns(record.turns)
        characters = sum(len(turn.text) for turn in turns) + 1 if turns else 0
        is_silent = any(turn.role == "gpt" and not turn.text.strip() for turn in turns)
        pictures = len(record.images) if record.video is None else -1
        measure = Measure(record.id, characters, pictures, is_silent, *count_regions(turns))
    return measure


def _measure_plain(raw: Any) -> Measure | None:
    """Measure a record that is well-formed and plain; None leaves it to ``parse_record``."""
    if type(raw) is not dict or not _are_plain(tuple(raw)):
        return None
    record_id, image, turns = raw["id"], raw.get("image"), raw["conversations"]
    if raw.get("video") or (type(image) is str and image.lower().endswith(VIDEO_SUFFIXES)):
        return None
    if type(record_id) not in (str, int) or not (image is None or type(image) is str) or type(turns) is not list:
        return None
    # Turns up to the last answer count; those after it wait for the next answer.
    characters = placeholders = waiting = waiting_placeholders = 0
    asked = answered = is_silent = False
    for turn in turns:
        if type(turn) is not dict:
            return None
        role, text = turn.get("from"), turn.get("value")
        if type(text) is not str or "<box:" in text or "<object:" in text:
            return None
        if role == "human":
            if VIDEO_PLACEHOLDER in text:
                return None
            asked = True
            waiting += len(text)
            waiting_placeholders += text.count(IMAGE_PLACEHOLDER)
        elif role == "gpt":
            if asked:
                answered = True
                is_silent = is_silent or not text or text.isspace()
                characters += waiting + len(text)
                placeholders += waiting_placeholders
                waiting = waiting_placeholders = 0
        else:
            return None
    pictures = 1 if image else 0
    texts = [str(record_id), image or "", *(turn["value"] for turn in turns)]
    if (answered and placeholders != pictures) or "\0" in texts[1] or not _is_unicode(texts):
        return None
    return Measure(str(record_id), characters + 1 if answered else 0, pictures, is_silent)


@lru_cache(maxsize=1024)
def _are_plain(keys: tuple[Any, ...]) -> bool:
    """Whether a record with these keys needs no closer look at them."""
    others = [key for key in keys if key not in _OWN_KEYS]
    if not {"id", "conversations"} <= set(keys):
        return False
    special = (*_OTHER_MEDIA, *_OTHER_TEXTS)
    return not any(key in special or (isinstance(key, str) and _similar_key(key)) for key in others)


def _check_kind(raw: Mapping[str, Any], where: str) -> None:
    unused = [key for key in raw if key not in _OWN_KEYS]
    for key in unused:
        if key in _OTHER_MEDIA and raw[key] not in (None, "", []):
            hint = "; 'image' may be a list" if key in ("images", "pictures") else ""
            raise RecordError(f"{where}: unknown kind of record, with key {key!r}; text and 'image' are known{hint}")
        if key in _OTHER_TEXTS and raw[key] not in (None, "", [], {}):
            raise RecordError(
                f"{where}: key {key!r} beside the conversations, {show_value(raw[key])}, would be lost; write it into "
                "the turns, a system text before the first question, or remove the key"
            )
        if isinstance(key, str) and key not in _OTHER_MEDIA:
            meant = _similar_key(key)
            if meant is not None and meant not in raw:
                raise RecordError(f"{where}: unknown key {show_value(key)}; is {meant!r} meant?")
    if "conversations" not in raw:
        raise RecordError(
            f"{where}: unknown kind of record, with keys {show_value(sorted(map(str, raw)))}; "
            "'conversations' is needed"
        )


@lru_cache(maxsize=1024)
def _similar_key(key: str) -> str | None:
    """The key of ours that ``key`` looks like, if any."""
    return next(iter(difflib.get_close_matches(key.lower(), _OWN_KEYS, 1, 0.8)), None)


def _parse_images(value: Any, where: str) -> tuple[str, ...]:
    images = [value] if isinstance(value, str) else value
    if value is None or value == "":
        images = []
    if _holds_bytes(images):
        raise RecordError(f"{where}: image holds the bytes of a picture; write them to a file and give its path")
    if not isinstance(images, list) or not all(isinstance(image, str) and image for image in images):
        raise RecordError(f"{where}: image is {show_value(value)}; it must be a path or a list of paths")
    if any("\0" in image for image in images):
        raise RecordError(f"{where}: image is {show_value(value)}; a path cannot contain a NUL character")
    if films := [image for image in images if image.lower().endswith(VIDEO_SUFFIXES)]:
        raise RecordError(f"{where}: image is {show_value(films[0])}; the path of a video stands under 'video'")
    return tuple(images)


def _parse_video(value: Any, where: str) -> str | None:
    if value and (not isinstance(value, str) or "\0" in value):
        raise RecordError(f"{where}: video is {show_value(value)}; it must be the path of one video")
    return value or None


def _holds_bytes(value: Any) -> bool:
    """Whether this is a picture as tables of the datasets library have it: bytes, or bytes beside a path."""
    if isinstance(value, list):
        return any(map(_holds_bytes, value))
    return isinstance(value, bytes) or (isinstance(value, Mapping) and bool(value.get("bytes")))


def _is_unicode(texts: Iterable[str]) -> bool:
    """Whether texts can be written in UTF-8; JSON may hold halves of surrogate pairs, which cannot."""
    try:
        return all(text.isascii() or text.encode() is not None for text in texts)
    except UnicodeEncodeError:
        return False


def _parse_turns(value: Any, where: str) -> tuple[Turn, ...]:
    if not isinstance(value, list):
        raise RecordError(f"{where}: conversations is a {type(value).__name__}; it must be a list of turns")
    turns = []
    for number, turn in enumerate(value):
        role, text = (turn.get("from"), turn.get("value")) if isinstance(turn, Mapping) else (None, None)
        if role not in _ROLES or not isinstance(text, str):
            raise RecordError(
                f"{where}: turn {number} is {show_value(turn)}; a turn is {{'from': 'human' or 'gpt', 'value': text}}"
            )
        turns.append(Turn(role, text))
    return tuple(turns)


def _check_placeholders(record: LLaVARecord, where: str) -> None:
    questions = [turn.text for turn in answered_turns(record.turns) if turn.role == "human"]
    if not questions:
        return
    found, videos = (sum(text.count(mark) for text in questions) for mark in (IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER))
    if record.images and record.video is not None:
        raise RecordError(f"{where}: there are 'image' and 'video'; a record is about one of them")
    if found != len(record.images):
        raise PlaceholderError(
            f"{where}: {found} {IMAGE_PLACEHOLDER} in the questions, {len(record.images)} pictures; write one "
            f"{IMAGE_PLACEHOLDER} per picture into the human turns that have an answer"
        )
    if videos != (record.video is not None):
        raise PlaceholderError(
            f"{where}: {videos} {VIDEO_PLACEHOLDER} in the questions, {int(record.video is not None)} videos; write "
            f"one {VIDEO_PLACEHOLDER} where there is a video into a human turn that has an answer"
        )
