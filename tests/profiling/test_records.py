"""Growth with the number of records, and of training with the number of processes, at tiny sizes."""

import pytest

from mg_llava.profiling import processes, records
from tests import forked
from tests.run import call_here, run_tool


def test_growth_with_records(monkeypatch, tmp_path):
    monkeypatch.setattr(records, "_PLAIN", 500)
    monkeypatch.setattr(records, "run_child", call_here)
    done = run_tool("benchmark", "records", "--records", 600, 300, "--work-dir", tmp_path)
    assert done.status == 0, done.err
    points = done.result["points"]
    assert [point["records"] for point in points] == [300, 600]
    assert all(point["first_s"] > 0 and point["worker_mb"] > 0 and point["sample_ms"] > 0 for point in points)
    assert done.result["plain"]["records"] == 500 and not [*tmp_path.iterdir()]


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(monkeypatch):
    monkeypatch.setattr(processes, "run_child", forked.call)
    sizes = ["--steps", 1, "--rounds", 1, "--batch-size", 1, "--text", 12, "--boxes", 2]
    done = run_tool("benchmark", "processes", *sizes)
    assert done.status == 0, done.err
    rates = done.result["samples_per_s"]
    assert set(rates) == {"1", "2"} and min(rates.values()) > 0 and "of the ideal" in done.out
