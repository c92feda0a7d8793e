"""The benchmark dispatcher, and the box store's benchmark at a small size."""

import mmap
import os

import pytest

from mg_llava.profiling import _measure, boxstore
from tests.run import call_here, run_tool


def test_unknown_benchmarks_are_refused_with_the_known_ones():
    done = run_tool("benchmark", "no_such")
    assert done.status == 2 and "invalid choice: 'no_such'" in done.err and "boxstore" in done.err


def test_boxstore(tmp_path, monkeypatch):
    monkeypatch.setattr(boxstore, "run_child", call_here)
    monkeypatch.setattr(boxstore, "_LOOKUPS", 200)
    done = run_tool("benchmark", "boxstore", "--records", 3000, "--work-dir", tmp_path)
    assert done.status == 0, done.err
    *table, _ = done.out.splitlines()
    result = done.result
    assert result["benchmark"] == "boxstore" and result["records"] == 3000 and result["plain_records"] == 300
    assert result["error"] == 0 and {"access_ms", "memory_ratio", "convert_peak_mb"} <= set(result)
    assert result["speedup"] == pytest.approx(result["plain_open_s"] / result["open_s"], rel=0.01)
    assert any("plain JSON" in line for line in table) and list(tmp_path.iterdir()) == []


def test_measurements_in_children():
    assert _measure.run_child("os.path.split", "a/b") == ["a", "b"]
    with pytest.raises(RuntimeError, match=r"(?s)os\.listdir failed with status 1: .*no_such_folder"):
        _measure.run_child("os.listdir", "no_such_folder")
    before = _measure.memory_of([os.getpid()])["own"]
    block = mmap.mmap(-1, 50_000_000)  # fresh pages: the heap may have as much free
    block.write(b"x" * len(block))
    assert 40 < _measure.memory_of([os.getpid()])["own"] - before < 60 and _measure.peak_memory() > 50
    assert len(block) == 50_000_000


def test_data():
    result = run_tool("benchmark", "data", "--pictures", 6, "--rounds", 1).result
    assert result["benchmark"] == "data" and result["pictures"] == 6
    ratio = result["images_per_s"] / result["plain_images_per_s"]
    assert result["speedup"] == pytest.approx(ratio, rel=0.01, abs=0.01)
    assert result["error"] <= 1e-5 and result["bytes_ratio"] <= 0.25
