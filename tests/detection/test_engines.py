"""The same files from every engine, killed or not."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mg_llava.detection.run import JobSettings, make_engine
from mg_llava.detection.run.steps import BoxStep
from mg_llava.work.journal import read_journals
from tests import forked
from tests.detection.held import hold_at, lines_done, write_pipeline
from tests.run import TOOLS

FILES = ("boxes.safetensors", "failures.jsonl", "report.json")
ENGINES = {
    "one process": None,
    "pool": None,
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    "ray": [sys.executable],
}
"""What starts the tool; None for a fork, which has imported torch."""
OPTIONS = {"pool": ["--processes", "3"], "ray": ["--engine", "ray", "--processes", "2"]}


def draw_pictures(folder: Path, count: int) -> Path:
    """Pictures with some filled shapes each, two of them broken, and a pipeline; returns the records."""
    folder.mkdir()
    write_pipeline(folder)
    draws = np.random.default_rng(0)
    rows = []
    for number in range(count):
        image = Image.new("RGB", (64 + 8 * (number % 3), 64), (250, 250, 250))
        for left, top in draws.integers(2, 48, (1 + number % 4, 2)).tolist():
            color = tuple(draws.integers(0, 160, 3).tolist())
            ImageDraw.Draw(image).rectangle([left, top, left + 9, top + 7], fill=color)
        image.save(folder / f"{number}.png")
        rows.append({"id": f"picture-{number}", "image": f"{number}.png"})
    for number in (3, count - 1):
        (folder / f"{number}.png").write_bytes(b"no picture")
    (folder / "records.json").write_text(json.dumps(rows))
    return folder / "records.json"


class Forked:
    """Forked processes, those of torchrun where there are two, with the methods of ``subprocess.Popen``."""

    def __init__(self, arguments: list[object], printed: Path, processes: int) -> None:
        self.printed = printed
        printed.mkdir(exist_ok=True)
        program = TOOLS / "generate_boxes.py"
        self.processes = [
            forked.start(program, *arguments, printed=printed, **rank) for rank in forked.ranks(processes)
        ]
        self.pid = self.processes[0].pid

    @property
    def returncode(self) -> int | None:
        """None while one of them runs."""
        codes = [process.exitcode for process in self.processes]
        return None if None in codes else next((code for code in codes if code), 0)

    def poll(self) -> int | None:
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        for process in self.processes:
            process.join(timeout)
        return "".join((self.printed / name).read_text() for name in ("out", "err")), None


Run = subprocess.Popen | Forked


def start(engine: str, records: Path, out: Path, by_command: bool = False) -> Run:
    """Begin or continue a run; by torchrun's own command where asked for."""
    given = [records, "--out", out, "--detector", records.parent / "pipeline.py"]
    given += ["--batch-size", "4", "--task-batches", "2", "--workers", "2", *OPTIONS.get(engine, [])]
    starter = ENGINES[engine]
    if starter is None or (engine == "torchrun" and not by_command):
        return Forked(given, out.parent / "printed", 1 if starter is None else 2)
    clean = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return subprocess.Popen(
        [*map(str, [*starter, TOOLS / "generate_boxes.py", *given])],
        env={**clean, "RAY_ADDRESS": "local", "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: Run) -> None:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output


def contents(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in FILES}


def descendants(pid: int) -> list[int]:
    """Processes that a process started, and those that these started."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for parent in found:
        found += [child for child, own in parents.items() if own == parent]
    return found[1:]


def kill_at(engine: str, records: Path, out: Path, lines: int, by_command: bool = False) -> bool:
    """Kill a run and all its processes once it has this many lines of results; whether it was still at work.

    It is held there, so that it is at work whenever the kill comes.
    """
    hold = hold_at(records.parent, out, lines)
    process = start(engine, records, out, by_command)
    while process.poll() is None and lines_done(out) < lines:
        time.sleep(0.02)
    was_running = process.poll() is None
    first = [process.pid] if isinstance(process, subprocess.Popen) else [one.pid for one in process.processes]
    for pid in [*first, *(below for one in first for below in descendants(one))]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate()
    hold.unlink()
    return was_running


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return draw_pictures(tmp_path_factory.mktemp("drawn") / "pictures", 90)


@pytest.fixture(scope="module")
def expected(tmp_path_factory, pictures):
    out = tmp_path_factory.mktemp("expected") / "out"
    finish(start("one process", pictures, out))
    report = json.loads((out / "report.json").read_text())
    assert report["keys"] == 90 and report["failed"] == 2 and report["boxes"] > 60
    return contents(out)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_gives_the_same_files_after_kills(tmp_path, pictures, expected, engine):
    if engine == "ray":
        pytest.importorskip("ray")
    lines = random.Random(engine).randint(1, 13)  # of 26, as a pool may have 12 more at hand when it is held
    assert kill_at(engine, pictures, tmp_path / "out", lines, by_command=True)
    finish(start(engine, pictures, tmp_path / "out"))
    assert contents(tmp_path / "out") == expected


@pytest.mark.slow
def test_one_engine_goes_on_where_another_was_killed(tmp_path, pictures, expected):
    out = tmp_path / "out"
    before = 0
    for engine in ("pool", "torchrun"):
        assert kill_at(engine, pictures, out, before + 4)  # three lines are those of the first step
        assert lines_done(out) >= before + 4
        before = lines_done(out)
    finish(start("one process", pictures, out))
    assert contents(out) == expected


@pytest.mark.slow
def test_a_killed_worker_ends_a_pool_and_nothing_is_lost(tmp_path, pictures, expected):
    out = tmp_path / "out"
    hold = hold_at(pictures.parent, out, 4)  # with three lines of the first step
    process = start("pool", pictures, out)
    while process.poll() is None and not any(True for _ in read_journals(out / "work" / "detect")):
        time.sleep(0.002)
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)
    hold.unlink()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and "a worker process was killed" in output
    finish(start("pool", pictures, out))
    assert contents(out) == expected


def test_tasks_are_planned_and_what_is_done_is_left_out(tmp_path):
    step = BoxStep(tmp_path, count=23, per_line=3, lines=2)
    assert step.open_tasks() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    with step.journal() as first, step.journal() as second:
        first.append([{"line": 2, "results": ["a", "b", "c"]}])
        second.append([{"line": line, "results": [line] * len(step.items(line))} for line in (0, 1, 7)])
    assert step.open_tasks() == [[3], [4, 5], [6]]
    assert dict(step.results())[7] == "b" and dict(step.results())[22] == 7
    assert BoxStep(tmp_path / "none", 0, 3).open_tasks() == []


def test_wrong_engines_are_refused(tmp_path, monkeypatch):
    settings = JobSettings(["a"], str(tmp_path), {"detector": {"type": "ProposalDetector"}})
    for name in ("WORLD_SIZE", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="torchrun did not start this process"):
        make_engine(settings, "torchrun")
    with pytest.raises(ValueError, match="start the tasks with srun"):
        make_engine(settings, "slurm")
    with pytest.raises(ValueError, match="processes is 0, must be at least 1"):
        make_engine(settings, processes=0)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'mg_llava\[ray\]'"):
        make_engine(settings, "ray")
