"""Box files to box stores and back, and the check of a store from end to end."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mg_llava import __version__
from mg_llava.data.boxes._file import write_box_file
from mg_llava.data.boxes._reader import Problems, read_box_records
from mg_llava.data.boxes._table import BoxTable, encode_text, hash_key
from mg_llava.data.boxes._writer import BoxWriter, describe_arrays, index_pictures
from mg_llava.data.records.schema import RecordError
from mg_llava.work.atomic import naming_full_disks, replacing

BadRecord = Literal["error", "drop"]
RecordProgress = Callable[[int], object]

_BLOCK = 1 << 16
_SHOWN = 10


@dataclass
class ConversionReport:
    """What a conversion read and found: counts of the store, its faults, and whether it was written.

    ``pictures`` can be found by their content, ``repeated`` ids came again with the same boxes, which is no fault, and
    ``picture_conflicts`` records have a picture with other boxes under another id.
    """

    records: int = 0
    boxes: int = 0
    pictures: int = 0
    repeated: int = 0
    picture_conflicts: int = 0
    written: bool = False
    problems: Problems = field(default_factory=Problems)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain = {name: value for name, value in vars(self).items() if name != "problems"}
        return {**plain, "problems": dict(self.problems.counts), "messages": self.problems.messages}

    def __str__(self) -> str:
        lines = [f"{self.records} records, {self.boxes} boxes; {self.pictures} pictures can be found by their content"]
        if self.repeated:
            lines.append(f"{self.repeated} ids came again with the same boxes, which is no fault")
        if self.picture_conflicts:
            lines.append(f"{self.picture_conflicts} records have other boxes than a record before of the same picture")
        lines += [f"{count} records {kind}" for kind, count in sorted(self.problems.counts.items())]
        lines += [f"  {message}" for message in self.problems.messages[:_SHOWN]]
        return "\n".join(lines if len(self.problems.messages) <= _SHOWN else [*lines, "  ..."])


def convert_boxes(
    sources: Sequence[str | Path],
    target: str | Path,
    *,
    detector: str | None = None,
    settings: Mapping[str, Any] | None = None,
    image_size: Sequence[int] | None = None,
    bad: BadRecord = "error",
    pictures: Iterable[tuple[str, str, str | None]] = (),
    progress: RecordProgress | None = None,
) -> ConversionReport:
    """Make one store of box files; it may be larger than the memory, which holds its ids alone.

    Args:
        sources: ``.json`` or ``.jsonl`` files; of an id in several, the last counts.
        target: The store; replaced at once when everything was read.
        detector: What found the boxes; with its settings part of the identity of boxes found by picture content.
        settings: Its settings.
        image_size: Width and height that the detector saw pictures in, if it was one.
        bad: ``error`` writes no store if there are faults; ``drop`` leaves faulty records out.
        pictures: Box id, path and content hash of pictures, from ``boxes.hashing.hash_pictures``.
        progress: Called with the number of bytes read since the last call.

    Raises:
        FileNotFoundError: A source does not exist.
        RecordError: A source is truncated or not JSON.
        NoRoomError: The disk is full; what was at the target is unchanged.
    """
    if Path(target).suffix in (".json", ".jsonl"):
        raise ValueError(f"target {target} must not end in .json or .jsonl, which are box files; use .safetensors")
    if any(Path(source).resolve() == Path(target).resolve() for source in sources):
        raise ValueError(f"target {target} is one of the sources")
    report = ConversionReport()
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    with naming_full_disks(Path(target)):  # numbers wait in files there
        writer = BoxWriter(Path(target).parent)
        about = [_add_named(writer, source, report.problems, progress) for source in sources]
        arrays = writer.arrays(report.problems)
    if not report.problems or bad == "drop":  # hashing pictures takes hours, and would be in vain
        report.picture_conflicts = index_pictures(arrays, pictures, report.problems)
    counts = describe_arrays(arrays)
    report.records, report.boxes, report.pictures = (counts[name] for name in ("records", "boxes", "pictures"))
    report.repeated = writer.repeated
    if report.problems and bad == "error":
        return report
    metadata = {
        "detector": detector,
        "settings": dict(settings or {}),
        "image_size": None if image_size is None else list(image_size),
        "sources": about,
        "mg_llava": __version__,
        "dropped": len(report.problems),
        **counts,
    }
    write_box_file(target, arrays, metadata)
    report.written = True
    return report


def read_box_table(path: str | Path, bad: BadRecord = "error") -> tuple[BoxTable, Problems]:
    """A box file in memory; errors as of ``convert_boxes``, and for faulty records where ``bad`` is ``error``."""
    writer, problems = BoxWriter(), Problems()
    about = _add_source(writer, path, problems)
    arrays = writer.arrays(problems)
    table = BoxTable(arrays, {"detector": None, "settings": {}, "sources": [about], **describe_arrays(arrays)})
    if problems and bad == "error":
        raise RecordError(
            f"{path}: {problems}; correct the file or leave them out with bad_box_record='drop' (of several records "
            "with one id, the last is taken)"
        )
    return table, problems


def write_records(table: BoxTable, path: str | Path, progress: RecordProgress | None = None) -> None:
    """Write the records in the reference's layout: a list, or one a line if ``path`` ends in ``.jsonl``.

    Ids become strings; boxes are integers where all boxes of the table are.
    """
    path = Path(path)
    as_lines = path.suffix == ".jsonl"
    with replacing(path, "w") as file:
        for row, raw in enumerate(_raw_records(table)):
            text = json.dumps(raw)
            file.write(f"{text}\n" if as_lines else f"{',' if row else '['}{text}\n")
            if progress is not None:
                progress(1)
        if not as_lines:
            file.write("]\n" if len(table) else "[]\n")


def verify_store(path: str | Path) -> list[str]:
    """Read a store from end to end, and say what is wrong with it.

    Raises:
        FileNotFoundError: There is no such file.
        RecordError: The file cannot be opened as a store, or does not fit its checksums.
    """
    table = BoxTable.open(path)
    arrays, faults = table.arrays, []
    for name in ("key_ends", "box_ends", "label_ends", "key_hashes", "picture_hashes"):
        if (arrays[name][1:] < arrays[name][:-1]).any():
            faults.append(f"{name} is not in order")
    for name, limit in (("key_rows", len(table)), ("picture_rows", len(table)), ("labels", table.metadata["labels"])):
        if len(arrays[name]) and not 0 <= arrays[name].min() <= arrays[name].max() < limit:
            faults.append(f"{name} points beyond the end")
    if any(_has_bad_boxes(arrays, start) for start in range(0, len(arrays["scores"]), _BLOCK)):
        faults.append("there are inverted boxes or values that are not finite")
    if not faults:
        hashes = np.fromiter((hash_key(encode_text(key)) for key in table.keys()), dtype=np.uint64, count=len(table))
        lost = int((hashes[arrays["key_rows"]] != arrays["key_hashes"]).sum())
        faults += [f"{lost} keys are not found by their hash"] if lost else []
    return faults


def _add_named(
    writer: BoxWriter, path: str | Path, problems: Problems, progress: RecordProgress | None
) -> dict[str, Any]:
    """Add a source; problems with it name it."""
    first = len(problems.messages)
    about = _add_source(writer, path, problems, progress)
    problems.messages[first:] = [f"{path}: {text}" for text in problems.messages[first:]]
    return about


def _add_source(
    writer: BoxWriter, path: str | Path, problems: Problems, progress: RecordProgress | None = None
) -> dict[str, Any]:
    """Add a file's good records; returns what the metadata says about the file."""
    digest, size = hashlib.sha256(), 0

    def on_chunk(chunk: bytes) -> None:
        nonlocal size
        digest.update(chunk)
        size += len(chunk)
        if progress is not None:
            progress(len(chunk))

    for key, record, picture_size in read_box_records(path, problems, on_chunk):
        writer.add(key, record, picture_size)
    return {"name": Path(path).name, "bytes": size, "sha256": digest.hexdigest()}


def _raw_records(table: BoxTable) -> Iterator[dict[str, Any]]:
    is_integer = table.arrays["boxes"].dtype.kind == "i"
    for row, key in enumerate(table.keys()):
        record, size = table.record(row), table.image_size(row)
        boxes = record.boxes.astype(np.int64) if is_integer else record.boxes
        raw = {"id": key, "boxes": boxes.tolist(), "scores": record.scores.tolist(), "labels": list(record.labels)}
        raw |= {"tags": list(record.tags)} if record.tags else {}
        yield {**raw, "width": size[0], "height": size[1]} if size else raw


def _has_bad_boxes(arrays: Mapping[str, np.ndarray], start: int) -> bool:
    boxes = arrays["boxes"][start : start + _BLOCK].astype(np.float64)
    scores = arrays["scores"][start : start + _BLOCK].astype(np.float64)
    return bool((boxes[:, 2:] < boxes[:, :2]).any() or not np.isfinite(boxes).all() or not np.isfinite(scores).all())
