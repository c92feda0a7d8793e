"""Grids of stubs: leaves that say a name, a trainer and an evaluation that take milliseconds."""

import json
import sys
from pathlib import Path
from typing import Any

from mg_llava.experiments.steps import Run
from tests.run import until

STUB = Path(__file__).with_name("stub.py")
SLEEP = """
import os, signal, subprocess, sys, time
def ignore(): signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "600"], preexec_fn=ignore if sys.argv[2:] else None)
with open(sys.argv[1] + ".new", "w") as file: file.write(f"{os.getpid()} {child.pid}")
os.rename(sys.argv[1] + ".new", sys.argv[1])
time.sleep(600)
"""
"""A script that starts another command, which may ignore that it is asked to end, and writes the numbers of both."""


def told(path: Path) -> list[int]:
    """The numbers that a file has in the end."""
    until(path.exists)
    return [int(number) for number in path.read_text().split()]


def write_leaf(folder: Path, name: str, **settings: Any) -> str:
    """A leaf whose weights follow its name and the content of a data file."""
    path = folder / f"{name}.py"
    keys = {"name": name, "model": {"pretrained_pth": None}, "data_path": str(folder / "data.json"), **settings}
    path.write_text("".join(f"{key} = {value!r}\n" for key, value in keys.items()))
    return str(path)


def write_grid(folder: Path, **changes: Any) -> Path:
    """A grid of two rows of two stages, with a common first one, and two seeds."""
    (folder / "data.json").write_text("[1]")
    first, low, full = (write_leaf(folder, name) for name in ("pretrain", "low_instruct", "full_instruct"))
    grid = {
        "name": "toy",
        "rows": [
            {"name": "low", "title": "low only", "leaves": [first, low]},
            {"name": "full", "leaves": [first, full]},
        ],
        "seeds": [0, 1],
        "train": [sys.executable, str(STUB), "train"],
        "evaluate": [sys.executable, str(STUB), "evaluate", "{config}", "{checkpoint}", "{out}"],
        "metrics": {"a": "quiz:exact/kinds/a", "all": "quiz"},
        **changes,
    }
    path = folder / "toy.json"
    path.write_text(json.dumps(grid))
    return path


def finish(run: Run, benchmarks: Any) -> None:
    """Let a run be done, with what its evaluation is to have found."""
    for step in run.steps:
        step.folder.mkdir(parents=True, exist_ok=True)
        product = step.folder / ("results.json" if step.kind == "evaluation" else "iter_5.pth")
        product.write_text(json.dumps({"benchmarks": benchmarks}))
        (step.folder / "done.json").write_text(json.dumps({"product": str(product), "seconds": 1.0}))


def quiz(value: Any, **kinds: Any) -> dict[str, Any]:
    """A benchmark as evaluations write it, with its headline and the metrics of its kinds."""
    rules = {"exact": {"metrics": {"accuracy": value, "kinds": kinds}}}
    return {"quiz": {"headline": {"rule": "exact", "metric": "accuracy", "value": value}, "score": {"rules": rules}}}
