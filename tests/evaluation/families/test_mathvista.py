"""MathVista's second stage, without a judge."""

import json
from pathlib import Path
from typing import Any

import pytest

from mg_llava.evaluation.families.mathvista import extract_by_rule, make_query, normalize_extraction
from mg_llava.evaluation.score import score_predictions
from mg_llava.evaluation.scoring.files import read_predictions

CHOICE = {
    "question_type": "multi_choice",
    "answer_type": "text",
    "choices": ["145°", "135°", "(C) x"],
    "precision": None,
}
INTEGER = {"question_type": "free_form", "answer_type": "integer", "choices": None, "precision": None}
FLOAT = {"question_type": "free_form", "answer_type": "float", "choices": None, "precision": 2}
LIST = {"question_type": "free_form", "answer_type": "list", "choices": None, "precision": None}


@pytest.mark.parametrize(
    ("problem", "extraction", "expected"),
    [
        (CHOICE, "B", "135°"),
        (CHOICE, "b", "145°"),  # a small letter is no letter: the nearest choice by edit distance
        (CHOICE, "(b) 145", "135°"),
        (CHOICE, " 145 ", "145°"),
        (CHOICE, "", "145°"),  # all choices of that length are as near: the first
        (CHOICE, None, "145°"),
        (CHOICE, "D", "145°"),
        ({**CHOICE, "choices": []}, "A", None),
        (INTEGER, "7.9", "7"),
        (INTEGER, " -3 ", "-3"),
        (INTEGER, "1,000", None),
        (INTEGER, "seven", None),
        (INTEGER, "", None),
        (INTEGER, "inf", None),
        (INTEGER, None, None),
        (FLOAT, "1.5", "1.5"),
        (FLOAT, "1.50", "1.5"),
        (FLOAT, "1.005", "1.0"),
        ({**FLOAT, "precision": 1.0}, "1.26", "1.3"),  # Hugging Face's copy has the precision as a float
        ({**FLOAT, "precision": None}, "1.26", None),
        (FLOAT, "1.2 cm", None),
        (LIST, "[1, 2]", "[1, 2]"),
        (LIST, [1, 2], "[1, 2]"),
    ],
)
def test_extracted_answers_are_normalized(problem: dict[str, Any], extraction: Any, expected: str | None) -> None:
    assert normalize_extraction(extraction, problem) == expected


@pytest.mark.parametrize(
    ("problem", "reply", "expected"),
    [
        (CHOICE, "135°", "135°"),
        (CHOICE, "B", None),
        (INTEGER, "5", "5"),
        (INTEGER, "5.0", None),
        (FLOAT, "1.50", "1.5"),
        (FLOAT, "about 1.5", None),
        (LIST, "[1]", None),
        (LIST, "", ""),
    ],
)
def test_replies_that_need_no_judge(problem: dict[str, Any], reply: str, expected: str | None) -> None:
    assert extract_by_rule(reply, problem) == expected
    assert extract_by_rule('The answer is "5".', LIST, quick=True) == "5"


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    meta = {"language": "english", "source": "PlotQA", "skills": ["arithmetic reasoning", "statistical reasoning"]}
    content = {
        "1": {**CHOICE, "question": "?", "answer": "135°", "image": "images/1.jpg", "metadata": meta},
        "2": {**INTEGER, "question": "?", "answer": "4", "metadata": {**meta, "skills": ["arithmetic reasoning"]}},
        "3": {**FLOAT, "question": "?", "answer": "1.50", "metadata": {**meta, "language": "chinese"}},
        "4": {**LIST, "question": "?", "answer": "[1, 2]", "metadata": meta},
    }
    path = tmp_path / "test_mini.json"
    path.write_text(json.dumps(content))
    return path


def test_figures_of_the_official_output_file(problems: Path, tmp_path: Path) -> None:
    content = json.loads(problems.read_text())
    for name, extraction in {"1": "(B)", "2": "4.2", "3": "1.5"}.items():
        content[name].update(extraction=extraction, response="long", pid=name)
    del content["4"]
    path = tmp_path / "output.json"
    path.write_text(json.dumps(content))
    result = score_predictions("mathvista", [problems], read_predictions(path))
    metrics = result["rules"]["official"]["metrics"]
    assert (metrics["correct"], metrics["total"], result["n_missing"]) == (2, 3, 1)
    assert metrics["accuracy"] == pytest.approx(2 / 3)  # "1.5" is not "1.50"
    assert metrics["accuracy_over_all"] == 0.5
    assert metrics["accuracy_rounded"] == 66.67
    assert metrics["skills/arithmetic reasoning"] == pytest.approx(2 / 3)
    assert (metrics["skills/arithmetic reasoning/correct"], metrics["skills/arithmetic reasoning/total"]) == (2, 3)
    assert metrics["skills/statistical reasoning/total"] == 2
    assert metrics["language/chinese"] == 0.0
    assert (metrics["answer_type/float_rounded"], metrics["answer_type/text_rounded"]) == (0.0, 100.0)


def test_replies_without_extraction_are_scored_as_they_are_and_counted(problems: Path) -> None:
    lines = [
        {"pid": "1", "response": ["135°"]},  # a list of one, as MG-LLaVA writes
        {"pid": 2, "response": "There are 4."},
        {"pid": "3", "response": None},
        {"pid": "9", "response": "x"},
    ]
    result = score_predictions("mathvista", [problems], lines)
    assert [one["score"] for one in result["rules"]["official"]["per_sample"]] == [1.0, 0.0, 0.0, 0.0]
    assert (result["n_missing"], result["n_unknown"]) == (1, 1)
    assert any("1 replies have no extracted answer" in warning for warning in result["warnings"])


def test_queries() -> None:
    problem = {**FLOAT, "precision": 1.0, "question": "How long?", "unit": "cm"}
    assert make_query(problem) == (
        "Hint: Please answer the question requiring a floating-point number with one decimal place and provide the "
        "final value, e.g., 1.2, 1.3, 1.4, at the end.\nQuestion: How long? (Unit: cm)"
    )
    assert make_query({**CHOICE, "question": "Which?"}) == (
        "Hint: Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the end.\n"
        "Question: Which?\nChoices:\n(A) 145°\n(B) 135°\n(C) (C) x"
    )
