"""Settings of a run: its inputs, its pipeline, and how its work is cut into lines and tasks."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mg_llava.data.choices import wrong_choice
from mg_llava.data.pictures.geometry import BoxMode
from mg_llava.data.records.formats import RecordFormat
from mg_llava.detection.run.sources import SourceReader, default_folder
from mg_llava.detection.run.steps import BoxStep
from mg_llava.registry import DETECTORS, TAGGERS

_FORMAT = 2
"""Of the folder ``work``; folders of other formats are refused."""
_READ_LINE = 32
_READ_LINES = 8
_LATER = {"outside_pictures": "error", "record_format": "llava", "mode": "reference"}
"""Settings that older runs did not have, with what these did."""


@dataclass(frozen=True)
class JobSettings:
    """Settings of a run.

    Attributes:
        inputs: See ``sources.list_entries``.
        out: Folder of the run.
        pipeline: Config of the ``BoxPipeline``, plain values.
        images: Folder that paths are relative to; None for the input's folder.
        batch_size: Pictures that go through the networks together.
        task_batches: Batches of a task, which one process does.
        frames: Frames of a video.
        apply_exif: Turn pictures as their EXIF orientation says; boxes are for the turned picture then.
        mode: Colors of 16-bit gray and transparent pictures, as the picture processor of the model has it.
        outside_pictures: ``error`` refuses pictures outside of that folder, ``allow`` reads them.
        record_format: What the records of record files are.
        workers: Threads of a process that decode; None for one per core, 16 at most.
    """

    inputs: Sequence[str]
    out: str
    pipeline: Mapping[str, Any]
    images: str | None = None
    batch_size: int = 8
    task_batches: int = 16
    frames: int = 8
    apply_exif: bool = False
    mode: BoxMode = "reference"
    outside_pictures: Literal["error", "allow"] = "error"
    record_format: RecordFormat = "llava"
    workers: int | None = None

    def __post_init__(self) -> None:
        if min(self.batch_size, self.task_batches, self.frames) < 1:
            raise ValueError("batch_size, task_batches and frames must be at least 1")
        for wrong in wrong_choice("mode", self.mode, BoxMode):
            raise ValueError(wrong)

    @property
    def work(self) -> Path:
        """Folder of what is kept to continue the run."""
        return Path(self.out) / "work"

    @property
    def threads(self) -> int:
        """Number of threads that decode."""
        return self.workers or min(16, os.cpu_count() or 1)

    def identity(self) -> dict[str, Any]:
        """The settings that must be the same in all processes and after an interruption, as plain values.

        Devices are left out, as processes may have different ones.
        """
        kept = {k: v for k, v in asdict(self).items() if k not in ("out", "workers", *_LATER)}
        kept |= {name: getattr(self, name) for name, usual in _LATER.items() if getattr(self, name) != usual}
        sizes = [os.path.getsize(path) if os.path.isfile(path) else None for path in self.inputs]
        kept["inputs"] = [str(path) for path in self.inputs]
        plain = json.loads(json.dumps({**kept, "bytes": sizes, "format": _FORMAT}))
        for part in plain["pipeline"].values():
            if isinstance(part, dict):
                part.pop("device", None)
        return plain

    def detector_name(self) -> str:
        """Names of tagger and detector, for the store."""
        parts = [self.pipeline.get("tagger"), self.pipeline["detector"]]
        return " + ".join([part["type"].rpartition(".")[2] for part in parts if part])

    def by_content(self) -> bool:
        """Tell whether equal pictures get equal boxes, from the config, as no model is needed for it."""
        parts = [(DETECTORS, self.pipeline["detector"]), (TAGGERS, self.pipeline.get("tagger"))]
        return not any(getattr(registry.get(part["type"]), "needs_names", False) for registry, part in parts if part)

    def reader(self) -> SourceReader:
        """The reader of the pictures."""
        folder = self.images or default_folder(self.inputs)
        return SourceReader(folder, self.frames, self.apply_exif, self.outside_pictures == "allow", self.mode)

    def read_step(self, count: int) -> BoxStep:
        """The step that reads all ``count`` sources."""
        return BoxStep(self.work / "read", count, _READ_LINE, _READ_LINES)

    def detect_step(self, count: int) -> BoxStep:
        """The step that detects in all ``count`` different pictures."""
        return BoxStep(self.work / "detect", count, self.batch_size, self.task_batches)
