"""Boxes against the pictures they belong to: records, places, frames; and what the boxes of a whole source look like.

Frames as in ``mg_llava.data.pictures.frames``; ``n`` boxes of one picture, ``P`` pictures with boxes of one source.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from mg_llava.data.boxes.filter import BoxLimits
from mg_llava.data.boxes.store import frame_problem
from mg_llava.data.records.regions import Region
from mg_llava.data.records.schema import NO_BOXES, BoxRecord
from mg_llava.data.text.coordinates import are_writable
from mg_llava.inspection.doctor.coordinates import Mapped, map_and_return
from mg_llava.inspection.doctor.findings import Found
from mg_llava.inspection.doctor.images import PictureFacts, picture_findings
from mg_llava.inspection.doctor.sources import OpenedSource, UsedRecord

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


@dataclass
class LinkResult:
    """A range of records: pictures and boxes together.

    Attributes:
        mapped: Errors of the way to the canvas and back, of each picture with boxes in it.
        lengths: Ids + visual tokens + boxes of each record; 0 without a text.
        skipped: Rows of the records whose pictures cannot be read.
        box_tokens: Number of boxes that become tokens.
    """

    found: list[Found] = field(default_factory=list)
    statistics: list[BoxStatistics] = field(default_factory=list)
    mapped: list[Mapped] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    skipped: set[int] = field(default_factory=set)
    pictures: int = 0
    boxes: int = 0
    box_tokens: int = 0


class LinkCheck(NamedTuple):
    """The sources, facts of all pictures by path and limit, and evaluation pictures by content."""

    sources: Sequence[OpenedSource]
    facts: Mapping[tuple[str, int | None], PictureFacts]
    evaluation: Mapping[str, str]


def check_links(check: LinkCheck, job: tuple[int, int, int]) -> LinkResult:
    """Check a range of the usable records of a source: its number, start and stop."""
    number, start, stop = job
    source = check.sources[number]
    result = LinkResult()
    for used in source.used[start:stop]:
        drawn, pictures, budget = 0, len(used.images), source.budget_of(used.is_video)
        limits = BoxLimits(bool(used.length) and budget.is_long(used.length, pictures, used.crops))
        known = result.boxes
        if used.is_video and source.table is not None:
            if problem := frame_problem(source.table.find, used.id, pictures):
                result.found.append(Found("boxes_other_frames", used.id, used.row, problem))
        for name, key in zip(used.images, used.box_keys, strict=True):
            if source.has_folder and source.is_outside(name):
                result.found.append(Found("outside_picture", used.id, used.row, name))
                result.skipped.add(used.row)
            facts = check.facts.get((source.path_of(name), source.faults.max_pixels)) if source.has_folder else None
            if facts is not None:
                result.found.extend(_about_picture(check, facts, name, used))
                if facts.fault:
                    result.skipped.add(used.row)
            drawn += _check_boxes(source, facts, key, used, limits, result)
        result.found.extend(_about_regions(check, source, used, result.boxes - known, result.statistics))
        # Without a text there is no sequence.
        room = budget.box_room(used.length, pictures, used.crops) if used.length else None
        if room is not None and drawn > room:
            result.found.append(Found("boxes_cut", used.id, used.row, f"room for {room} of {drawn} boxes"))
            drawn = room
        length = budget.expanded(used.length, pictures, drawn, used.crops) if used.length else 0
        result.lengths.append(length)
        result.pictures += pictures
        result.box_tokens += drawn
    return result


def judge_boxes(
    boxes: np.ndarray, size: tuple[int, int], made_on: tuple[int, int] | None = None, is_turned: bool = False
) -> list[tuple[str, str]]:
    """Judge the boxes of one picture.

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
    if max(size) > _SMALLEST_SIDE and np.abs(boxes).max() <= _SHARE_LIMIT and (boxes != 0).any():
        return [("boxes_normalized", f"the largest coordinate is {boxes.max():g} in a picture of {_by(size)}")]
    turned = size[::-1]
    if made_on is not None and made_on != size:
        kind = "boxes_other_orientation" if is_turned and made_on == turned else "boxes_other_size"
        return [(kind, f"made on {_by(made_on)}, the picture has {_by(size)}")]
    reach = f"boxes reach ({boxes[:, 2].max():g}, {boxes[:, 3].max():g}) in a picture of {_by(size)}"
    if not _fit(boxes, size) and _fit(boxes, turned):
        return [("boxes_other_orientation" if is_turned else "boxes_swapped", reach)]
    found = []
    corners, ends, limits = boxes[:, :2], boxes[:, 2:], np.array(size, dtype=np.float64)
    beyond = (boxes < 0).any(axis=1) | (ends > limits).any(axis=1)
    outside = beyond & ((corners >= limits).any(axis=1) | (ends <= 0).any(axis=1))
    over = (boxes < -1).any(axis=1) | (ends > limits + 1).any(axis=1)
    if (ends.max(axis=0) / limits).max() >= _FAR and over.sum() * 2 > len(boxes):
        return [("boxes_other_size", reach)]
    if outside.any():
        example = boxes[outside][0].tolist()
        found.append(("box_outside", f"{outside.sum()} of {len(boxes)} boxes, such as {example}, {reach}"))
    if (over & ~outside).any():
        found.append(("box_overhang", f"{(over & ~outside).sum()} of {len(boxes)} boxes; {reach}"))
    return found


def judge_values(record: BoxRecord) -> Iterator[tuple[str, str]]:
    """Judge scores and sides of the boxes of one picture; kinds of findings with details."""
    wild = (record.scores < 0) | (record.scores > 1 + _ROUNDING)
    if wild.any():
        yield "score_range", f"{wild.sum()} of {len(record)} scores, such as {record.scores[wild][0]:g}"
    flat = (record.boxes[:, 2:] == record.boxes[:, :2]).any(axis=1)
    if flat.any():
        yield "flat_box", f"{flat.sum()} of {len(record)} boxes, such as {record.boxes[flat][0].tolist()}"


def measure_boxes(boxes: np.ndarray, size: tuple[int, int], kinds: set[str]) -> BoxStatistics:
    """Statistics of the (n, 4) boxes of a picture of this size, about which ``kinds`` were found."""
    as_is, swapped = _fit(boxes, size), _fit(boxes, size[::-1])
    corners, sides = boxes[:, :2], boxes[:, 2:]
    return BoxStatistics(
        width=size[0],
        height=size[1],
        reach_x=float(boxes[:, 2].max()),
        reach_y=float(boxes[:, 3].max()),
        is_share="boxes_normalized" in kinds,
        fits_only_swapped=swapped and not as_is,
        fits_only_as_is=as_is and not swapped,
        is_other_size="boxes_other_size" in kinds,
        boxes=len(boxes),
        as_xywh=_count_inside(corners, corners + sides, size),
        as_cxcywh=_count_inside(corners - sides / 2, corners + sides / 2, size),
    )


def _about_picture(check: LinkCheck, facts: PictureFacts, name: str, used: UsedRecord) -> Iterator[Found]:
    yield from picture_findings(facts, name, used.id, used.row)
    if facts.content and facts.content in check.evaluation:
        yield Found("eval_leak", used.id, used.row, f"{name} is the same as {check.evaluation[facts.content]}")


def _about_regions(
    check: LinkCheck, source: OpenedSource, used: UsedRecord, boxes: int, statistics: list[BoxStatistics]
) -> Iterator[Found]:
    """Judge the regions that a record names; without its own they are ``boxes`` boxes of the box file.

    Where there is no box file, ``statistics`` are of them.
    """
    if not used.regions and used.named > boxes:
        yield Found("placeholder_count", used.id, used.row, f"{used.named} regions are named, there are {boxes} boxes")
    by_size: dict[tuple[int, int], list[Region]] = {}
    for number, region in enumerate(used.regions if source.has_folder else ()):
        facts = check.facts.get((source.path_of(used.images[region.picture]), source.faults.max_pixels))
        if facts is None or facts.fault:
            continue
        size = facts.upright_size(source.apply_exif)
        by_size.setdefault(size, []).append(region)
        try:
            box = region.in_pixels(size).box
        except ValueError as error:
            yield Found("object_convention", used.id, used.row, f"object {number}: {error}")
            continue
        yield from _about_region(used, f"object {number}, {list(box)}, in a picture of {_by(size)}", box, size)
    for size, regions in by_size.items():
        array = np.array([region.box for region in regions if not region.of]).reshape(-1, 4)
        if source.table is None and len(array):
            statistics.append(measure_boxes(array, size, {kind for kind, _ in judge_boxes(array, size)}))


def _about_region(
    used: UsedRecord, detail: str, box: tuple[float, float, float, float], size: tuple[int, int]
) -> Iterator[Found]:
    (x1, y1, x2, y2), (width, height) = box, size
    if not are_writable(np.array([box])).all():
        yield Found("flat_box", used.id, used.row, detail)
    if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
        yield Found("box_outside", used.id, used.row, detail)
    elif min(x1, y1) < -1 or x2 > width + 1 or y2 > height + 1:
        yield Found("box_overhang", used.id, used.row, detail)


def _check_boxes(
    source: OpenedSource, facts: PictureFacts | None, key: str, used: UsedRecord, limits: BoxLimits, result: LinkResult
) -> int:
    """Check the boxes of one picture, and their way to the canvas and back; returns the number of box tokens."""
    table, row, record = source.table, None, NO_BOXES
    if table is not None:
        row = table.find(key)
        if row is None and facts is not None and facts.content and table.has_pictures:
            row = table.find_picture(facts.content)
        if row is not None:
            record = table.record(row)
        elif key not in source.bad_boxes or source.findings.level("bad_boxes") != "error":
            result.found.append(Found("missing_boxes", used.id, used.row, f"no record with id {key!r}"))
    result.boxes += len(record)
    if facts is None or facts.fault:
        return 0
    size = facts.upright_size(source.apply_exif)
    if table is not None and row is not None:
        odd = judge_boxes(record.boxes, size, table.image_size(row), facts.orientation >= 5)
        result.found.extend(Found(kind, used.id, used.row, detail) for kind, detail in [*odd, *judge_values(record)])
        if len(record):
            result.statistics.append(measure_boxes(record.boxes, size, {kind for kind, _ in odd}))
    if not hasattr(source.processor, "place"):
        return 0
    processor = source.processor.of_frames if used.is_video else source.processor
    mapped = map_and_return(processor, record, size, limits)
    if mapped.compared:
        result.mapped.append(mapped)
    return mapped.tokens


def _count_inside(corners: np.ndarray, ends: np.ndarray, size: tuple[int, int]) -> int:
    """How many of n boxes lie in a picture, but for a pixel; their (n, 2) first and last corners."""
    return int(((corners >= -1) & (ends <= np.array(size) + 1)).all(axis=1).sum())


def _fit(boxes: np.ndarray, size: tuple[int, int]) -> bool:
    """Tell whether all of (n, 4) boxes lie in a picture of this size, but for what a detector adds at the edges."""
    limits = np.array(size, dtype=np.float64)
    slack = np.maximum(_LEAST_SLACK, _SLACK * limits)
    return bool((boxes[:, :2] >= -slack).all() and (boxes[:, 2:] <= limits + slack).all())


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
