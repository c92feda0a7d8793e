"""The run: read, look at pictures, count, draw, write; each stage goes on where it was stopped.

``OUT/regions.jsonl`` has the records and ``OUT/report.json`` what became of everything; ``OUT/.work`` is what a run
that is not finished has made so far. The records are the same bytes whatever the number of processes and of stops.
"""

import shutil
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mg_llava.data.choices import wrong_count
from mg_llava.data.records.open import TextRecords
from mg_llava.data.synthesis.readers import SceneReader
from mg_llava.data.synthesis.report import SynthesisReport
from mg_llava.data.synthesis.reserved import Reserved
from mg_llava.data.synthesis.rewriting import Rewriter, rewrite_texts
from mg_llava.data.synthesis.screening import SourceTally, StageProgress, screen_pictures, write_scenes
from mg_llava.data.synthesis.shares import WANTED, Drawn, check_wanted, draw_samples
from mg_llava.data.synthesis.writing import Writer, count_choices, texts_of_samples, word_records
from mg_llava.work.atomic import replacing, write_json
from mg_llava.work.json_text import load_object
from mg_llava.work.lock import folder_lock
from mg_llava.work.pool import run_batches
from mg_llava.work.resumed import run_resumed

VERSION = 2
"""Raised when the same sources and settings give other records."""
RECORDS_FILE, REPORT_FILE, PLAN_FILE = "regions.jsonl", "report.json", "plan.json"
_BATCH = 128


class OtherSynthesisError(ValueError):
    """A folder holds records of other sources or settings."""


def _silent(stage: str, done: int, count: int) -> None:
    pass


@dataclass
class Synthesis:
    """What to make of which annotations.

    Attributes:
        readers: The data sets.
        out: Folder of the result.
        root: Folder that paths of pictures are relative to.
        reserved: Test pictures besides those of the data sets.
        wanted: Samples of each task.
        seed: Of all that is drawn.
        workers: Number of processes.
        rewriter: Gives other words for texts; None for the texts as they are.
        progress: Told what is done.
    """

    readers: Sequence[SceneReader]
    out: Path
    root: Path
    reserved: Reserved = field(default_factory=Reserved)
    wanted: Mapping[str, int] = field(default_factory=lambda: dict(WANTED))
    seed: int = 0
    workers: int = 1
    rewriter: Rewriter | None = None
    progress: StageProgress = _silent

    def __post_init__(self) -> None:
        self.wanted = check_wanted(self.wanted)
        for wrong in wrong_count("seed", self.seed, least=0):
            raise ValueError(wrong)
        root = self.root.absolute()
        for reader in self.readers:
            if root not in (place := reader.images.absolute(), *place.parents):
                raise ValueError(f"pictures of {reader.name} lie in {place}, outside of the root {root} of all paths")
        for number, reader in enumerate(self.readers):
            earlier = sum(other.kind == reader.kind or other.name == reader.name for other in self.readers[:number])
            if any(other.name == reader.name for other in self.readers[:number]):
                reader.name = f"{reader.name}-{earlier + 1}"
        for reader in self.readers:
            self.reserved.add(reader.reserved())

    @property
    def settings(self) -> dict[str, Any]:
        """All that the records depend on; plain values."""
        reserved = "\n".join(sorted([*self.reserved.ids, *self.reserved.pictures, *self.reserved.hashes]))
        rewriter = None if self.rewriter is None else [self.rewriter.name, self.rewriter.share]
        return {
            "version": VERSION,
            "sources": {reader.name: [reader.kind, *map(_state, reader.files)] for reader in self.readers},
            "reserved": zlib.crc32(reserved.encode()),
            "wanted": dict(self.wanted),
            "seed": self.seed,
            "rewriter": rewriter,
        }

    def plan(self) -> dict[str, Any]:
        """How many samples of each task there are and would be drawn, without a look at pictures; in ``plan.json``.

        Raises:
            OtherSynthesisError: The folder is another run's.
            RecordError: A source is malformed.
        """
        with folder_lock(self.out, "synthesis"):
            self._begin()
            _, report, _ = self._drawn(None)
            found = report.to_dict()
            write_json(self.out / PLAN_FILE, found)
        return found

    def run(self) -> dict[str, Any]:
        """Make the records; gives the report.

        Raises:
            OtherSynthesisError: The folder is another run's.
            RecordError: A source is malformed.
        """
        with folder_lock(self.out, "synthesis"):
            if self._begin():
                return self._load(self.out / REPORT_FILE)
            reading = self._reading()
            usable, reserved = screen_pictures(
                self._scenes(), self.reserved, reading, self._work / "pictures.journal", self.workers, self.progress
            )
            writer, report, drawn = self._drawn(usable, reading)
            report.reserved = reserved
            report.rewriting = self._rewrite(writer, drawn)
            self._write(writer, report, drawn)
            found = report.to_dict()
            write_json(self.out / REPORT_FILE, found)
            shutil.rmtree(self._work)
        return found

    # -- stages -----------------------------------------------------------------------------------------------------

    @property
    def _work(self) -> Path:
        return self.out / ".work"

    def _begin(self) -> bool:
        """Whether all is done; ``OtherSynthesisError`` where the folder holds something else."""
        done = (self.out / REPORT_FILE).is_file()
        path = self.out / REPORT_FILE if done else self._work / "settings.json"
        if path.is_file():
            found = self._load(path).get("settings", {})
            other = [name for name, value in self.settings.items() if found.get(name) != value]
            if other:
                raise OtherSynthesisError(
                    f"{self.out} holds records of another run, with other {', '.join(other)}; use another folder, or "
                    "remove it"
                )
        else:
            write_json(path, {"settings": self.settings})
        return done

    def _scenes(self) -> TextRecords:
        return TextRecords(self._work / "scenes.jsonl")

    def _reading(self) -> dict[str, SourceTally]:
        """Counts of the sources, whose scenes are on the disk then."""
        path = self._work / "reading.json"
        if not path.is_file():
            tallies = write_scenes(self.readers, self.reserved, self._work / "scenes.jsonl", self.progress)
            write_json(path, {name: tally.to_dict() for name, tally in tallies.items()})
        return {name: SourceTally.from_dict(tally) for name, tally in self._load(path).items()}

    def _load(self, path: Path) -> dict[str, Any]:
        try:
            return load_object(path)
        except ValueError as error:
            raise OtherSynthesisError(f"{path} is damaged ({error}); remove {self.out}, or use another one") from error

    def _drawn(
        self, usable: Sequence[bool] | None, reading: dict[str, SourceTally] | None = None
    ) -> tuple[Writer, SynthesisReport, Drawn]:
        """The samples; of all scenes where ``usable`` is None."""
        reading = self._reading() if reading is None else reading
        scenes = self._scenes()
        writer = Writer(scenes, {one.name: one.vocabulary for one in self.readers}, self.seed, str(self.root))
        counts = self._counts(writer)
        if usable is not None:
            counts[~np.array(usable, dtype=bool)] = 0
        sources = [scene["source"] for scene in scenes]
        drawn = draw_samples(counts, sources, self.wanted, self.seed)
        return writer, SynthesisReport(self.settings, reading, dict(self.wanted), counts, sources, drawn), drawn

    def _counts(self, writer: Writer) -> np.ndarray:
        """(S, T) samples that the scenes have."""
        numbers = list(range(len(writer.scenes)))
        about = ["counts", len(numbers)]
        journal = self._work / "counts.journal"

        def told(done: int, count: int) -> None:
            self.progress("counting samples", done, count)

        found = run_resumed(count_choices, writer, numbers, _BATCH, self.workers, journal, about, told)
        rows = [row for batch in found for row in batch]
        return np.array(rows, dtype=np.int64).reshape(len(numbers), len(self.wanted))

    def _rewrite(self, writer: Writer, drawn: Drawn) -> dict[str, Any] | None:
        if self.rewriter is None:
            return None
        batches = run_batches(texts_of_samples, writer, drawn, _BATCH, self.workers)
        texts = self.rewriter.chosen((text for batch in batches for text in batch), self.seed)

        def told(done: int, count: int) -> None:
            self.progress("rewriting texts", done, count)

        writer.words, counts = rewrite_texts(self.rewriter, texts, self._work / "words.journal", told)
        return {"model": self.rewriter.name, "texts": len(texts), **counts}

    def _write(self, writer: Writer, report: SynthesisReport, drawn: Drawn) -> None:
        """Write the records, and count them."""
        about = [
            "records",
            sum(len(samples) for _, samples in drawn),
            zlib.crc32(repr(sorted(writer.words.items())).encode()),
        ]

        def told(done: int, count: int) -> None:
            self.progress("writing records", done, count)

        journal = self._work / "records.journal"
        with replacing(self.out / RECORDS_FILE, "w") as file:
            for found in run_resumed(word_records, writer, drawn, _BATCH, self.workers, journal, about, told):
                file.writelines(line + "\n" for line in found["lines"])
                report.written += Counter(found["counts"])
                report.characters += Counter(found["characters"])


def _state(path: Path) -> list[Any]:
    """What shows that a file has changed."""
    status = path.stat()
    return [str(path), status.st_size, status.st_mtime_ns]
