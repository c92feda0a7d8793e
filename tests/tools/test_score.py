"""The command that scores predictions: files in, JSON out, clear words for what is wrong, and no torch."""

import json
import re
import subprocess
import sys
from pathlib import Path

import openpyxl
import pytest

from mg_llava.commands import score
from mg_llava.evaluation.benchmark import BENCHMARKS
from mg_llava.evaluation.scoring.files import read_predictions
from tests.evaluation.benchmark_files import write_json_lines, write_table

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = [{"index": n, "question": "?", "A": "x", "B": "y", "answer": "A", "category": "é"} for n in range(4)]
    return write_table(tmp_path / "MMBench_DEV_EN.tsv", rows)


def run(benchmark: str, data: Path, predictions: Path, *more: str) -> tuple[int, Path]:
    out = predictions.parent / "out" / "result.json"
    status = score.main([benchmark, "--data", str(data), "--predictions", str(predictions), "--out", str(out), *more])
    return status, out


def test_result_has_the_documented_layout(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    lines = [{"index": n, "prediction": text} for n, text in enumerate(["A", "(A)", "B"])]
    status, out = run(
        "mmbench", table, write_json_lines(tmp_path / "p.jsonl", [*lines, {"index": 9, "prediction": ""}])
    )
    assert status == 0
    result = json.loads(out.read_text(encoding="utf-8"))
    assert {name: result[name] for name in ("benchmark", "n", "n_missing", "n_unknown")} == {
        "benchmark": "mmbench",
        "n": 4,
        "n_missing": 1,
        "n_unknown": 1,
    }
    assert set(result["rules"]) == {"reference", "vlmevalkit"}
    assert result["rules"]["reference"]["metrics"]["Average"] == 0.5
    assert {"id", "score"} <= set(result["rules"]["reference"]["per_sample"][0])
    printed = capsys.readouterr()
    assert "Average" in printed.out
    assert "1 of 4 questions have no prediction (3)" in printed.err


@pytest.mark.parametrize("kind", ["json", "list", "dict", "tsv", "csv", "xlsx"])
def test_predictions_come_in_many_forms(kind: str, table: Path, tmp_path: Path) -> None:
    lines = [{"index": n, "prediction": text} for n, text in enumerate(["A", '猫, "A"', "", "B"])]
    path = tmp_path / f"p.{'json' if kind in ('list', 'dict') else kind}"
    if kind in ("tsv", "csv"):
        write_table(path, lines)
    elif kind == "xlsx":
        book = openpyxl.Workbook()
        for cells in (("index", "prediction"), *((line["index"], line["prediction"] or None) for line in lines)):
            book.active.append(cells)
        book.save(path)
    elif kind == "dict":
        path.write_text(json.dumps({str(line["index"]): line["prediction"] for line in lines}))
    else:
        path.write_text(json.dumps(lines) if kind == "list" else "\n\n".join(map(json.dumps, lines)))
    status, out = run("mmbench", table, path)
    result = json.loads(out.read_text(encoding="utf-8"))
    assert (status, result["n_missing"], result["n_unknown"]) == (0, 0, 0)
    assert result["rules"]["reference"]["metrics"]["Average"] == 0.5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"index": 1, "prediction": "A"}\n{"index": 2, "pred', r"p\.jsonl: line 2 is not JSON"),
        ('[{"index": 1, "prediction": "A"},', r"p\.jsonl: line 1: broken JSON list"),
        ("[1, 2]", "entry 1: expected a JSON object"),
        ('{"prediction": "A"}\n{"prediction": "B"}', "prediction 1 has no id"),
        ('{"index": 1, "answer_text": "A"}\n{"index": 2, "answer_text": "A"}', "prediction 1 has no reply"),
    ],
)
def test_bad_predictions_are_said_in_one_line(
    content: str, message: str, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(content)
    status, out = run("mmbench", table, path)
    error = capsys.readouterr().err
    assert (status, out.exists(), error.count("\n")) == (2, False, 1)
    assert re.search(message, error), error


def test_a_truncated_table_is_said_in_one_line(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    table.write_bytes(table.read_bytes()[:-8])
    status, _ = run("mmbench", table, write_json_lines(tmp_path / "p.jsonl", []))
    assert status == 2
    assert "MMBench_DEV_EN.tsv: row 4 (line 5)" in capsys.readouterr().err


def test_missing_files_and_unknown_benchmarks(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    predictions = write_json_lines(tmp_path / "p.jsonl", [])
    assert run("mmbench", tmp_path / "no.tsv", predictions)[0] == 2
    assert run("mmbench", table, tmp_path / "no.jsonl")[0] == 2
    assert run("scienceq", tmp_path, predictions)[0] == 2
    assert "did you mean scienceqa" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["tsv", "xlsx", "json"])
def test_submission_of_a_test_split(suffix: str, tmp_path: Path) -> None:
    rows = [{"index": n, "question": "?", "image": "i" * 99, "A": "x", "B": "y"} for n in (1, 2)]
    table = write_table(tmp_path / "MMBench_TEST_EN.tsv", rows)
    file = tmp_path / f"upload.{suffix}"
    predictions = write_json_lines(tmp_path / "p.jsonl", [{"index": 2, "prediction": "B"}])
    status, out = run("mmbench_test_en", table, predictions, "--submission", str(file))
    assert (status, json.loads(out.read_text())["rules"]) == (0, {})
    expected = [("1", "?", "x", "y", ""), ("2", "?", "x", "y", "B")]
    lines = [tuple("" if v is None else str(v) for v in line.values()) for line in read_predictions(file)]
    assert lines == expected


TEXTS = ["=2x", "=B", "#N/A", "#DIV/0!", "=HYPERLINK(1)", "TRUE", "1e5", "'x", "@sum", "+1"]


@pytest.mark.parametrize("suffix", ["xlsx", "tsv", "json"])
def test_texts_stay_texts_in_an_upload(suffix: str, tmp_path: Path) -> None:
    rows = [{"index": n, "question": text, "=A": "head", "A": text, "B": "y"} for n, text in enumerate(TEXTS)]
    table = write_table(tmp_path / "MMBench_TEST_EN.tsv", rows)
    predictions = write_json_lines(
        tmp_path / "p.jsonl", [{"index": n, "prediction": text} for n, text in enumerate(TEXTS)]
    )
    file = tmp_path / f"upload.{suffix}"
    assert run("mmbench_test_en", table, predictions, "--submission", str(file))[0] == 0
    if suffix == "xlsx":
        sheet = openpyxl.load_workbook(file, data_only=True).active  # as the server's reader sees it
        head, *lines = [[cell.value for cell in line] for line in sheet.iter_rows()]
        read = [dict(zip(head, line, strict=True)) for line in lines]
    else:
        read = read_predictions(file)
    assert [(line["question"], line["A"], line["prediction"], line["=A"]) for line in read] == [
        (text, text, text, "head") for text in TEXTS
    ]


def test_a_text_that_no_spreadsheet_holds_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    table = write_table(tmp_path / "MMBench_TEST_EN.tsv", [{"index": 1, "question": "?", "A": "x", "B": "y"}])
    predictions = write_json_lines(tmp_path / "p.jsonl", [{"index": 1, "prediction": "x" * 40_000}])
    assert run("mmbench_test_en", table, predictions, "--submission", str(tmp_path / "u.xlsx"))[0] == 2
    assert "'prediction' of row 1 has 40000 characters" in capsys.readouterr().err
    assert not (tmp_path / "u.xlsx").exists()


def test_no_submission_where_there_are_answers(table: Path, tmp_path: Path) -> None:
    predictions = write_json_lines(tmp_path / "p.jsonl", [])
    assert run("mmbench", table, predictions, "--submission", str(tmp_path / "u.xlsx"))[0] == 2


def test_scoring_imports_neither_torch_nor_the_model() -> None:
    code = (
        "import sys, mg_llava.evaluation.judging.run\n"
        "from mg_llava.evaluation.benchmark import BENCHMARKS\n"
        "assert len(BENCHMARKS.scorers) > 30\n"
        "bad = [m for m in ('torch', 'transformers', 'mmengine', 'numpy', 'PIL') if m in sys.modules]\n"
        "sys.exit(', '.join(bad) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_help_names_every_benchmark(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        score.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in BENCHMARKS.scorers)
