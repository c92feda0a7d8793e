"""Runs of the miniature with the real commands: data, both stages with `xtuner train`, evaluation; several at a time.

A finished step leaves a marker with a fingerprint of all it depends on (settings of the config, data, weights, seed,
options), and is not repeated while the fingerprint stays the same. `xtuner` hides the exit status of the training it
starts, so success is judged by the checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs import ROOT, Note, RunError, explain, run_logged, tail
from mmengine.config import Config

from mg_llava.work.atomic import write_json

NANO = Path(__file__).resolve().parent
GENERATED = NANO / "generated"
WEIGHTS = ("clip", "convnext", "llm")
TRAINED_BY = ("model", "train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler", "randomness")
EVALUATED_BY = ("evaluate.py", "benchmarks.py", "benchmark_files.py")
PROGRESS = re.compile(r"Iter\(train\) \[\s*(\d+)/(\d+)\].*? loss: (\S+)")
ANSWERED = re.compile(r"^\d+/\d+$", re.MULTILINE)
STAGES = {"stage1": "pretrain", "stage2": "instruct"}

_reading = threading.Lock()
"""mmengine keeps the way in which a config is being read in a class attribute, and runs are done by threads."""


@dataclass(frozen=True)
class Variant:
    """One model of the ablation. ``suffix`` is how its configs' names end; the full model's have none."""

    name: str
    title: str
    suffix: str = ""

    def config(self, stage: str) -> Path:
        """The config of ``stage1`` or ``stage2``, relative to the repository."""
        name = f"mg_llava_nano_{STAGES[stage]}{self.suffix}.py"
        return Path("configs", "ablations", name) if self.suffix else Path("configs", name)


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("low_only", "low resolution only", "_low_only"),
        Variant("objects", "+ objects", "_objects"),
        Variant("convgate", "+ Conv-Gate", "_convgate"),
        Variant("full", "full"),
    )
}


@dataclass(frozen=True)
class Settings:
    """How runs are done.

    Attributes:
        folder: Where runs go, one folder for each.
        threads: CPU threads of each process.
        fresh: Repeat steps that are finished.
        cfg_options: Changes of both stages' configs, as ``xtuner train --cfg-options`` takes them.
        boxes: Boxes of the evaluation: ``proposals``, ``exact`` or ``none``.
    """

    folder: Path
    threads: int = 1
    fresh: bool = False
    cfg_options: tuple[str, ...] = ()
    boxes: str = "proposals"


@dataclass
class Outcome:
    """A trained and evaluated model."""

    checkpoint: Path
    result: dict[str, Any]
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall-clock seconds of ``stage1``, ``stage2`` and ``evaluation``."""


def make_data(note: Note, log: Path, threads: int = 1) -> None:
    """Make the pictures, questions and boxes, unless they are there."""
    start = time.monotonic()
    command = [sys.executable, NANO / "make_data.py"]
    run_logged(command, log, threads, lambda _: note(f"{time.monotonic() - start:.0f} s"))
    note(tail(log, 1))


def train(variant: Variant, stage: str, seed: int, settings: Settings, note: Note) -> Path:
    """Train one stage with `xtuner train`, unless it is done; stage 2 starts from the checkpoint of stage 1.

    Returns:
        The checkpoint.

    Raises:
        RunError: If stage 1 is not done, or if there is no checkpoint at the end.
    """
    work_dir = run_folder(variant, seed, settings) / stage
    wanted = stage_fingerprint(variant, stage, seed, settings)
    done = read_json(work_dir / "done.json")
    if not settings.fresh and done.get("fingerprint") == wanted and Path(done["checkpoint"]).exists():
        note(f"{stage} is done already")
        return Path(done["checkpoint"])
    options = list(settings.cfg_options)
    if stage == "stage2":
        options.append(f"model.pretrained_pth={_last_checkpoint(work_dir.parent / 'stage1')}")
    shutil.rmtree(work_dir, ignore_errors=True)
    command = [xtuner(), "train", variant.config(stage), "--work-dir", work_dir, "--seed", str(seed)]
    command += ["--cfg-options", *options] if options else []
    log, begin = work_dir.with_suffix(".log"), time.monotonic()
    note(f"{stage} starts")
    run_logged(command, log, settings.threads, lambda text: note(f"{stage} {progress_of(text)}"))
    checkpoint = _last_checkpoint(work_dir)
    if checkpoint is None:
        raise RunError(f"{variant.title}, seed {seed}, {stage}: training left no checkpoint\n{explain(log)}")
    seconds = round(time.monotonic() - begin, 1)
    write_json(work_dir / "done.json", {"fingerprint": wanted, "checkpoint": str(checkpoint), "seconds": seconds})
    return checkpoint


def train_and_evaluate(variant: Variant, seed: int, settings: Settings, note: Note) -> Outcome:
    """Train both stages of one model and evaluate it on the held-out questions; finished steps are not repeated.

    Raises:
        RunError: If a step fails.
    """
    for stage in STAGES:
        checkpoint = train(variant, stage, seed, settings, note)
    folder = run_folder(variant, seed, settings)
    out = folder / f"evaluation_{settings.boxes}.json"
    wanted = run_fingerprint(variant, seed, settings)
    result = read_json(out)
    if settings.fresh or result.get("fingerprint") != wanted:
        begin = time.monotonic()
        note("evaluation starts")
        command = [sys.executable, NANO / "evaluate.py", variant.config("stage2"), "--checkpoint", checkpoint]
        command += ["--boxes", settings.boxes, "--out", out]
        log = folder / "evaluation.log"
        run_logged(command, log, settings.threads, lambda text: note(f"evaluation {answered(text)}"))
        result = read_json(out) | {"fingerprint": wanted, "seconds": round(time.monotonic() - begin, 1)}
        write_json(out, result)
    note(f"done, {100 * result['overall']['accuracy']:.1f} % right")
    seconds = {stage: read_json(folder / stage / "done.json")["seconds"] for stage in STAGES}
    return Outcome(checkpoint, result, seconds | {"evaluation": result["seconds"]})


def run_folder(variant: Variant, seed: int, settings: Settings) -> Path:
    """Where a run's checkpoints, logs and results are."""
    return settings.folder.resolve() / f"{variant.name}_seed{seed}"


def run_fingerprint(variant: Variant, seed: int, settings: Settings) -> str:
    """What the results of a run depend on, short."""
    digest = hashlib.sha256(stage_fingerprint(variant, "stage2", seed, settings).encode())
    digest.update(settings.boxes.encode())
    for name in EVALUATED_BY:
        digest.update((NANO / name).read_bytes())
    return digest.hexdigest()[:16]


def stage_fingerprint(variant: Variant, stage: str, seed: int, settings: Settings) -> str:
    """Changes with what the config says of training, the data, the embedded weights, the seed, the options."""
    before = stage_fingerprint(variant, "stage1", seed, settings) if stage == "stage2" else ""
    data = read_json(GENERATED / "meta.json").get("fingerprint")
    digest = hashlib.sha256(f"{seed} {settings.cfg_options} {data} {before}".encode())
    with _reading:
        # reads it without importing what it names
        config = Config.fromfile(str(ROOT / variant.config(stage))).to_dict()
    digest.update(json.dumps({key: config[key] for key in TRAINED_BY}, sort_keys=True).encode())
    for path in sorted(path for name in WEIGHTS for path in (NANO / name).glob("*") if path.is_file()):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def progress_of(text: str) -> str:
    """How far a training is, from the end of its log."""
    found = PROGRESS.findall(text)
    return "{}/{}, loss {}".format(*found[-1]) if found else "is loading"


def answered(text: str) -> str:
    """How far an evaluation is, from the end of its log."""
    found = ANSWERED.findall(text)
    return found[-1] if found else "is loading"


def xtuner() -> Path:
    """The `xtuner` command of this interpreter's environment.

    Raises:
        RunError: If there is none.
    """
    beside = Path(sys.executable).parent / "xtuner"
    found = str(beside) if beside.exists() else shutil.which("xtuner")
    if found is None:
        raise RunError(f"the command xtuner is neither beside {sys.executable} nor in PATH; run `make demo` once")
    return Path(found)


def read_json(path: Path) -> Any:
    """The content of a JSON file, ``{}`` where there is none."""
    return json.loads(path.read_text()) if path.is_file() else {}


def _last_checkpoint(work_dir: Path) -> Path | None:
    name = work_dir / "last_checkpoint"
    checkpoint = ROOT / name.read_text().strip() if name.is_file() else None
    return checkpoint if checkpoint is not None and checkpoint.exists() else None
