"""Yes or no: how replies are read, POPE's splits, MME's pairs and HallusionBench's groups."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mg_llava.evaluation.families.mme import COGNITION, PERCEPTION
from mg_llava.evaluation.score import score_predictions
from mg_llava.evaluation.scoring.yes_no import mme_yes_no, pope_yes_no, reference_yes_no
from tests.evaluation.benchmark_files import write_json_lines, write_table


@pytest.mark.parametrize(
    ("reply", "pope", "reference", "mme"),
    [
        ("Yes", "yes", "Yes", "yes"),
        ("No.", "no", "No", "no"),
        (" Yes, there is.", "yes", "Yes", "yes"),
        ("  Yes", "yes", "Yes", "other"),  # "  ye"
        ("", "yes", "Unknown", "other"),
        ("NO", "yes", "No", "no"),
        ("nope", "yes", "Unknown", "no"),
        ("No\nThere", "yes", "No", "no"),
        ("No, it is not.", "no", "No", "no"),
        ("It is not. Yes", "no", "Yes", "other"),
        ("Not sure", "yes", "Unknown", "no"),
        ("not sure", "no", "Unknown", "no"),
        ("none", "yes", "Unknown", "no"),
        ("Now", "yes", "Unknown", "no"),
        ("The answer is yes.", "yes", "Yes", "other"),
        ("yes and no", "no", "Unknown", "yes"),
        ("no? yes", "yes", "Unknown", "no"),  # "no?" is no word of its own
        ("yes/no", "yes", "Unknown", "yes"),
        ("yesterday", "yes", "Unknown", "yes"),
        ("y", "yes", "Unknown", "other"),
        ("不是", "yes", "Unknown", "other"),
        ("Yes，有。", "yes", "Unknown", "yes"),
        ("A dog", "yes", "Unknown", "other"),
        ("N.O", "yes", "No", "other"),
        ("Yes.No", "yes", "Unknown", "yes"),
    ],
)
def test_readings(reply: str, pope: str, reference: str, mme: str) -> None:
    assert (pope_yes_no(reply), reference_yes_no(reply), mme_yes_no(reply)) == (pope, reference, mme)


@given(st.text())
def test_readings_take_any_text(reply: str) -> None:
    assert pope_yes_no(reply) in ("yes", "no")
    assert reference_yes_no(reply) in ("Yes", "No", "Unknown")
    assert mme_yes_no(reply) in ("yes", "no", "other")


LABELS = {"adversarial": "yyynn", "random": "ynn", "popular": "yn"}
OFFSETS = {"adversarial": 0, "random": 10_000_000, "popular": 20_000_000}


@pytest.fixture
def pope_folder(tmp_path: Path) -> Path:
    for split, labels in LABELS.items():
        lines = [
            {"question_id": n, "image": "i.jpg", "text": "?", "label": {"y": "yes", "n": "no"}[label]}
            for n, label in enumerate(labels, start=1)
        ]
        write_json_lines(tmp_path / f"coco_pope_{split}.json", lines)
    return tmp_path


def pope_lines(replies: dict[str, list[str]], with_category: bool = True) -> list[dict]:
    return [
        {"question_id": OFFSETS[split] + n, "text": text, **({"category": split} if with_category else {})}
        for split, texts in replies.items()
        for n, text in enumerate(texts, start=1)
    ]


@pytest.mark.parametrize("with_category", [True, False])
def test_pope(pope_folder: Path, with_category: bool) -> None:
    replies = {
        "adversarial": ["Yes", "Yes", "No", "Yes", "no"],  # TP 2, FN 1, FP 1, TN 1
        "random": ["yes", "", "No."],  # official: "" is yes; reference: no
        "popular": ["Yes", "No"],
    }
    lines = pope_lines(replies, with_category)[::-1]  # the order does not matter
    result = score_predictions("pope", [pope_folder], lines)
    assert (result["n"], result["n_missing"], result["n_unknown"]) == (10, 0, 0)
    official = result["rules"]["official"]["metrics"]
    assert [official[f"adversarial/{name}"] for name in ("TP", "FP", "TN", "FN")] == [2, 1, 1, 1]
    assert official["adversarial/accuracy"] == 0.6
    assert official["adversarial/f1"] == pytest.approx(2 / 3)
    assert official["adversarial/f1_rounded"] == 0.667
    assert official["adversarial/yes_ratio"] == 0.6
    assert official["random/f1"] == pytest.approx(2 / 3)
    assert official["popular/f1"] == 1.0
    assert official["f1"] == official["average_f1"] == pytest.approx(7 / 9)
    reference = result["rules"]["reference"]["metrics"]
    assert reference["random/f1"] == 1.0
    assert reference["f1"] == pytest.approx(8 / 9)


def test_pope_without_positives_is_zero_with_a_warning(pope_folder: Path) -> None:
    replies = {split: ["no"] * len(labels) for split, labels in LABELS.items()}
    result = score_predictions("pope", [pope_folder], pope_lines(replies))
    assert result["rules"]["official"]["metrics"]["f1"] == 0.0
    assert result["rules"]["official"]["metrics"]["adversarial/accuracy"] == 0.4
    assert any("divide by zero" in warning for warning in result["warnings"])


def test_pope_missing_predictions_are_wrong(pope_folder: Path) -> None:
    lines = [*pope_lines({"popular": ["Yes", "No"]}), {"question_id": 9_999, "category": "popular", "text": "no"}]
    result = score_predictions("pope", [pope_folder], lines)
    assert (result["n_missing"], result["n_unknown"]) == (8, 1)
    metrics = result["rules"]["official"]["metrics"]
    assert (metrics["popular/accuracy"], metrics["random/accuracy"]) == (1.0, 0.0)
    assert sum(sample["score"] for sample in result["rules"]["official"]["per_sample"]) == 2


def test_pope_of_a_single_file_takes_plain_ids(pope_folder: Path) -> None:
    lines = [{"question_id": n, "text": text} for n, text in ((1, "yes"), (2, "no"), (3, "yes"))]
    result = score_predictions("pope", [pope_folder / "coco_pope_random.json"], lines)
    assert result["n_missing"] == 0
    assert result["rules"]["official"]["metrics"]["random/accuracy"] == pytest.approx(2 / 3)


def test_pope_table_counts_a_question_in_each_of_its_splits(tmp_path: Path) -> None:
    rows = [
        {"index": 0, "question": "?", "answer": "Yes", "category": "adversarial,popular"},
        {"index": 1, "question": "?", "answer": "No", "category": "popular"},
        {"index": 2, "question": "?", "answer": "No", "category": "adversarial"},
    ]
    path = write_table(tmp_path / "POPE.tsv", rows)
    lines = [{"index": n, "prediction": text} for n, text in enumerate(["Yes", "unclear", "No"])]
    rules = score_predictions("pope", [path], lines)["rules"]
    assert rules["official"]["metrics"]["popular/accuracy"] == 0.5  # "unclear" is yes
    assert rules["reference"]["metrics"]["popular/accuracy"] == 1.0  # and no here
    pooled = rules["vlmevalkit"]["metrics"]
    assert (pooled["Overall"], pooled["acc"], pooled["popular/acc"]) == (1.0, 0.75, 0.5)  # and neither there


def mme_rows() -> list[dict]:
    rows = []
    for task in (*PERCEPTION, *COGNITION):
        for picture in range(2):
            for label in ("Yes", "No"):
                question = f"Is {label} right for {picture}? Please answer yes or no."
                row = {"index": len(rows), "image": "i" * 80, "question": question, "answer": label}
                rows.append({**row, "category": task, "image_path": f"{task}/{picture:04}.jpg"})
    return rows


def llava_line(row: dict, text: str) -> dict:
    task, name = row["image_path"].split("/")
    question = row["question"].replace(" Please answer yes or no.", "")
    prompt = f"{question}\nAnswer the question using a single word or phrase."
    return {"question_id": f"{task}/images/{name}", "category": task, "question": prompt, "text": text}


@pytest.mark.parametrize("by_index", [True, False])
def test_mme(tmp_path: Path, by_index: bool) -> None:
    rows = mme_rows()
    replies = [row["answer"] for row in rows]
    replies[0] = "The answer is yes."  # existence, first picture: other to the script, right to the reference
    replies[4] = "No"  # count, first picture: wrong
    path = write_table(tmp_path / "MME.tsv", rows)
    lines = [
        {"index": row["index"], "prediction": text} if by_index else llava_line(row, text)
        for row, text in zip(rows, replies, strict=True)
    ]
    result = score_predictions("mme", [path], lines[::-1])
    assert (result["n_missing"], result["n_unknown"]) == (0, 0)
    official, reference = (result["rules"][name]["metrics"] for name in ("official", "reference"))
    assert (official["existence"], official["count"], official["color"]) == (125.0, 125.0, 200.0)
    assert (official["perception"], official["cognition"], official["total"]) == (1850.0, 800.0, 2650.0)
    assert (official["existence/acc"], official["existence/acc_plus"]) == (0.75, 0.5)
    assert (official["existence/other_num"], official["existence/precision"], official["existence/recall"]) == (
        1,
        1,
        1,
    )
    assert (official["count/TP"], official["count/FN"], official["count/recall"]) == (1, 1, 0.5)
    assert (reference["existence"], reference["perception"], reference["reasoning"]) == (200.0, 1925.0, 800.0)


def test_mme_release_folder_has_two_layouts(tmp_path: Path) -> None:
    texts = "Is it red? Please answer yes or no.\tYes\nIs it blue? Please answer yes or no.\tNo\n"
    for folder in (tmp_path / "color", tmp_path / "artwork" / "questions_answers_YN"):
        folder.mkdir(parents=True)
        (folder / "0001.txt").write_text(texts)
    lines = [
        {"question_id": f"{place}/0001.jpg", "category": place.split("/")[0], "question": question, "text": text}
        for place in ("color", "artwork/images")
        for question, text in (("Is it red?", "Yes"), ("Is it blue?  Please answer yes or no.", "Yes"))
    ]
    result = score_predictions("mme", [tmp_path], lines)
    metrics = result["rules"]["official"]["metrics"]
    assert (metrics["color"], metrics["artwork"], metrics["perception"]) == (50.0, 50.0, 100.0)
    assert any("lacks the tasks" in warning for warning in result["warnings"])


def test_mme_lines_without_a_question_go_by_order(tmp_path: Path) -> None:
    path = write_table(tmp_path / "MME.tsv", mme_rows()[:2])
    lines = [{"question_id": "existence/0000.jpg", "text": text} for text in ("yes", "no", "yes")]
    result = score_predictions("mme", [path], lines)
    assert result["rules"]["official"]["metrics"]["existence"] == 200.0
    assert result["n_unknown"] == 1
    assert any("order" in warning for warning in result["warnings"])


def test_mme_half_missing(tmp_path: Path) -> None:
    rows = mme_rows()
    path = write_table(tmp_path / "MME.tsv", rows)
    result = score_predictions("mme", [path], [{"index": r["index"], "prediction": r["answer"]} for r in rows[::2]])
    metrics = result["rules"]["official"]["metrics"]
    assert result["n_missing"] == len(rows) / 2
    assert (metrics["existence"], metrics["existence/acc_plus"], metrics["existence/other_num"]) == (50.0, 0.0, 2)


def test_hallusionbench(tmp_path: Path) -> None:
    def row(index: str, answer: str, image: str = "i" * 80) -> dict:
        category, kind = index.split("_")[:2]
        cells = {"index": index, "question": "?", "answer": answer, "image": image, "category": category}
        return {**cells, "l2-category": kind}

    rows = [
        row("VD_chart_x_0_1_0", "Yes"),
        row("VD_chart_x_0_1_1", "No"),
        row("VD_chart_x_0_2_0", "No"),
        row("VS_map_x_0_1_0", "Yes"),
        row("VS_map_x_0_0_0", "No", image=""),
    ]
    path = write_table(tmp_path / "HallusionBench.tsv", rows)
    replies = ["Yes, it is.", "no", "Yes", "unclear", "No"]
    lines = [{"index": r["index"], "prediction": text} for r, text in zip(rows, replies, strict=True)]
    result = score_predictions("hallusionbench", [path], lines)
    metrics = result["rules"]["reference"]["metrics"]
    assert (result["n"], result["n_unknown"]) == (4, 0)
    assert metrics["aAcc"] == 0.5
    assert metrics["fAcc"] == pytest.approx(1 / 3)  # figure 1 of the chart; not figure 2, not the map
    assert metrics["qAcc"] == pytest.approx(1 / 3)  # question 1 of the chart
    assert (metrics["VD/aAcc"], metrics["chart/fAcc"], metrics["VS/qAcc"]) == (pytest.approx(2 / 3), 0.5, 0.0)


def test_bad_labels_name_file_and_row(tmp_path: Path) -> None:
    path = write_table(tmp_path / "POPE.tsv", [{"index": 0, "question": "?", "answer": "maybe"}])
    with pytest.raises(ValueError, match=r"POPE\.tsv: row 1 has the answer 'maybe'"):
        score_predictions("pope", [path], [])
    folder = tmp_path / "labels"
    folder.mkdir()
    (folder / "coco_pope_random.json").write_text(json.dumps({"question_id": 1, "label": "yes"}) + '\n{"question')
    with pytest.raises(ValueError, match=r"coco_pope_random\.json: line 2"):
        score_predictions("pope", [folder], [])
