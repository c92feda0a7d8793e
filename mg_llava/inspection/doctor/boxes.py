"""Boxes against the pictures they belong to: records, places, frames; and what the boxes of a whole source look like.

Frames as in ``mg_llava.data.pictures.frames``; ``n`` boxes of one picture, ``P`` pictures with boxes of one source.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from mg_llava.data.boxes.filter import Limits
from mg_llava.data.boxes.store import picture_keys
from mg_llava.data.records.schema import NO_BOXES, BoxRecord
from mg_llava.inspection.doctor.coordinates import Mapped, map_and_return
from mg_llava.inspection.doctor.findings import Found
from mg_llava.inspection.doctor.images import PictureFacts, picture_findings
from mg_llava.inspection.doctor.sources import Source
from mg_llava.inspection.doctor.texts import UsedRecord

_SHARE_LIMIT = 1.5
"""Largest coordinate of boxes that are shares of the picture: 1, and what detectors add at the edges."""
_SMALLEST_SIDE = 16
_SLACK = 0.05
_LEAST_SLACK = 2.0
_ROUNDING = 1e-3
_FAR = 1.25
"""Boxes that reach this many times the picture's side are no detector's overhang."""


class BoxStatistics(NamedTuple):
    """One picture's boxes, for the judgment of the whole source; sides and reaches in original pixels.

    ``as_xywh`` and ``as_cxcywh`` are the numbers of boxes that would also lie in the picture if their last two numbers
    were width and height, beside the corner or the center.
    """

    width: float
    height: float
    reach_x: float
    reach_y: float
    is_share: bool
    fits_only_swapped: bool
    fits_only_as_is: bool
    is_other_size: bool
    boxes: int
    as_xywh: int
    as_cxcywh: int


class LinkResult(NamedTuple):
    """Findings of a range of records, about pictures and boxes together.

    Attributes:
        found: The findings.
        statistics: Of each picture with boxes.
        mapped: Errors of the way to the canvas and back, of each picture with boxes in it.
        tokens: (row, ids + visual tokens + boxes) of each record.
        skipped: Places of the records whose pictures cannot be read.
        pictures: Number of pictures.
        boxes: Number of boxes, and of boxes that become tokens.
    """

    found: list[Found]
    statistics: list[BoxStatistics]
    mapped: list[Mapped]
    tokens: list[tuple[int, int]]
    skipped: list[int]
    pictures: int
    boxes: tuple[int, int]


@dataclass
class LinkCheck:
    """What the jobs share: the sources, their usable records, facts of all pictures, and evaluation pictures."""

    sources: Sequence[Source]
    used: Sequence[Sequence[UsedRecord]]
    facts: Mapping[tuple[str, int | None], PictureFacts]
    evaluation: Mapping[str, str] = field(default_factory=dict)


def check_links(check: LinkCheck, job: tuple[int, int, int]) -> LinkResult:
    """Check a range of the usable records of a source.

    Args:
        check: See the class.
        job: Number of the source, and start and stop in its usable records.
    """
    number, start, stop = job
    source = check.sources[number]
    result = LinkResult([], [], [], [], [], 0, (0, 0))
    pictures = boxes = kept = 0
    for used in check.used[number][start:stop]:
        count, drawn = 0, 0
        limits = Limits(bool(used.length) and source.budget.is_long(used.length, len(used.images)))
        for name, key in zip(used.images, picture_keys(used.id, len(used.images)), strict=True):
            if source.has_folder and source.is_outside(name):
                result.found.append(Found("outside_picture", used.id, used.row, name))
                result.skipped.append(used.row)
            facts = _facts_of(check, source, name)
            if facts is not None:
                result.found.extend(_about_picture(check, facts, name, used))
                if facts.fault:
                    result.skipped.append(used.row)
            in_file, as_tokens = _about_boxes(source, facts, key, used, limits, result)
            count, drawn = count + in_file, drawn + as_tokens
        # Without a text there is no sequence.
        room = source.budget.box_room(used.length, len(used.images)) if used.length else None
        if room is not None and drawn > room:
            result.found.append(Found("boxes_cut", used.id, used.row, f"room for {room} of {drawn} boxes"))
            drawn = room
        length = source.budget.expanded(used.length, len(used.images), drawn) if used.length else 0
        result.tokens.append((used.row, length))
        pictures, boxes, kept = pictures + len(used.images), boxes + count, kept + drawn
    return result._replace(pictures=pictures, boxes=(boxes, kept))


def judge_boxes(
    boxes: np.ndarray, size: tuple[int, int], made_on: tuple[int, int] | None = None, is_turned: bool = False
) -> list[tuple[str, str]]:
    """What is odd about the boxes of one picture.

    Args:
        boxes: (n, 4) xyxy, said to be in pixels of the picture.
        size: Width and height of the picture as the model sees it.
        made_on: Width and height of the picture that the boxes were made on, where known.
        is_turned: Whether the file's EXIF orientation swaps width and height.

    Returns:
        Kinds of findings with details.
    """
    if not len(boxes):
        return []
    if _are_shares(boxes, size):
        return [("boxes_normalized", f"the largest coordinate is {boxes.max():g} in a picture of {_by(size)}")]
    turned = size[::-1]
    if made_on is not None and made_on != size:
        kind = "boxes_other_orientation" if is_turned and made_on == turned else "boxes_other_size"
        return [(kind, f"made on {_by(made_on)}, the picture has {_by(size)}")]
    reach = f"boxes reach ({boxes[:, 2].max():g}, {boxes[:, 3].max():g}) in a picture of {_by(size)}"
    if not _fit(boxes, size) and _fit(boxes, turned):
        return [("boxes_other_orientation" if is_turned else "boxes_swapped", reach)]
    found = []
    limits = np.array([*size, *size], dtype=np.float64)
    beyond = (boxes < 0).any(axis=1) | (boxes[:, 2:] > limits[2:]).any(axis=1)
    outside = beyond & ((boxes[:, :2] >= limits[:2]).any(axis=1) | (boxes[:, 2:] <= 0).any(axis=1))
    over = (boxes < -1).any(axis=1) | (boxes[:, 2:] > limits[2:] + 1).any(axis=1)
    if (boxes[:, 2:].max(axis=0) / limits[2:]).max() >= _FAR and over.sum() * 2 > len(boxes):
        return [("boxes_other_size", reach)]
    if outside.any():
        first = int(np.flatnonzero(outside)[0])
        found.append(
            ("box_outside", f"{outside.sum()} of {len(boxes)} boxes, such as {boxes[first].tolist()}, {reach}")
        )
    if (over & ~outside).any():
        found.append(("box_overhang", f"{(over & ~outside).sum()} of {len(boxes)} boxes; {reach}"))
    return found


def _facts_of(check: LinkCheck, source: Source, name: str) -> PictureFacts | None:
    if not source.has_folder:
        return None
    return check.facts.get((source.path_of(name), source.faults.max_pixels))


def _about_picture(check: LinkCheck, facts: PictureFacts, name: str, used: UsedRecord) -> Iterator[Found]:
    yield from picture_findings(facts, name, used.id, used.row)
    if facts.content and facts.content in check.evaluation:
        yield Found("eval_leak", used.id, used.row, f"{name} is the same as {check.evaluation[facts.content]}")


def _about_boxes(
    source: Source, facts: PictureFacts | None, key: str, used: UsedRecord, limits: Limits, result: LinkResult
) -> tuple[int, int]:
    """Check the boxes of one picture; returns their number, and the number of box tokens."""
    if source.table is None:
        return 0, _tokens(source, facts, NO_BOXES, limits, result)
    row = source.table.find(key)
    if row is None and facts is not None and facts.content and source.table.has_pictures:
        row = source.table.find_picture(facts.content)
    if row is None:
        if not (key in source.bad_boxes and source.findings.level("bad_boxes") == "error"):
            result.found.append(Found("missing_boxes", used.id, used.row, f"no record with id {key!r}"))
        return 0, _tokens(source, facts, NO_BOXES, limits, result)
    record = source.table.record(row)
    if facts is not None and not facts.fault:
        size = facts.probe.upright_size(source.apply_exif)
        odd = judge_boxes(record.boxes, size, source.table.image_size(row), facts.orientation >= 5)
        result.found.extend(Found(kind, used.id, used.row, detail) for kind, detail in [*odd, *judge_values(record)])
        if len(record):
            result.statistics.append(_statistics(record.boxes, size, {kind for kind, _ in odd}))
    return len(record), _tokens(source, facts, record, limits, result)


def _tokens(source: Source, facts: PictureFacts | None, record: BoxRecord, limits: Limits, result: LinkResult) -> int:
    """Number of box tokens of a picture; notes the errors of the way to the canvas and back."""
    if facts is None or facts.fault or not hasattr(source.processor, "place"):
        return 0
    mapped = map_and_return(source.processor, record, facts.probe.upright_size(source.apply_exif), limits)
    if mapped.compared:
        result.mapped.append(mapped)
    return mapped.tokens


def _statistics(boxes: np.ndarray, size: tuple[int, int], kinds: set[str]) -> BoxStatistics:
    as_is, swapped = _fit(boxes, size), _fit(boxes, size[::-1])
    return BoxStatistics(
        size[0],
        size[1],
        float(boxes[:, 2].max()),
        float(boxes[:, 3].max()),
        "boxes_normalized" in kinds,
        swapped and not as_is,
        as_is and not swapped,
        "boxes_other_size" in kinds,
        len(boxes),
        int(_lie_inside(boxes[:, :2], boxes[:, :2] + boxes[:, 2:], size).sum()),
        int(_lie_inside(boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2, size).sum()),
    )


def judge_values(record: BoxRecord) -> Iterator[tuple[str, str]]:
    """What is odd about scores and sides of the boxes of one picture; kinds of findings with details."""
    wild = (record.scores < 0) | (record.scores > 1 + _ROUNDING)
    if wild.any():
        yield "score_range", f"{wild.sum()} of {len(record)} scores, such as {record.scores[wild][0]:g}"
    flat = (record.boxes[:, 2:] == record.boxes[:, :2]).any(axis=1)
    if flat.any():
        yield "flat_box", f"{flat.sum()} of {len(record)} boxes, such as {record.boxes[flat][0].tolist()}"


def _lie_inside(corners: np.ndarray, ends: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(n,) bool: which of n boxes lie in a picture, but for a pixel; their (n, 2) first and last corners."""
    inside = np.concatenate([corners >= -1, ends <= np.array(size) + 1], axis=1)  # (n, 4)
    return np.logical_and.reduce(inside, axis=1)


def _are_shares(boxes: np.ndarray, size: tuple[int, int]) -> bool:
    return max(size) > _SMALLEST_SIDE and bool(np.abs(boxes).max() <= _SHARE_LIMIT) and bool((boxes != 0).any())


def _fit(boxes: np.ndarray, size: tuple[int, int]) -> bool:
    """Whether all of (n, 4) boxes lie in a picture of this size, but for what a detector adds at the edges."""
    limits = np.array(size, dtype=np.float64)
    slack = np.maximum(_LEAST_SLACK, _SLACK * limits)
    return bool((boxes[:, :2] >= -slack).all() and (boxes[:, 2:] <= limits + slack).all())


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
