"""The work of one process of a run: read the sources of a line, or detect in the pictures of one."""

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
from mmengine.logging import print_log

from mg_llava.data.boxes.filter import filter_boxes
from mg_llava.data.pictures.files import PictureError, content_hash
from mg_llava.data.records.open import open_records
from mg_llava.detection.detector import Size
from mg_llava.detection.pipeline import BoxPipeline, Detection, Prepared
from mg_llava.detection.run.plan import BoxPlan
from mg_llava.detection.run.settings import JobSettings
from mg_llava.detection.run.sources import PictureSource, SourceReader
from mg_llava.detection.tags import PictureName
from mg_llava.work.prefetch import prefetched

_AHEAD = 3
_TOO_MANY = 50

WorkKind = Literal["read", "detect"]
Done = tuple[int, list[dict[str, Any]]]
"""Number of a line and its results."""


class Worker:
    """Does the lines of a run; networks are built, and files opened, when they are first needed."""

    def __init__(self, settings: JobSettings) -> None:
        self.settings = settings
        self._failed = 0

    @cached_property
    def _pipeline(self) -> BoxPipeline:
        return BoxPipeline(**self.settings.pipeline)

    @cached_property
    def _reader(self) -> SourceReader:
        return self.settings.reader()

    @cached_property
    def _sources(self) -> Sequence[Any]:
        return open_records(self.settings.work / "sources.jsonl")

    @cached_property
    def _plan(self) -> BoxPlan:
        return BoxPlan.load(self.settings.work / "plan.npz")

    def shapes(self, sizes: Sequence[Size]) -> list[str]:
        """Texts for sizes, equal for those that go through the detector together."""
        return [repr(self._pipeline.shape(size)) for size in sizes]

    def do_task(self, task: tuple[WorkKind, Sequence[int]]) -> list[Done]:
        """The results of the lines of a task."""
        return list(self.do(*task))

    def do(self, kind: WorkKind, lines: Iterable[int]) -> Iterator[Done]:
        """The results of lines of a step; pictures are decoded ahead, in threads."""
        threads = self.settings.threads
        if kind == "read":
            items = self.settings.read_step(len(self._sources)).items
            yield from prefetched(lines, items, self._look, threads, _AHEAD)
            return
        detect_items = self.settings.detect_step(len(self._plan)).items

        def group(line: int) -> list[list[tuple[int, int]]]:
            # Frames of one video are decoded together.
            places = [self._plan.source_of(unique) for unique in detect_items(line)]
            return [list(places) for _, places in itertools.groupby(places, key=lambda place: place[0])]

        for line, loaded in prefetched(lines, group, self._load, threads, _AHEAD):
            yield line, self._detect([picture for pictures in loaded for picture in pictures])

    def _look(self, number: int) -> dict[str, Any]:
        """Content hashes and sizes of a source's pictures, or why they cannot be read."""
        source = PictureSource(*self._sources[number])
        try:
            images = self._reader.open(source)
            if len(images) != source.parts:
                raise PictureError(
                    f"id {source.id!r}: {len(images)} pictures are there, {source.parts} were announced"
                )
        except PictureError as error:
            return _failure(error)
        return {"pictures": [[content_hash(image), *image.size] for image in images]}

    def _load(self, places: list[tuple[int, int]]) -> list[Prepared | Exception]:
        """Pictures of one source, by source and number in it, or why they cannot be read."""
        source = PictureSource(*self._sources[places[0][0]])
        try:
            images, name = self._reader.open(source), PictureName(source.id, source.path)
            return [self._pipeline.prepare(images[part], name) for _, part in places]
        except Exception as error:  # whatever is wrong with one picture must not end the run
            return [error] * len(places)

    def _detect(self, pictures: Sequence[Prepared | Exception]) -> list[dict[str, Any]]:
        """Boxes of a batch; pictures that fail are results too, unless too many in a row do."""
        found = iter(self._detect_ready([picture for picture in pictures if isinstance(picture, Prepared)]))
        return [_failure(item) if isinstance(item, Exception) else next(found) for item in pictures]

    def _detect_ready(self, ready: Sequence[Prepared]) -> list[dict[str, Any]]:
        if not ready:
            return []
        try:
            results = [_plain(detection) for detection in self._pipeline.detect(ready)]
        except Exception as error:  # of any library; each picture gets a try of its own
            if len(ready) > 1:
                print_log(f"a batch failed ({error}); one by one now", logger="current", level=logging.WARNING)
                return [self._detect_ready([picture])[0] for picture in ready]
            self._failed += 1
            if self._failed >= _TOO_MANY:
                raise RuntimeError(
                    f"the detector failed on {_TOO_MANY} pictures in a row, at last with {type(error).__name__}: "
                    f"{error}; what was done before is kept: correct this and start again"
                ) from error
            return [_failure(error)]
        self._failed = 0
        return results


def _failure(error: Exception) -> dict[str, Any]:
    """A result that says what went wrong."""
    fault = error.fault if isinstance(error, PictureError) else type(error).__name__
    return {"error": str(error) or type(error).__name__, "fault": fault}


def _plain(detection: Detection) -> dict[str, Any]:
    """Boxes for JSON, in single precision; ``kept`` counts those that training keeps by default."""
    record = detection.record
    return {
        **({} if detection.is_known else {"unknown": True}),
        "boxes": record.boxes.astype(np.float32).astype(float).tolist(),
        "scores": record.scores.astype(np.float32).astype(float).tolist(),
        "labels": list(record.labels),
        "tags": None if detection.tags is None else len(detection.tags),
        **({"names": list(record.tags)} if record.tags else {}),
        "kept": len(filter_boxes(record.boxes, record.scores, record.labels).kept),
    }
