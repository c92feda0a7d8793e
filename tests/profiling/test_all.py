"""All benchmarks in one command, of which this runs the shortest; and the page that it writes."""

import json
import re
from argparse import Namespace

import pytest

from mg_llava.profiling import all as every
from mg_llava.profiling._measure import ROOT
from mg_llava.profiling._sizes import LLMS, VISION, Case, build_model
from tests.run import run_tool

PAGE = "# Speed\n\nbefore\n\n<!-- measured: begin -->\nold\n<!-- measured: end -->\n\nafter\n"


def test_all_benchmarks_are_in_both_lists():
    names = {file.stem.replace("_", "-") for file in (ROOT / "mg_llava" / "profiling").glob("[!_]*.py")} - {"all"}
    for commands in (every.EVERYTHING, every.QUICK):
        assert {command.split()[0] for command in commands} == names


def test_tables_of_all_are_written_into_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(every, "QUICK", ("checkpoint --size 20", "boxes --no-such-thing"))
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    done = run_tool("benchmark", "all", "--quick", "--page", page)
    text = page.read_text()
    assert done.status == 1 and "these failed: boxes --no-such-thing" in done.err
    assert text.startswith("# Speed\n\nbefore\n\n") and text.endswith("\n\nafter\n") and "old" not in text
    about = every.describe_setup()
    assert about["date"] in text and about["machine"] in text and f"torch {about['versions']['torch']}" in text
    table = text.split("benchmark.py checkpoint --size 20`")[1].split("```")[1]
    assert "background" in table and table.strip() in done.out
    assert "unrecognized arguments: --no-such-thing" in text  # the other one goes on
    monkeypatch.setattr(every, "QUICK", ("checkpoint --size 20", "data"))
    monkeypatch.setattr(every, "_MAIN", "import json, sys; print(json.dumps(dict(benchmark=sys.argv[1])))")
    done = run_tool("benchmark", "all", "--quick", "--only", "checkpoint")
    assert done.result["results"] == {"checkpoint --size 20": {"benchmark": "checkpoint"}}
    assert page.read_text() == text, "a part of them is printed alone"
    assert done.result["date"] == about["date"] and json.dumps(done.result["versions"])


@pytest.mark.parametrize("end", ["", "os.kill(os.getpid(), 9)"])
def test_a_benchmark_that_ends_without_a_result_has_failed(tmp_path, monkeypatch, capsys, end):
    (page := tmp_path / "page.md").write_text(PAGE)
    monkeypatch.setattr(every, "QUICK", ("boxes",))
    monkeypatch.setattr(every, "_MAIN", f"import os; print('half a table', flush=True); {end}")
    with pytest.raises(RuntimeError, match="these failed: boxes"):
        every.run(Namespace(quick=True, only=[], page=page))
    assert "half a table" in page.read_text() and f"exit status {-9 if end else 0}" in page.read_text()
    assert re.search(r"boxes +\S+ +\S+ +failed", capsys.readouterr().out)


def test_the_page_has_neither_logs_nor_paths_of_this_machine(tmp_path, monkeypatch):
    said = (
        "[2026-11-30 05:04:48,369] [WARNING] [real_accelerator.py:181:get_accelerator] Setting accelerator to CPU.",
        "11/30 04:59:56 - mmengine - INFO - LLM toy: 3 parameters",
        f"{ROOT}/configs/a.py, 16 samples",
        "[1, 2] stages",
        "{}",
    )
    (page := tmp_path / "page.md").write_text(PAGE)
    monkeypatch.setattr(every, "QUICK", ("boxes",))
    monkeypatch.setattr(every, "_MAIN", f"for line in {said!r}: print(line)")
    every.run(Namespace(quick=True, only=[], page=page))
    assert "```\nconfigs/a.py, 16 samples\n[1, 2] stages\n```" in page.read_text()


@pytest.mark.parametrize(
    ("vision", "llm", "way"),
    [(vision, "nano", way) for vision in VISION for way in ("ours", "reference", "stock")]
    + [("paper", llm, "ours") for llm in LLMS if llm != "nano"],
)
def test_every_size_of_a_measured_step_is_known_without_weights(vision, llm, way):
    model = build_model(Case(vision=vision, llm=llm, way=way), "meta")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_unknown_benchmarks_are_named():
    done = run_tool("benchmark", "all", "--only", "no-such")
    assert done.status == 1 and "there is no benchmark no-such; known: boxes," in done.err
