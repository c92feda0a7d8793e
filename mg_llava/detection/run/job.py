"""The job: list the pictures, read them all once, plan, detect; each step shared by all processes.

Folder of a run:

* ``work/run.json``: what the run is about; another run with other settings is refused.
* ``work/sources.jsonl``, ``work/keys.jsonl``: what there is to look at, and the keys that get the boxes.
* ``work/plan.npz``: each content once, in the order in which batches take them.
* ``work/STEP/``: the queue and the results of a step.
* ``boxes.safetensors``, ``failures.jsonl``, ``report.json``: see ``merge``.

Which pictures form a batch is planned, so that results depend neither on the number of processes nor on interruptions.
"""

import itertools
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import print_log

from mg_llava.data.boxes.filter import filter_boxes
from mg_llava.data.pictures.files import PictureError, content_hash
from mg_llava.data.records.open import open_records
from mg_llava.detection.pipeline import BoxPipeline, Detection, Prepared
from mg_llava.detection.run.plan import Plan, make_plan
from mg_llava.detection.run.sources import Source, SourceReader, default_folder, list_entries
from mg_llava.detection.run.steps import Step, once
from mg_llava.detection.tags import PictureName

Progress = Callable[[str, int, int], object]
"""Called with the name of the step, the number of items that are done in all processes, and of all."""

_READ_LINE = 32
_READ_LINES = 8
_TOO_MANY = 50


@dataclass(frozen=True)
class JobSettings:
    """What a run is about.

    Attributes:
        inputs: See ``sources.list_entries``.
        out: Folder of the run.
        pipeline: Config of the ``BoxPipeline``, plain values.
        images: Folder that paths are relative to; None for the input's folder.
        batch_size: Pictures that go through the networks together.
        task_batches: Batches that a process claims at a time.
        frames: Frames of a video.
        apply_exif: Turn pictures as their EXIF orientation says; boxes are for the turned picture then.
        workers: Threads that decode; None for one per core, 16 at most.
        stale_after: Seconds without a sign of life after which the work of a process on another host is taken over.
    """

    inputs: Sequence[str]
    out: str
    pipeline: Mapping[str, Any]
    images: str | None = None
    batch_size: int = 8
    task_batches: int = 16
    frames: int = 8
    apply_exif: bool = False
    workers: int | None = None
    stale_after: float = 300.0

    @property
    def work(self) -> Path:
        """Folder of what the run keeps to go on from."""
        return Path(self.out) / "work"

    def identity(self) -> dict[str, Any]:
        """What must be the same in all processes and after an interruption, as plain values.

        Devices are left out, as processes may have different ones.
        """
        kept = {k: v for k, v in asdict(self).items() if k not in ("out", "workers", "stale_after")}
        sizes = [os.path.getsize(path) if os.path.isfile(path) else None for path in self.inputs]
        plain = json.loads(json.dumps({**kept, "inputs": [str(path) for path in self.inputs], "bytes": sizes}))
        for part in plain["pipeline"].values():
            if isinstance(part, dict):
                part.pop("device", None)
        return plain

    def detector_name(self) -> str:
        """Names of tagger and detector, for the store."""
        parts = [self.pipeline.get("tagger"), self.pipeline["detector"]]
        return " + ".join(part["type"].rpartition(".")[2] for part in parts if part)

    def by_content(self) -> bool:
        """Whether equal pictures get equal boxes; told from the config, as no model is needed for it."""
        from mg_llava.registry import DETECTORS, TAGGERS

        parts = [(DETECTORS, self.pipeline["detector"]), (TAGGERS, self.pipeline.get("tagger"))]
        return not any(getattr(registry.get(part["type"]), "needs_names", False) for registry, part in parts if part)

    def read_step(self, count: int) -> Step:
        """The step that reads all ``count`` sources."""
        return Step(self.work / "read", count, _READ_LINE, _READ_LINES, self.stale_after)

    def detect_step(self, count: int) -> Step:
        """The step that detects in all ``count`` different pictures."""
        return Step(self.work / "detect", count, self.batch_size, self.task_batches, self.stale_after)


class BoxJob:
    """A process's part in a run.

    Args:
        settings: What the run is about.
        progress: For a progress bar.

    Raises:
        FileNotFoundError: An input does not exist.
        ValueError: The folder holds a run with other settings, or the settings are malformed.
    """

    def __init__(self, settings: JobSettings, progress: Progress | None = None) -> None:
        if min(settings.batch_size, settings.task_batches, settings.frames) < 1:
            raise ValueError("batch_size, task_batches and frames must be at least 1")
        self.settings = settings
        self.work = settings.work
        self._progress = progress or (lambda *_: None)
        self.reader = make_reader(settings)
        self.workers = settings.workers or min(16, os.cpu_count() or 1)
        self._check_run()

    def run(self) -> None:
        """Do what there is to do, together with the other processes, until boxes of all pictures are on disk."""
        pipeline = BoxPipeline(
            **self.settings.pipeline
        )  # first, so that a wrong path is known before hours of reading
        once(self.work / "list", self._list, self.settings.stale_after)
        sources = open_records(self.work / "sources.jsonl")
        reading = self.settings.read_step(len(sources))
        reading.run(
            list,
            lambda number: self._read(Source(*sources[number])),
            list,
            self.workers,
            lambda done, count: self._progress("read", done, count),
        )
        once(self.work / "plan", lambda: self._plan(sources, reading, pipeline), self.settings.stale_after)
        self._detect(sources, Plan.load(self.work / "plan.npz"), pipeline)

    def _check_run(self) -> None:
        """Begin a run, or see that the folder's run is this one."""
        for given in self.settings.inputs:
            if not os.path.exists(given):
                raise FileNotFoundError(f"input {given} does not exist")
        self.work.mkdir(parents=True, exist_ok=True)
        path, wanted = self.work / "run.json", self.settings.identity()
        if not path.exists():
            part = path.with_name(f"run.{os.getpid()}.part")
            part.write_text(json.dumps(wanted, indent=1))
            os.replace(part, path)
        found = json.loads(path.read_text())
        if found != wanted:
            names = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
            changes = "; ".join(f"{name} was {found.get(name)!r}, is {wanted.get(name)!r}" for name in names)
            raise ValueError(f"{path} is of another run ({changes}); use another output folder, or remove this one")

    def _list(self) -> None:
        """Write down all sources, each once, and the keys that get their boxes."""
        by_content = self.settings.by_content()
        numbers: dict[Any, int] = {}
        parts = [self.work / f"{name}.jsonl.part" for name in ("sources", "keys")]
        with parts[0].open("w") as sources, parts[1].open("w") as keys:
            for entry in list_entries(self.settings.inputs, self.reader.folder, self.settings.frames):
                source = entry.source
                identity = source.identity if by_content else (*source.identity, source.id)
                if identity not in numbers:
                    numbers[identity] = len(numbers)
                    sources.write(json.dumps(source) + "\n")
                keys.write(json.dumps([entry.keys, numbers[identity]]) + "\n")
        if not numbers:
            raise ValueError(f"{', '.join(map(str, self.settings.inputs))}: there is no picture")
        for part in parts:
            os.replace(part, part.with_suffix(""))

    def _read(self, source: Source) -> dict[str, Any]:
        """Content hashes and sizes of a source's pictures, or why they cannot be read."""
        try:
            images = self.reader.open(source)
            if len(images) != source.parts:
                raise PictureError(
                    f"id {source.id!r}: {len(images)} pictures are there, {source.parts} were announced"
                )
        except PictureError as error:
            return failure(error)
        return {"pictures": [[content_hash(image), *image.size] for image in images]}

    def _plan(self, sources: Sequence[Any], reading: Step, pipeline: BoxPipeline) -> None:
        parts = [Source(*raw).parts for raw in sources]
        by_content = self.settings.by_content()
        make_plan(parts, reading.results(), pipeline.shape, by_content).save(self.work / "plan.npz")

    def _detect(self, sources: Sequence[Any], plan: Plan, pipeline: BoxPipeline) -> None:
        """Detect in all pictures, each content once."""

        def group(items: Iterable[int]) -> list[list[tuple[int, int]]]:
            # Frames of one video are decoded together.
            places = [plan.source_of(unique) for unique in items]
            return [list(places) for _, places in itertools.groupby(places, key=lambda place: place[0])]

        def load(places: list[tuple[int, int]]) -> list[Prepared | Exception]:
            source = Source(*sources[places[0][0]])
            try:
                images = self.reader.open(source)
                name = PictureName(source.id, source.path)
                return [pipeline.prepare(images[part], name) for _, part in places]
            except Exception as error:  # whatever is wrong with one picture must not end the run
                return [error] * len(places)

        detector = _SafeDetector(pipeline)
        self.settings.detect_step(len(plan)).run(
            group,
            load,
            lambda loaded: detector([picture for pictures in loaded for picture in pictures]),
            self.workers,
            lambda done, count: self._progress("detect", done, count),
        )


class _SafeDetector:
    """Boxes of a batch as plain values; pictures that fail are results too, unless too many in a row do."""

    def __init__(self, pipeline: BoxPipeline) -> None:
        self.pipeline = pipeline
        self._failed = 0

    def __call__(self, pictures: Sequence[Prepared | Exception]) -> list[dict[str, Any]]:
        found = iter(self._detect([picture for picture in pictures if isinstance(picture, Prepared)]))
        return [failure(item) if isinstance(item, Exception) else next(found) for item in pictures]

    def _detect(self, ready: Sequence[Prepared]) -> list[dict[str, Any]]:
        if not ready:
            return []
        try:
            results = [_plain(detection) for detection in self.pipeline.detect(ready)]
        except Exception as error:  # of any library; each picture gets a try of its own
            if len(ready) > 1:
                print_log(f"a batch failed ({error}); one by one now", logger="current", level=logging.WARNING)
                return [self._detect([picture])[0] for picture in ready]
            self._failed += 1
            if self._failed >= _TOO_MANY:
                raise RuntimeError(
                    f"the detector failed on {_TOO_MANY} pictures in a row, at last with {type(error).__name__}: "
                    f"{error}; what was done before is kept: correct this and start again"
                ) from error
            return [failure(error)]
        self._failed = 0
        return results


def make_reader(settings: JobSettings) -> SourceReader:
    """What opens the pictures of a run."""
    folder = settings.images or default_folder(settings.inputs)
    return SourceReader(folder, settings.frames, settings.apply_exif)


def failure(error: Exception) -> dict[str, Any]:
    """A result that says what went wrong."""
    fault = error.fault if isinstance(error, PictureError) else type(error).__name__
    return {"error": str(error) or type(error).__name__, "fault": fault}


def _plain(detection: Detection) -> dict[str, Any]:
    """Boxes for JSON, in single precision; ``kept`` counts those that training keeps by default."""
    record = detection.record
    return {
        "boxes": record.boxes.astype(np.float32).astype(float).tolist(),
        "scores": record.scores.astype(np.float32).astype(float).tolist(),
        "labels": list(record.labels),
        "tags": None if detection.tags is None else len(detection.tags),
        "kept": len(filter_boxes(record.boxes, record.scores, record.labels).kept),
    }
