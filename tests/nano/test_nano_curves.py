"""The miniature's reference curves, and runs that are drawn over them."""

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest
from PIL import Image

NANO = Path(__file__).resolve().parents[2] / "data" / "nano"
_spec = importlib.util.spec_from_file_location("nano_curves", NANO / "curves.py")
assert _spec is not None and _spec.loader is not None
curves = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(curves)


def write_log(work_dir: Path, start: str, steps: range, loss: float) -> None:
    log = work_dir / start / "vis_data" / "scalars.json"
    log.parent.mkdir(parents=True)
    lines = [{"step": step, "loss": loss + step, "gate": 0.5, "time": 1.0} for step in steps]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_resumed_run_is_read_as_one(tmp_path: Path) -> None:
    write_log(tmp_path, "20300101_1", range(10, 50, 10), 0.25)
    write_log(tmp_path, "20300101_2", range(30, 70, 10), 0.5)
    assert curves.read_run(tmp_path) == {
        "step": [10, 20, 30, 40, 50, 60],
        "loss": [10.25, 20.25, 30.5, 40.5, 50.5, 60.5],
        "gate": [0.5] * 6,
    }


def test_a_run_is_drawn_over_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    write_log(tmp_path / "run", "20300101", range(10, 460, 10), 0.0)
    drawn = []
    for number, runs in enumerate([[], [str(tmp_path / "run")]]):
        out = tmp_path / f"{number}.png"
        monkeypatch.setattr(sys, "argv", ["curves.py", *runs, "--out", str(out)])
        assert curves.main() == 0
        drawn.append(Image.open(out).tobytes())
    assert drawn[0] != drawn[1]
    monkeypatch.setattr(sys, "argv", ["curves.py", str(tmp_path / "absent"), "--out", str(tmp_path / "no.png")])
    assert curves.main() == 1 and "has no */vis_data/scalars.json" in capsys.readouterr().err


def test_the_reference_is_of_a_run_that_learned() -> None:
    stages = json.loads(curves.REFERENCE.read_text())
    assert [stage["step"][-1] for stage in stages] == [450, 250]
    wanted = {name for names in curves.PANELS.values() for name in names} - {"grad_llm"}
    for stage in stages:
        assert wanted <= set(stage)
        assert all(math.isfinite(value) for values in stage.values() for value in values)
    assert "grad_llm" in stages[1] and stages[0]["loss"][0] > 1 > 0.35 > stages[0]["loss"][-1]
    assert (NANO / "CURVES.png").stat().st_size < 200_000 and (NANO / "web.png").stat().st_size < 200_000
