"""GQA: figures of the official script, computed by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from mg_llava.evaluation.score import score_predictions


def question(
    answer: str, structural: str, group: str | None, *steps: tuple[str, str], **fields: Any
) -> dict[str, Any]:
    return {
        "question": "Is the dog black?",
        "answer": answer,
        "imageId": "n1",
        "isBalanced": True,
        "types": {"structural": structural, "semantic": "attr", "detailed": "x"},
        "groups": {"global": group, "local": ""},
        "semantic": [{"operation": operation, "argument": argument} for operation, argument in steps],
        **fields,
    }


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    content = {
        "1": question("yes", "verify", "g", ("select", "dog"), ("exist", "?")),
        "2": question("dog", "query", "g", ("select", "x"), ("query", "name"), question="What is it ?"),
        "3": question("dog", "query", "g", ("select", "x"), ("filter", "y"), ("choose name", "a|b")),
        "4": question("no", "logical", None, ("select", "x")),
        "5": question("no", "logical", "g", isBalanced=False),
    }
    path = tmp_path / "testdev_balanced_questions.json"
    path.write_text(json.dumps(content))
    return path


def test_figures_by_hand(questions: Path) -> None:
    lines = [
        {"question_id": "1", "text": "Yes."},
        {"question_id": "2", "text": "Dog.."},
        {"question_id": "3", "text": "a dog"},
        {"question_id": "4", "text": "no "},  # spaces stay, and make it wrong
        {"question_id": "5", "text": "no"},
    ]
    result = score_predictions("gqa", [questions], lines)
    metrics = result["rules"]["official"]["metrics"]
    assert (result["n"], result["n_missing"], result["n_unknown"]) == (4, 0, 0)
    assert metrics["accuracy"] == 0.5
    assert (metrics["binary"], metrics["open"]) == (0.5, 0.5)
    assert (metrics["structural/logical"], metrics["structural/logical/n"]) == (0.0, 1)
    assert (metrics["semantic/attr"], metrics["semantic/attr/n"]) == (0.5, 4)
    assert (metrics["steps/1"], metrics["steps/2"]) == (pytest.approx(2 / 3), 0.0)
    assert (metrics["words/4"], metrics["words/4/n"]) == (0.5, 4)
    # One group with the answers yes (1, predicted 1) and dog (2, predicted 1): (0 + 1/2) * 3 / 3 / 100.
    assert metrics["distribution"] == pytest.approx(0.005)
    assert metrics["accuracy_rounded"] == 50.0
    assert metrics["steps/1_rounded"] == 66.67
    assert metrics["distribution_rounded"] == 0.01  # as printed: half of 0.01 is rounded up in binary


def test_the_official_form_of_predictions_is_taken_as_it_is(questions: Path) -> None:
    lines = [{"questionId": "1", "prediction": "yes"}, {"questionId": "2", "prediction": "Dog"}]
    result = score_predictions("gqa", [questions], lines)
    assert [one["score"] for one in result["rules"]["official"]["per_sample"]] == [1.0, 0.0, 0.0, 0.0]
    assert result["n_missing"] == 2
    assert any("2 of 4 questions have no prediction" in warning for warning in result["warnings"])


def test_missing_replies_are_no_answers_in_the_distribution(questions: Path) -> None:
    lines = [{"question_id": "1", "text": ""}, {"question_id": "x", "text": "yes"}]
    result = score_predictions("gqa", [questions], lines)
    assert (result["n_missing"], result["n_unknown"]) == (3, 1)
    assert result["rules"]["official"]["metrics"]["accuracy"] == 0.0
    assert result["rules"]["official"]["metrics"]["distribution"] == pytest.approx((1 + 2) * 3 / 3 / 100)


def test_validity_and_plausibility_need_the_choices(questions: Path, tmp_path: Path) -> None:
    choices = tmp_path / "val_choices.json"
    group = {"valid": ["yes", "no", "dog"], "plausible": ["yes"]}
    choices.write_text(json.dumps({str(i): group for i in range(1, 6)}))
    lines = [{"question_id": str(i), "text": text} for i, text in enumerate(["no", "dog", "yes", "cat"], start=1)]
    metrics = score_predictions("gqa", [questions, choices], lines)["rules"]["official"]["metrics"]
    assert (metrics["validity"], metrics["plausibility"]) == (0.75, 0.25)
    without = score_predictions("gqa", [questions], lines)
    assert "validity" not in without["rules"]["official"]["metrics"]


def test_a_split_without_answers(tmp_path: Path) -> None:
    path = tmp_path / "challenge_all_questions.json"
    path.write_text(json.dumps({"1": {"question": "?", "imageId": "n1", "isBalanced": True}}))
    result = score_predictions("gqa", [path], [{"question_id": "1", "text": "yes"}])
    assert result["rules"] == {}
    assert any("no answers" in warning for warning in result["warnings"])
