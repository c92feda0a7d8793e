"""What is read of evaluations and stored: missing metrics, numbers that are none, rows that cannot be planned."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mg_llava.experiments import command
from mg_llava.experiments.entries import load_entries, read_runs
from mg_llava.experiments.grid import Grid, read_grid
from mg_llava.experiments.steps import Run, plan_runs
from tests.experiments.toys import finish, quiz, write_grid, write_leaf
from tests.run import run_tool

STORED = {"row": "low", "seed": 0, "fingerprint": "a", "seconds": {}}


def planned(folder: Path) -> tuple[Grid, list[Run]]:
    """The grid of stubs, and its two runs of one seed."""
    grid = read_grid(write_grid(folder, seeds=[0]))
    return grid, plan_runs(grid, folder / "work")


def strictly(path: Path) -> Any:
    """The content of a JSON file without the words that Python alone reads and writes for some numbers."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_a_run_without_a_metric_does_not_take_those_of_others(tmp_path: Path) -> None:
    grid, (low, full) = planned(tmp_path)
    finish(low, quiz(0.5, b=0.1))
    finish(full, quiz(0.75, a=0.25))
    said: list[str] = []
    faults = command.report(grid, grid, tmp_path / "work", "command", said.append)
    assert len(faults) == 1
    assert "results.json has no metric a (quiz:exact/kinds/a): quiz/score/rules/exact/metrics/kinds" in faults[0]
    assert faults[0].endswith("has no a, it has b")
    stored = strictly(tmp_path / "work" / "results.json")
    assert [entry["metrics"] for entry in stored] == [{"a": None, "all": 0.5}, {"a": 0.25, "all": 0.75}]
    assert "| low only | - | 50.0 |" in said[-1] and "| full | 25.0 | 75.0 |" in said[-1]
    ran = run_tool("run_experiments", tmp_path / "toy.json", "--work-dir", tmp_path / "work", "--report-only")
    assert ran.status == 1 and f"error: {faults[0]}" in ran.err and "| full | 25.0 | 75.0 |" in ran.out


@pytest.mark.parametrize(
    ("benchmarks", "message"),
    [
        ({}, r"has no metric all \(quiz\): benchmarks has no quiz, it has $"),
        ({"pope": {}}, "benchmarks has no quiz, it has pope"),
        ({"quiz": {"headline": None, "score": {"rules": {"loose": {}}}}}, "quiz/headline has no value, it has None"),
        ({"quiz": {"headline": {"value": 1}, "score": {"rules": {"loose": {}}}}}, "rules has no exact, it has loose"),
        (quiz({"yes": 0.5, "no": 0.5}, a=0), r"all \(quiz\): it has the parts yes, no; name one, as BENCHMARK:RULE"),
        (quiz("good", a=0), r"all \(quiz\): it is 'good'; a number is needed"),
        (["quiz"], "holds no results of an evaluation .it has no benchmarks.; remove it to evaluate again"),
    ],
)
def test_what_an_evaluation_lacks_is_named(tmp_path: Path, benchmarks: Any, message: str) -> None:
    grid, (low, full) = planned(tmp_path)
    finish(low, benchmarks)
    finish(full, quiz(0.75, a=0.25))
    entries, faults = read_runs([low, full], grid)
    assert entries[-1]["metrics"] == {"a": 0.25, "all": 0.75}
    assert any(re.search(message, fault) for fault in faults), faults


def test_numbers_that_are_not_finite_are_none(tmp_path: Path) -> None:
    grid, (low, full) = planned(tmp_path)
    finish(low, quiz(float("nan"), a=float("inf")))
    low.steps[0].log.write_text("Iter(train) [ 5/5]  loss: nan  \n")
    finish(full, quiz(0.75, a=0.25))
    results = tmp_path / "work" / "results.json"
    infinite = {**STORED, "seed": 7, "metrics": {"all": float("-inf")}, "losses": {"stage 1": float("nan")}}
    results.write_text(json.dumps([infinite]))
    said: list[str] = []
    assert command.report(grid, grid, tmp_path / "work", "command", said.append) == []
    assert [entry["metrics"].get("all") for entry in strictly(results)] == [None, None, 0.75]
    assert "| low only | - | - |" in said[-1]


@pytest.mark.parametrize("text", ["[\n<<<<<<< ours\n]", "{}", '[{"row": "low"}]', "[" * 100_000])
def test_damaged_results_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match=r"results\.json holds no results .*; mend it, or move it away"):
        load_entries(tmp_path / "results.json")


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ([0.5], "metrics of low, seed 0: numbers by name are needed"),
        ({"all": {"yes": 1}}, "all of low, seed 0: it has the parts yes"),
        ({"all": "good"}, "all of low, seed 0: it is 'good'"),
    ],
)
def test_stored_metrics_are_numbers(tmp_path: Path, metrics: Any, message: str) -> None:
    (tmp_path / "results.json").write_text(json.dumps([{**STORED, "metrics": metrics}]))
    with pytest.raises(ValueError, match=message):
        load_entries(tmp_path / "results.json")


def test_rows_that_cannot_be_planned_are_older(tmp_path: Path) -> None:
    grid, runs = planned(tmp_path)
    for run in runs:
        finish(run, quiz(0.5, a=0.25))
    command.report(grid, grid, tmp_path / "work", "command", print)
    Path(write_leaf(tmp_path, "full_instruct")).write_text("a = (\n")
    given = (tmp_path / "toy.json", "--work-dir", tmp_path / "work")
    for arguments in (("--rows", "low"), ("--report-only",)):
        ran = run_tool("run_experiments", *given, *arguments)
        assert ran.status == 0, ran
        assert "row full cannot be planned, and what is stored of it counts as older: config" in ran.out
        assert "| low only, seed 0 | 50.0 | 1 | 1 | 1 | present |" in ran.out
        assert "| full, seed 0 | 50.0 | 1 | 1 | 1 | stored, older config |" in ran.out
