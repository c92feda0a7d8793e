"""Tables of the miniature's evaluation, and its stored results."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
NANO = ROOT / "data" / "nano"
sys.path.insert(0, str(NANO))
evaluate = importlib.import_module("evaluate")
sys.path.remove(str(NANO))


def result(count: float, everything: float, headline: float | None) -> dict[str, Any]:
    metrics = {"accuracy": everything, "kinds": {"count": count, "leftmost": 0.5}}
    head = {"rule": "official", "metric": "f1", "value": headline}
    return {
        "nano": {"score": {"rules": {"exact": {"metrics": metrics}}}},
        "mmbench_nano": {"headline": {**head, "metric": "accuracy"}},
        "pope_nano": {"headline": head},
    }


def test_tables() -> None:
    columns = {"low": result(0.5, 0.25, 0.5), "full": result(1.0, 0.75, None)}
    lines = [line.split() for line in evaluate.format_table(columns).splitlines()]
    assert lines[0] == ["question", "kind", "chance", "low", "full"]
    assert lines[2:4] == [["count", "25.0", "50.0", "100.0"], ["leftmost", "10.0", "50.0", "50.0"]]
    assert lines[-1] == ["all", "18.6", "25.0", "75.0"]
    lines = [line.split() for line in evaluate.format_benchmarks(columns).splitlines()]
    assert lines[0] == ["benchmark", "rule,", "metric", "low", "full"]
    assert lines[2:] == [
        ["mmbench_nano", "official,", "accuracy", "50.0", "-"],
        ["pope_nano", "official,", "f1", "50.0", "-"],
    ]


def test_stored_results_are_the_quoted_ones() -> None:
    stored = {(e["row"], e["seed"]): e["metrics"]["all"] for e in json.loads((NANO / "results.json").read_text())}
    assert len(stored) == 35
    full = [100 * stored["full", seed] for seed in range(5)]
    assert full == pytest.approx([87.5, 86.25, 83.84, 88.48, 87.59], abs=0.06)
    quoted = "86.7 ± 1.8"
    assert quoted in (NANO / "RESULTS.md").read_text() and f"**{quoted} %**" in (ROOT / "README.md").read_text()
    means = [np.mean([stored[row, seed] for seed in range(5)]) for row in ("low_only", "objects", "full")]
    spread = [np.std([stored[row, seed] for seed in range(5)], ddof=1) for row in ("low_only", "objects", "full")]
    for step in range(2):
        assert means[step + 1] - means[step] > max(spread[step : step + 2]), "each part brings more than seeds do"
