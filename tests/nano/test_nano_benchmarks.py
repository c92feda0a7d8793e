"""The miniature's questions in MMBench's and POPE's files: right answers, their own pictures and boxes, scores."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "data" / "nano"))
import benchmarks  # noqa: E402

sys.path.remove(str(ROOT / "data" / "nano"))
from mg_llava.evaluation.scoring.choice_table import CIRCULAR_STEP  # noqa: E402
from mg_llava.evaluation.suite import build_benchmarks  # noqa: E402

DIGITS = [[4, 6, 5], [1, 4], [0, 4, 9, 6]]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Held-out questions of three pictures, as ``make_data.py`` writes them."""
    lines = []
    for number, digits in enumerate(DIGITS):
        name = f"heldout/{number:05d}.jpg"
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((30, 40 + number, 3), 50 * number, np.uint8)).save(path)
        options = [digits[0], *[digit for digit in range(10) if digit not in digits][:3]]
        options = options[-number:] + options[:-number] if number else options
        choice = "Which?" + "".join(f"\n{letter}. {digit}" for letter, digit in zip("ABCD", options, strict=True))
        for kind, question, answer in [
            ("choice", choice, "ABCD"[options.index(digits[0])]),
            ("list", "List?", ", ".join(map(str, digits))),
        ]:
            picture = f"heldout-{number:05d}"
            line = {"id": f"{picture}-{kind}", "picture": picture, "image": name, "question": question}
            lines.append(line | {"answer": answer, "kind": kind})
    (tmp_path / "heldout.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    benchmarks.write_benchmark_files(tmp_path)
    return tmp_path


def scored(benchmark: Any, answers: dict[Any, str]) -> dict[str, Any]:
    lines = [benchmark.prediction(question, answers[question.id]) for question in benchmark.questions()]
    return benchmark.score(lines)


def test_mmbench(data: Path) -> None:
    benchmark = benchmarks.NanoMMBench(data / benchmarks.MMBENCH_FILE)
    questions = benchmark.questions()
    assert len(questions) == 12 and len({question.picture_key for question in questions}) == 3
    answers = {}
    for question in questions:
        base = question.id % CIRCULAR_STEP
        assert question.box_key == f"heldout-{base:05d}" and question.picture().width == 40 + base
        options = dict(line.split(". ") for line in question.text.splitlines()[1:])
        answers[question.id] = next(letter for letter, digit in options.items() if int(digit) in DIGITS[base])
    first = (data / "heldout.jsonl").read_text().splitlines()[0]
    assert questions[0].text == json.loads(first)["question"], "as the model was trained, without a request"
    assert len(set(answers[base + turn * CIRCULAR_STEP] for turn in range(4) for base in [0])) == 4
    result = scored(benchmark, answers)
    assert result["n"] == 12 and result["n_missing"] == result["n_unknown"] == 0
    wrong = scored(benchmark, answers | {CIRCULAR_STEP: "none of them"})
    rule, metric = benchmark.headline
    assert result["rules"][rule]["metrics"][metric] == 1.0
    assert wrong["rules"][rule]["metrics"][metric] == pytest.approx(2 / 3), "all copies of a question must be right"


def test_pope(data: Path) -> None:
    benchmark = benchmarks.NanoPOPE(data / benchmarks.POPE_FOLDER, data / "images")
    questions = benchmark.questions()
    assert len(questions) == len({question.id for question in questions}) == 18
    answers, absent = {}, {split: [] for split in benchmarks.SPLITS}  # type: ignore[var-annotated]
    for question in questions:
        number = int(str(question.box_key).removeprefix("heldout-"))
        digit = int(question.text.removeprefix("Is there a ").removesuffix(" in the picture?"))
        assert question.picture().width == 40 + number
        answers[question.id] = "Yes" if digit in DIGITS[number] else "No"
        if digit not in DIGITS[number]:
            absent[question.fields["category"]].append(digit)
    assert absent["popular"] == [0, 6, 1], "of the most frequent digits 4 and 6 the first that is not in the picture"
    assert absent["adversarial"] == [0, 6, 5], "6 is with 4 twice"
    result = scored(benchmark, answers)
    rule, metric = benchmark.headline
    assert result["rules"][rule]["metrics"][metric] == 1.0
    assert all(len(numbers) == 3 for numbers in absent.values())


def test_kinds(data: Path) -> None:
    benchmark = benchmarks.NanoKinds(data / "heldout.jsonl")
    answers = {line["id"]: line["answer"] + " " for line in benchmarks.load_lines(benchmark.data)}
    answers["heldout-00001-list"] = "1"
    result = scored(benchmark, answers)
    assert result["rules"]["exact"]["metrics"] == {
        "accuracy": pytest.approx(5 / 6),
        "kinds": {"choice": 1.0, "list": pytest.approx(2 / 3)},
    }
    assert benchmark.score([])["n_missing"] == 6


def test_evaluation_runs_all_of_them(data: Path) -> None:
    built = build_benchmarks(benchmarks.NAMES, data)
    assert [benchmark.name for benchmark in built] == ["nano", "mmbench_nano", "pope_nano"]
    assert [len(benchmark.questions()) for benchmark in built] == [6, 12, 18]
    assert all(question.picture().width for benchmark in built for question in benchmark.questions())
    (data / benchmarks.MMBENCH_FILE).unlink()
    with pytest.raises(FileNotFoundError, match=r"make_data\.py"):
        build_benchmarks(benchmarks.NAMES, data)
