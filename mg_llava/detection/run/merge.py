"""The end of a run: see that nothing is missing, and write the store, the ledger of failures and the report."""

import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mg_llava import __version__
from mg_llava.data.boxes._file import write_box_file
from mg_llava.data.boxes._reader import Problems
from mg_llava.data.boxes._writer import BoxWriter, describe_arrays, index_pictures
from mg_llava.data.boxes.convert import verify_store
from mg_llava.data.records.open import open_records
from mg_llava.data.records.schema import NO_BOXES, BoxRecord, make_box_record
from mg_llava.detection.run.plan import BoxPlan
from mg_llava.detection.run.report import BoxTally
from mg_llava.detection.run.settings import JobSettings
from mg_llava.detection.run.sources import PictureSource
from mg_llava.work.atomic import naming_full_disks, replacing, write_json
from mg_llava.work.journal import read_record

STORE, LEDGER, REPORT = "boxes.safetensors", "failures.jsonl", "report.json"
"""Names of the results in the folder of a run."""

_KEPT_LINES = 1024


class Incomplete(ValueError):
    """A run that was not finished; the message says what is missing."""


class Outcome(NamedTuple):
    """The result for a key's picture: boxes, or why there are none; ``is_known`` is False where a file lacks it."""

    key: str
    picture: int
    record: BoxRecord | None
    failure: Mapping[str, Any]
    is_known: bool = True


class Results:
    """The results of a finished run.

    Raises:
        Incomplete: Something was not done.
    """

    def __init__(self, settings: JobSettings) -> None:
        self.work = settings.work
        is_planned = (self.work / "plan.npz").is_file()
        self.sources = open_records(self.work / "sources.jsonl") if is_planned else ()
        reading = settings.read_step(len(self.sources))
        if not is_planned or reading.open_tasks():
            raise Incomplete(f"{self.work}: not all pictures were read yet; start the run again to continue")
        self.plan = BoxPlan.load(self.work / "plan.npz")
        if len(self.sources) != len(self.plan.starts) - 1:
            raise ValueError(f"{self.work}: sources.jsonl and plan.npz are not of one run; remove the folder")
        self._unreadable = {number: result for number, result in reading.results() if "error" in result}
        step = settings.detect_step(len(self.plan))
        self._per_line, self._lines = step.per_line, step.index()
        missing = sum(len(step.items(line)) for line in range(step.line_count) if line not in self._lines)
        if missing:
            found = f"{missing} of {len(self.plan)} pictures have no result yet"
            raise Incomplete(f"{self.work}: {found}; start the run again to continue")
        self._line = functools.lru_cache(maxsize=_KEPT_LINES)(self._read_line)

    def unique(self, number: int) -> dict[str, Any]:
        """The result of a content."""
        return self._line(number // self._per_line)[number % self._per_line]

    def entries(self) -> Iterator[tuple[PictureSource, list[Outcome]]]:
        """The outcomes of each entry of the input, in its order; of a video one for each frame."""
        left = set(range(len(self.sources)))
        for keys, number in open_records(self.work / "keys.jsonl"):
            left.discard(number)
            source = PictureSource(*self.sources[number])
            first = int(self.plan.starts[number])
            yield source, [self._outcome(key, number, first + part) for part, key in enumerate(keys)]
        if left:
            raise ValueError(f"{self.work}: keys.jsonl lacks {len(left)} pictures of sources.jsonl; remove the folder")

    def _outcome(self, key: str, number: int, picture: int) -> Outcome:
        unique = int(self.plan.unique_of[picture])
        result = self._unreadable[number] if unique < 0 else self.unique(unique)
        if "error" in result:
            return Outcome(key, picture, None, result)
        boxes, scores, labels = (result[name] for name in ("boxes", "scores", "labels"))
        record = make_box_record(boxes, scores, labels, f"id {key!r}", result.get("names"))
        return Outcome(key, picture, record, {}, not result.get("unknown"))

    def _read_line(self, number: int) -> list[dict[str, Any]]:
        return read_record(self._lines[number])["results"]


def merge(settings: JobSettings) -> dict[str, Any]:
    """Write ``boxes.safetensors``, ``failures.jsonl`` and ``report.json`` of a finished run; returns the report.

    Raises:
        Incomplete: The run was not finished.
        RuntimeError: The store does not read back.
        NoRoomError: The disk is full.
    """
    out = Path(settings.out)
    results, tally = Results(settings), BoxTally()
    for unique in range(len(results.plan)):
        tally.add(results.unique(unique))
    writer, problems, failed = BoxWriter(out), Problems(), 0
    with replacing(out / LEDGER, "w") as ledger:
        for source, outcomes in results.entries():
            tally.keys += len(outcomes)
            tally.unknown += [outcome.key for outcome in outcomes if not outcome.is_known]
            for outcome in outcomes:
                if outcome.record is not None:
                    writer.add(outcome.key, outcome.record, results.plan.size(outcome.picture))
            for line in _failures(source, outcomes):
                failed += line["pictures"]
                tally.add_failure(line)
                ledger.write(json.dumps(line) + "\n")
    with naming_full_disks(out / STORE):
        arrays = writer.arrays(problems)
    index_pictures(arrays, _contents(results) if settings.by_content() else (), problems)
    counts = describe_arrays(arrays)
    metadata = {
        "detector": settings.detector_name(),
        "settings": settings.identity()["pipeline"],
        "image_size": None,
        "sources": [{"name": Path(path).name} for path in settings.inputs],
        "mg_llava": __version__,
        "dropped": failed,
        **counts,
    }
    write_box_file(out / STORE, arrays, metadata)
    faults = verify_store(out / STORE)
    if faults:
        raise RuntimeError(f"{out / STORE} does not read back: {'; '.join(faults)}; is the disk in order?")
    report = tally.report(settings.detector_name(), len(results.plan), counts, problems, writer.repeated)
    write_json(out / REPORT, report)
    return report


def write_reference(results: Results, path: str | Path) -> None:
    """Write boxes as the reference's tools did: a JSON list, boxes cut to integers, videos with their frames.

    Pictures that failed are left out; failed frames of a video have no boxes.
    """
    with replacing(path, "w") as file:
        separator = "["
        for source, outcomes in results.entries():
            good = [outcome for outcome in outcomes if outcome.record is not None]
            rows = [{"id": outcome.key, **_reference_record(outcome.record)} for outcome in good]
            if good and source.kind == "video":
                frames = [_reference_record(outcome.record) for outcome in outcomes]
                rows = [{"id": outcomes[0].key.rpartition("#")[0], "video": source.path, "frames": frames}]
            for row in rows:
                file.write(f"{separator}{json.dumps(row)}\n")
                separator = ","
        file.write("]\n" if separator == "," else "[]\n")


def _reference_record(record: BoxRecord | None) -> dict[str, Any]:
    record = NO_BOXES if record is None else record
    boxes = record.boxes.astype(np.int64).tolist()
    return {"boxes": boxes, "scores": record.scores.tolist(), "labels": list(record.labels)}


def _failures(source: PictureSource, outcomes: list[Outcome]) -> Iterator[dict[str, Any]]:
    """Lines of the ledger; one for a source that cannot be read at all."""
    failed = [(outcome.key, outcome.failure, 1) for outcome in outcomes if outcome.failure]
    if len(failed) == len(outcomes) > 1 and len({str(reason) for _, reason, _ in failed}) == 1:
        failed = [(failed[0][0].rpartition("#")[0], failed[0][1], len(failed))]
    for key, failure, pictures in failed:
        reason, fault = failure["error"], failure["fault"]
        yield {"id": key, "picture": source.path, "pictures": pictures, "fault": fault, "reason": reason}


def _contents(results: Results) -> Iterator[tuple[str, str, str | None]]:
    """Key, path and content hash of every picture with boxes."""
    for source, outcomes in results.entries():
        for outcome in outcomes:
            if outcome.record is not None:
                yield outcome.key, source.path, results.plan.content(outcome.picture)
