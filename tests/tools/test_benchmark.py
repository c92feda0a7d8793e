"""The benchmark dispatcher, and the box store's benchmark at a small size."""

import importlib
import importlib.util
import json
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mg_llava.profiling import _measure, boxstore

TOOL = Path(__file__).resolve().parents[2] / "tools" / "benchmark.py"


def call_here(function, *arguments):
    """``run_child`` without the seconds that a new interpreter needs for its imports."""
    module, name = function.rsplit(".", 1)
    return json.loads(json.dumps(getattr(importlib.import_module(module), name)(*json.loads(json.dumps(arguments)))))


def test_unknown_benchmarks_are_refused_with_the_known_ones():
    done = subprocess.run([sys.executable, TOOL, "no_such"], capture_output=True, text=True)
    assert done.returncode == 2 and "invalid choice: 'no_such'" in done.stderr and "boxstore" in done.stderr


def test_boxstore(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(boxstore, "run_child", call_here)
    monkeypatch.setattr(boxstore, "_LOOKUPS", 200)
    monkeypatch.setattr(sys, "argv", [str(TOOL), "boxstore", "--records", "3000", "--work-dir", str(tmp_path)])
    spec = importlib.util.spec_from_file_location("benchmark", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main() == 0
    *table, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
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


def test_data(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(TOOL), "data", "--pictures", "6", "--rounds", "1"])
    spec = importlib.util.spec_from_file_location("benchmark", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main() == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["benchmark"] == "data" and result["pictures"] == 6
    ratio = result["images_per_s"] / result["plain_images_per_s"]
    assert result["speedup"] == pytest.approx(ratio, rel=0.01, abs=0.01)
    assert result["error"] <= 1e-5 and result["bytes_ratio"] <= 0.25
