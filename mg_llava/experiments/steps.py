"""Steps of a grid's runs: a stage's training, an evaluation. Each has a folder named by its fingerprint.

So a finished step is found again whatever happened since, one that was cut goes on from its last checkpoint, rows that
share a stage train it once, and nothing of an older config is taken for a new one.
"""

import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mg_llava.experiments.fingerprints import command_fingerprint, stage_fingerprint
from mg_llava.experiments.grid import Grid, GridRow, option_path, read_leaf
from mg_llava.work.atomic import write_json
from mg_llava.work.json_text import load_object

_TRAINED = re.compile(r"Iter\(train\) \[\s*(\d+)/(\d+)\](?:.*? loss: (\S+))?")
_TOTAL = re.compile(rb"Iter\(train\) \[\s*\d+/(\d+)\]")
_COUNTED = re.compile(r"\b(\d+)/(\d+)\b")
_BLOCK, _MATCH = 1 << 20, 100
"""Bytes of a log that are searched at once, and those that a match may have."""


@dataclass(frozen=True)
class GridStep:
    """A command and the file that it makes.

    Attributes:
        kind: ``"stage 1"``, ..., ``"evaluation"``.
        title: For progress and messages.
        folder: Where its files are.
        base: The command without what is known only when it starts.
        before: The step whose product it needs.
    """

    kind: str
    title: str
    folder: Path
    base: tuple[str, ...]
    before: "GridStep | None" = None

    @property
    def log(self) -> Path:
        """What the command wrote, over all its starts."""
        return self.folder / "log.txt"

    @property
    def done(self) -> dict[str, Any]:
        """``product`` and ``seconds`` of a finished step, else nothing; the folder may have been moved since.

        Raises:
            ValueError: The file about it is damaged.
        """
        path = self.folder / "done.json"
        try:
            found = load_object(path) if path.is_file() else {}
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}); remove it to do {self.title} again") from error
        product = self._here(str(found.get("product", "")))
        return {**found, "product": str(product)} if product else {}

    def _here(self, name: str) -> Path | None:
        """A file or folder of this step that was written down by its whole path, if it is there."""
        places = (Path(name), self.folder / Path(name).name) if name else ()
        return next((place for place in places if place.exists()), None)

    def finish(self, seconds: float, ended: bool) -> bool:
        """Note that the step is finished, if its product is there and whole.

        Args:
            seconds: What all its starts took.
            ended: Its command has just ended well, which counts where nothing else tells that the product is whole.
        """
        product = self.find_product(ended)
        if product is not None:
            write_json(self.folder / "done.json", {"product": str(product), "seconds": round(seconds, 1)})
            self._spent.unlink(missing_ok=True)
        return product is not None

    @property
    def _spent(self) -> Path:
        return self.folder / "spent.json"

    @property
    def spent(self) -> float:
        """Seconds that its starts took so far."""
        try:
            found = load_object(self._spent).get("seconds") if self._spent.is_file() else None
        except ValueError:
            found = None
        return float(found) if isinstance(found, int | float) else 0.0

    def note(self, seconds: float) -> None:
        """Keep what its starts took so far; a full disk is no reason to end them."""
        with suppress(OSError):
            write_json(self._spent, {"seconds": round(seconds, 1)})

    def command(self) -> list[str]:
        """The command to start now."""
        raise NotImplementedError

    def find_product(self, ended: bool) -> Path | None:
        """The file that the command makes, if it is whole, as :meth:`finish` needs it."""
        raise NotImplementedError

    def progress(self, begin: int = 0) -> tuple[float, str]:
        """How far it is, as a share and for people, by the end of its log, of which bytes may be left out."""
        found = _COUNTED.findall(tail(self.log, 20, begin))
        return _share(*found[-1]) if found else (0.0, "is loading")

    def begun(self) -> float:
        """The share that is done before a start, which goes on from there."""
        return self.progress()[0]


@dataclass(frozen=True)
class Training(GridStep):
    """Trains a stage; ``xtuner`` would hide how that ended, so the last checkpoint is compared with all steps.

    Attributes:
        leaf: Its config.
        options: Changes of it.
    """

    leaf: str = ""
    options: tuple[str, ...] = ()

    @property
    def config(self) -> str:
        """The config as it was trained: the leaf, or what training dumped where options change it.

        The checkpoint of the stage before is such an option, and the only place of weights that this one does not
        train.
        """
        dumped, is_changed = self.folder / Path(self.leaf).name, bool(self.options) or self.before is not None
        return str(dumped) if is_changed and dumped.is_file() else self.leaf

    def command(self) -> list[str]:
        """The command, which goes on from the last checkpoint, or starts with the one of the stage before."""
        options = list(self.options)
        if self.before is not None:
            options.append(f"model.pretrained_pth={option_path(Path(self.before.done['product']))}")
        cut = self._checkpoint()
        resume = [] if cut is None else ["--resume", str(cut)]
        return [*self.base, *resume, *(["--cfg-options", *options] if options else [])]

    def find_product(self, ended: bool) -> Path | None:
        """The checkpoint of the last step."""
        checkpoint, total = self._checkpoint(), _last_total(self.log)
        number = _number_of(checkpoint)
        is_last = ended if number is None or total is None else number >= total
        return checkpoint if is_last else None

    @property
    def last_loss(self) -> float | None:
        """Mean loss of the last steps, as logged; None where there is none."""
        found = [loss for *_, loss in _TRAINED.findall(tail(self.log, 200)) if loss]
        return float(found[-1]) if found else None

    def progress(self, begin: int = 0) -> tuple[float, str]:
        """Steps and loss."""
        found = _TRAINED.findall(tail(self.log, 20, begin))
        return _share(*found[-1]) if found else (0.0, "is loading")

    def begun(self) -> float:
        """The share that the last checkpoint has, which may be less than what was logged."""
        number = _number_of(self._checkpoint())
        total = None if number is None else _last_total(self.log)
        return min(1.0, number / total) if number and total else 0.0

    def _checkpoint(self) -> Path | None:
        name = self.folder / "last_checkpoint"
        return self._here(name.read_text(errors="replace").strip()) if name.is_file() else None


class Evaluation(GridStep):
    """Evaluates the last stage of a run."""

    def command(self) -> list[str]:
        """The command with the run's config and its checkpoint."""
        assert isinstance(self.before, Training)
        places = {"{config}": self.before.config, "{checkpoint}": self.before.done["product"]}
        places["{out}"] = str(self.folder)
        return [_fill(part, places) for part in self.base]

    def find_product(self, ended: bool) -> Path | None:
        """``results.json`` of the evaluation, which is written last and at once."""
        path = self.folder / "results.json"
        return path if path.is_file() else None


@dataclass(frozen=True)
class Run:
    """A row with a seed.

    Attributes:
        row: The row.
        seed: The seed.
        fingerprint: Of all that its results depend on.
        steps: In order; the last one is the evaluation.
    """

    row: GridRow
    seed: int
    fingerprint: str
    steps: tuple[GridStep, ...]

    @property
    def is_done(self) -> bool:
        """Whether its results are there."""
        return not self.todo

    @property
    def todo(self) -> tuple[GridStep, ...]:
        """Steps that its results still need; what an earlier one made may be gone when a later one is done."""
        done = [number for number, step in enumerate(self.steps, 1) if step.done]
        return self.steps[max(done, default=0) :]


def plan_runs(grid: Grid, folder: Path, processes: str = "1") -> list[Run]:
    """The runs of a grid, seed by seed; the data must be there, as fingerprints follow it.

    Args:
        grid: The grid.
        folder: Where the runs' folders are.
        processes: How many of them share a training.
    """
    read = functools.cache(read_leaf)  # once for all seeds
    return [_plan_run(grid, row, seed, folder.resolve(), processes, read) for row, seed in grid.runs()]


def _plan_run(
    grid: Grid, row: GridRow, seed: int, folder: Path, processes: str, read: Callable[[str, Sequence[str]], Any]
) -> Run:
    fingerprint = ""
    before: GridStep | None = None
    steps: list[GridStep] = []
    options = tuple(option.replace("{seed}", str(seed)) for option in row.options)
    for number, leaf in enumerate(row.leaves, 1):
        fingerprint = stage_fingerprint(leaf, options, seed, fingerprint, grid.train, processes, read)
        place = folder / f"{Path(leaf).stem}_seed{seed}_{fingerprint}"
        option_path(place)  # the next stage has it as an option
        base = (*grid.train, leaf, "--work-dir", str(place), "--seed", str(seed))
        kind = f"stage {number}"
        before = Training(kind, f"{row.name} {seed}, {kind}", place, base, before, leaf, options)
        steps.append(before)
    evaluate = row.evaluate or grid.evaluate
    fingerprint = command_fingerprint(evaluate, fingerprint)
    place = folder / f"{row.name}_seed{seed}_evaluation_{fingerprint}"
    steps.append(Evaluation("evaluation", f"{row.name} {seed}, evaluation", place, evaluate, before))
    return Run(row, seed, fingerprint, tuple(steps))


def _fill(word: str, places: Mapping[str, str]) -> str:
    for place, value in places.items():
        word = word.replace(place, value)
    return word


def tail(log: Path, lines: int, begin: int = 0) -> str:
    """The last lines of a file from a byte on; nothing where there is none."""
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(begin, log.stat().st_size - 400 * lines))
        return "\n".join(re.split(r"[\r\n]+", file.read().decode(errors="replace"))[-lines:])


def _last_total(log: Path) -> int | None:
    """The number of steps that a log of a training names last, wherever: errors of later starts may follow."""
    if not log.is_file():
        return None
    with log.open("rb") as file:
        end, after = file.seek(0, os.SEEK_END), b""
        while end:
            begin = max(0, end - _BLOCK)
            file.seek(begin)
            text = file.read(end - begin) + after
            if found := _TOTAL.findall(text):
                return int(found[-1])
            end, after = begin, text[:_MATCH]
    return None


def _number_of(checkpoint: Path | None) -> int | None:
    """The step of a checkpoint, by its name."""
    found = re.search(r"(\d+)\D*$", checkpoint.name) if checkpoint else None
    return int(found[1]) if found else None


def _share(done: str, total: str, loss: str = "") -> tuple[float, str]:
    return int(done) / max(1, int(total)), f"{done}/{total}" + (f", loss {loss}" if loss else "")
