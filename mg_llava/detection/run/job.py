"""The job: list the pictures, read them all once, plan, detect; the work is done by an engine.

Folder of a run:

* ``work/run.json``: what the run is about; another run with other settings is refused.
* ``work/sources.jsonl``, ``work/keys.jsonl``: what there is to look at, and the keys that get the boxes.
* ``work/read``, ``work/detect``: journals with the results of a step.
* ``work/plan.npz``: each content once, in the order in which batches take them.
* ``boxes.safetensors``, ``failures.jsonl``, ``report.json``: see ``merge``.

Which pictures form a batch is planned, so that results depend neither on the engine nor on interruptions.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from mg_llava.data.records.open import open_records
from mg_llava.detection.run.engines import DetectionEngine
from mg_llava.detection.run.plan import BoxPlan, make_box_plan
from mg_llava.detection.run.settings import JobSettings
from mg_llava.detection.run.sources import PictureSource, list_entries
from mg_llava.detection.run.steps import BoxStep
from mg_llava.detection.run.worker import WorkKind
from mg_llava.work.atomic import replacing, write_json
from mg_llava.work.json_text import load_object
from mg_llava.work.urls import local_file

StepProgress = Callable[[str, int, int], object]
"""Called with the name of the step, the number of items that are done as far as this process knows, and of all."""


class BoxJob:
    """A process's part in a run; the work is done by an engine, or by this process alone.

    Raises:
        FileNotFoundError: An input does not exist.
        ValueError: The folder holds a run with other settings.
    """

    def __init__(
        self, settings: JobSettings, progress: StepProgress | None = None, engine: DetectionEngine | None = None
    ) -> None:
        self.settings = settings
        self.work = settings.work
        self.engine = engine or DetectionEngine(settings)
        self._progress = progress or (lambda *_: None)
        self.engine.on_main(self._check_run)

    def run(self) -> None:
        """Do what there is to do, until boxes of all pictures are on disk."""
        engine = self.engine
        engine.on_main(lambda: engine.shapes([]))
        engine.on_main(self._list)
        sources = open_records(self.work / "sources.jsonl")
        reading = self.settings.read_step(len(sources))
        self._do("read", reading)
        engine.on_main(lambda: self._plan(sources, reading))
        self._do("detect", self.settings.detect_step(len(BoxPlan.load(self.work / "plan.npz"))))

    def _do(self, kind: WorkKind, step: BoxStep) -> None:
        """Do what is open of a step."""
        tasks = self.engine.on_main(step.open_tasks)

        def work() -> None:
            done = step.count - sum(len(step.items(line)) for task in tasks for line in task)
            self._progress(kind, done, step.count)
            with step.journal() as journal:
                for results in self.engine.do(kind, self.engine.share(tasks)):
                    journal.append({"line": line, "results": found} for line, found in results)
                    done += sum(len(found) for _, found in results)
                    self._progress(kind, done, step.count)

        self.engine.together(work)

    def _check_run(self) -> None:
        """Begin a run, or see that the folder's run is this one."""
        for given in self.settings.inputs:
            if not local_file(given).exists():
                raise FileNotFoundError(f"input {given} does not exist")
        path, wanted = self.work / "run.json", self.settings.identity()
        if not path.exists():
            write_json(path, wanted)
        try:
            found = load_object(path)
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}); use another output folder, or remove this one") from error
        names = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        if names:
            changes = "; ".join(f"{name} was {found.get(name)!r}, is {wanted.get(name)!r}" for name in names)
            raise ValueError(f"{path} is of another run ({changes}); use another output folder, or remove this one")

    def _list(self) -> None:
        """Write down all sources, each once, and the keys that get their boxes; the keys' file is complete last."""
        settings = self.settings
        if (self.work / "keys.jsonl").exists():
            return
        by_content = settings.by_content()
        folder = settings.reader().folder
        numbers: dict[Any, int] = {}
        with replacing(self.work / "keys.jsonl", "w") as keys, replacing(self.work / "sources.jsonl", "w") as sources:
            for entry in list_entries(settings.inputs, folder, settings.frames, settings.record_format):
                source = entry.source
                identity = source.identity if by_content else (*source.identity, source.id)
                if identity not in numbers:
                    numbers[identity] = len(numbers)
                    sources.write(json.dumps(source) + "\n")
                keys.write(json.dumps([entry.keys, numbers[identity]]) + "\n")
            if not numbers:
                raise ValueError(f"{', '.join(map(str, settings.inputs))}: there is no picture")

    def _plan(self, sources: Sequence[Any], reading: BoxStep) -> None:
        path = self.work / "plan.npz"
        if path.exists():
            return
        parts = [PictureSource(*raw).parts for raw in sources]
        make_box_plan(parts, reading.results(), self.engine.shapes, self.settings.by_content()).save(path)
