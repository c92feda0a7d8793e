"""SEED-Bench, ScienceQA and MMVP from their own files."""

import json
from pathlib import Path

import pytest

from mg_llava.evaluation.families.mmvp import read_option
from mg_llava.evaluation.families.science_qa import read_letter
from mg_llava.evaluation.score import score_predictions
from tests.evaluation.benchmark_files import write_table


@pytest.fixture
def seed_file(tmp_path: Path) -> Path:
    questions = [
        {"question_id": "1", "question_type_id": 1, "data_type": "image", "answer": "B"},
        {"question_id": "2", "question_type_id": 1, "data_type": "image", "answer": "C"},
        {"question_id": "3", "question_type_id": 2, "data_type": "image", "answer": "A"},
        {"question_id": "v4", "question_type_id": 10, "data_type": "video", "answer": "D"},
    ]
    types = {"Scene Understanding": 1, "Instance Identity": 2, "Action Recognition": 10}
    path = tmp_path / "SEED-Bench.json"
    path.write_text(json.dumps({"questions": questions, "question_type": types}))
    return path


def test_seed_needs_the_bare_letter(seed_file: Path) -> None:
    lines = [
        {"question_id": 1, "text": "B"},
        {"question_id": 2, "text": "C."},
        {"question_id": 3, "text": " A"},
        {"question_id": "v4", "text": "D"},
    ]
    result = score_predictions("seed", [seed_file], lines)
    metrics = result["rules"]["official"]["metrics"]
    assert (metrics["total"], metrics["image"], metrics["video"]) == (0.5, pytest.approx(1 / 3), 1.0)
    assert metrics["image_rounded"] == 33.33
    assert (metrics["Scene Understanding"], metrics["Instance Identity"]) == (0.5, 0.0)
    assert any("Instance Identity" in warning for warning in result["warnings"])


def test_seed_missing_is_wrong(seed_file: Path) -> None:
    result = score_predictions("seed", [seed_file.parent], [{"question_id": "1", "text": "B"}])
    assert result["n_missing"] == 3
    assert result["rules"]["official"]["metrics"]["total"] == 0.25


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"),
        ("B.", "FAILED"),
        ("B. cat", "B"),
        ("B.cat", "FAILED"),
        ("(B)", "FAILED"),
        ("b", "FAILED"),
        (" B", "FAILED"),
        ("Answer: B", "FAILED"),
        ("The answer is B", "FAILED"),  # a character has to follow
        ("The answer is B.", "B"),
        ("The answer is B because", "B"),
        ("The answer is B。", "B"),
        ("The answer is B\n", "FAILED"),
        ("The answer is A. The answer is B.", "FAILED"),
        ("The answer is F.", "F"),
        ("A dog", "FAILED"),
        ("", "FAILED"),
    ],
)
def test_scienceqa_reading(reply: str, letter: str) -> None:
    assert read_letter(reply) == letter


@pytest.fixture
def science_folder(tmp_path: Path) -> Path:
    problems = {
        "1": {"choices": ["x", "y"], "answer": 1, "image": "image.png"},
        "2": {"choices": ["x", "y"], "answer": 0, "image": None},
        "3": {"choices": ["x", "y", "z"], "answer": 2, "image": "image.png"},
        "4": {"choices": ["x", "y"], "answer": 0, "image": None},
    }
    items = [
        {"id": name, "conversations": [{"value": "?"}], **({"image": "i.png"} if problem["image"] else {})}
        for name, problem in problems.items()
    ]
    (tmp_path / "problems.json").write_text(json.dumps(problems))
    (tmp_path / "pid_splits.json").write_text(json.dumps({"test": ["1", "2", "3"], "val": ["4"]}))
    (tmp_path / "llava_test_CQM-A.json").write_text(json.dumps(items))
    return tmp_path


@pytest.mark.parametrize("with_prompt", [True, False])
def test_scienceqa(science_folder: Path, with_prompt: bool) -> None:
    replies = {"1": ("B", "<image>\n?"), "2": ("C", "?"), "3": ("The answer is C.", "<image>\n?")}
    lines = [
        {"question_id": name, "text": text, **({"prompt": prompt} if with_prompt else {})}
        for name, (text, prompt) in replies.items()
    ]
    metrics = score_predictions("scienceqa", [science_folder], lines)["rules"]["official"]["metrics"]
    assert metrics["accuracy"] == pytest.approx(2 / 3)  # C is no choice of question 2
    assert metrics["accuracy_rounded"] == 66.67
    assert (metrics["IMG-Accuracy"], metrics["correct"], metrics["count"]) == (1.0, 2, 3)


def test_scienceqa_missing_leaves_the_pictures_denominator(science_folder: Path) -> None:
    lines = [{"question_id": 1, "text": "B", "prompt": "<image>"}, {"question_id": 9, "text": "A", "prompt": ""}]
    result = score_predictions("scienceqa", [science_folder], lines)
    metrics = result["rules"]["official"]["metrics"]
    assert (result["n_missing"], result["n_unknown"]) == (2, 1)
    assert (metrics["IMG-Accuracy"], metrics["image_accuracy"], metrics["accuracy"]) == (
        1.0,
        0.5,
        pytest.approx(1 / 3),
    )
    assert any("left out of IMG-Accuracy" in warning for warning in result["warnings"])


def test_scienceqa_other_splits(science_folder: Path) -> None:
    result = score_predictions("scienceqa", [science_folder], [{"question_id": "4", "text": "A"}], split="val")
    assert result["rules"]["official"]["metrics"]["accuracy"] == 1.0
    assert result["rules"]["official"]["metrics"]["IMG-Accuracy"] == 0.0
    with pytest.raises(ValueError, match="it has test, val"):
        score_predictions("scienceqa", [science_folder], [], split="dev")


@pytest.fixture
def mmvp_file(tmp_path: Path) -> Path:
    answers = ["(a)", "(b)", "(a)", "(b)"]
    return write_table(
        tmp_path / "Questions.csv",
        [
            {"lndex": n, "Question": 'Is it "x", or y?', "Options": "(a) x (b) y", "Correct Answer": answer}
            for n, answer in enumerate(answers, start=1)
        ],
    )


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("(B)", "b"),
        ("B.", "b"),
        ("b", "b"),
        ("The answer is B because", "b"),
        ("Answer: B", "b"),
        ("A dog", "a"),
        ("option (b)", "b"),
        ("", ""),
        (" Yes, there is.", ""),
        ("是", ""),
    ],
)
def test_mmvp_letter(reply: str, letter: str) -> None:
    assert read_option(reply) == letter


def test_mmvp_by_letter_and_by_judge(mmvp_file: Path) -> None:
    replies = [("(a)", "Yes"), ("(b) y", "yes"), ("a", "yes"), ("a", "Yes.")]
    lines = [
        {"question_id": n, "response": text, "judge": verdict} for n, (text, verdict) in enumerate(replies, start=1)
    ]
    result = score_predictions("mmvp", [mmvp_file], lines)
    assert result["rules"]["lmms_eval"]["metrics"] == {"pair_accuracy": 0.5, "accuracy": 0.75}
    assert result["rules"]["official"]["metrics"] == {"pair_accuracy": 0.5, "accuracy": 0.75}
    assert any("neither yes nor no" in warning for warning in result["warnings"])


def test_mmvp_without_judge_has_no_official_figure(mmvp_file: Path) -> None:
    result = score_predictions("mmvp", [mmvp_file], [{"question_id": 1, "response": "(a)"}])
    assert list(result["rules"]) == ["lmms_eval"]
    assert result["rules"]["lmms_eval"]["metrics"]["accuracy"] == 0.25
    assert (result["n_missing"], any("no judge" in warning for warning in result["warnings"])) == (3, True)
