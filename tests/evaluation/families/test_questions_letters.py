"""Questions and prompts of multiple choice, yes or no, SEED-Bench, ScienceQA and MMVP."""

import json
from pathlib import Path

import pytest
from PIL import Image

from mg_llava.evaluation.benchmark import BENCHMARKS
from mg_llava.tokens import IMAGE_PLACEHOLDER
from tests.evaluation.benchmark_files import picture_base64, write_json_lines, write_table


def build(kind: str, data: Path, **settings: object):
    return BENCHMARKS.build({"type": kind, "data": str(data), **settings})


def test_mmbench_prompt_and_pictures(tmp_path: Path) -> None:
    rows = [
        {
            "index": 3,
            "image": picture_base64(),
            "question": "What?",
            "hint": "Look.",
            "A": "x",
            "C": "z",
            "answer": "A",
        },
        {"index": 1_000_003, "image": "3", "question": "What?", "hint": "nan", "A": "猫", "B": "y", "answer": "B"},
    ]
    benchmark = build("MMBench", write_table(tmp_path / "m.tsv", rows))
    first, second = benchmark.questions()
    request = "Answer with the option's letter from the given choices directly."
    assert first.text == f"Look.\nWhat?\nA. x\nC. z\n{request}"
    assert second.text == "What?\nA. 猫\nB. y\n请直接回答选项字母。"
    assert (first.id, second.id, first.picture_key == second.picture_key) == (3, 1_000_003, True)
    assert first.picture().size == second.picture().size == (20, 12)
    lines = [benchmark.prediction(question, text) for question, text in ((first, "A"), (second, "B"))]
    assert lines == [{"index": 3, "prediction": "A"}, {"index": 1_000_003, "prediction": "B"}]
    assert benchmark.score(lines)["rules"]["reference"]["metrics"]["circular"] == 1.0
    other = build("MMBench", tmp_path / "m.tsv", prompt="vlmevalkit").questions()[0].text
    assert other.startswith("Hint: Look.\nQuestion: What?\nOptions:\nA. x\nC. z\nPlease select")


def test_circular_copies_have_the_boxes_of_their_base_row(tmp_path: Path) -> None:
    other = picture_base64((0, 0, 255))
    cells = {3: picture_base64(), 1_000_003: "3", 2_000_003: picture_base64(), 3_000_003: other, 7_000_009: other}
    rows = [{"index": n, "image": cell, "question": "?", "A": "x", "B": "y"} for n, cell in cells.items()]
    questions = build("MMBench", write_table(tmp_path / "m.tsv", rows)).questions()
    assert [question.id for question in questions] == list(cells)
    # the last two only look like copies: another picture, and no base row
    assert [question.box_key for question in questions] == [3, 3, 3, 3_000_003, 7_000_009]


def test_several_pictures_are_placed_where_the_text_names_them(tmp_path: Path) -> None:
    cell = str([picture_base64((n, 0, 0)) for n in range(2)])
    rows = [
        {"index": 1, "image": cell, "question": "Is <image 1> like <image 2>?", "A": "x", "B": "y", "F": "f"},
        {"index": 2, "image": cell, "question": "See <image 2>", "A": "x", "B": "y"},
        {"index": 3, "image": picture_base64(), "question": "See <image 1>", "A": "x", "B": "y"},
    ]
    first, second, third = build("MMMU", write_table(tmp_path / "m.tsv", rows)).questions()
    assert first.text.startswith(f"Is {IMAGE_PLACEHOLDER} like {IMAGE_PLACEHOLDER}?\nA. x\nB. y\nF. f\n")
    assert second.text.startswith("See <image 2>\n")
    assert third.text.startswith("See <image 1>\n")
    assert (first.frames, second.frames, third.frames) == (2, 2, None)
    assert [image.getpixel((0, 0))[0] for image in first.picture()] == [0, 1]


def test_pope_ids_and_prompt(tmp_path: Path) -> None:
    Image.new("RGB", (5, 4)).save(tmp_path / "i.png")
    for split in ("random", "popular"):
        line = {"question_id": 1, "image": "i.png", "text": "Is there a dog?", "label": "yes"}
        write_json_lines(tmp_path / f"coco_pope_{split}.json", [line])
    benchmark = build("POPE", tmp_path, image_folder=str(tmp_path))
    questions = benchmark.questions()
    assert [question.id for question in questions] == [20_000_001, 10_000_001]
    assert questions[0].text == "Is there a dog?\nPlease answer the question with yes or no."
    assert questions[0].picture().size == (5, 4)
    assert questions[0].picture_key == questions[1].picture_key
    lines = [benchmark.prediction(question, "Yes") for question in questions]
    assert lines[0] == {"question_id": 20_000_001, "category": "popular", "text": "Yes"}
    result = benchmark.score(lines)
    assert (result["n_missing"], result["rules"]["official"]["metrics"]["f1"]) == (0, 1.0)


@pytest.mark.parametrize("release", [True, False])
def test_mme_prompt_and_round_trip(tmp_path: Path, release: bool) -> None:
    texts = ["Is it red? Please answer yes or no.", "Is it blue? Please answer yes or no."]
    if release:
        (tmp_path / "color").mkdir()
        lines = [f"{text}\t{answer}" for text, answer in zip(texts, ("Yes", "No"), strict=True)]
        (tmp_path / "color" / "0001.txt").write_text("\n".join(lines))
        Image.new("RGB", (20, 12)).save(tmp_path / "color" / "0001.png")
        data = tmp_path
    else:
        cells = {"image": picture_base64(), "category": "color", "image_path": "color/0001.png"}
        rows = [
            {"index": n, "question": text, "answer": answer, **cells}
            for n, (text, answer) in enumerate(zip(texts, ("Yes", "No"), strict=True))
        ]
        data = write_table(tmp_path / "MME.tsv", rows)
    benchmark = build("MME", data)
    questions = benchmark.questions()
    assert questions[0].text == "Is it red? Please answer the question only a single word yes or no."
    assert questions[0].picture().size == (20, 12)
    assert questions[0].picture_key == questions[1].picture_key
    result = benchmark.score([benchmark.prediction(q, text) for q, text in zip(questions, ("Yes", "No"), strict=True)])
    assert result["rules"]["official"]["metrics"]["color"] == 200.0
    llava = build("MME", data, prompt="llava").questions()[0].text
    assert llava == "Is it red?\nAnswer the question using a single word or phrase."


def test_hallusionbench_asks_about_pictures_only(tmp_path: Path) -> None:
    rows = [
        {"index": "VD_chart_x_0_1_0", "image": picture_base64(), "question": "So?", "answer": "Yes"},
        {"index": "VS_chart_x_0_0_0", "image": "", "question": "So?", "answer": "No"},
    ]
    (question,) = build("HallusionBench", write_table(tmp_path / "h.tsv", rows)).questions()
    assert (question.id, question.text) == ("VD_chart_x_0_1_0", "So?\nPlease answer the question with yes or no.")


def test_seed_asks_about_pictures_only(tmp_path: Path) -> None:
    item = {"question": "What?", "question_type_id": 1, "answer": "A", "data_id": "1_2"}
    item |= {f"choice_{letter}": letter * 2 for letter in "abcd"}
    questions = [
        {**item, "question_id": "7", "data_type": "image"},
        {**item, "question_id": "v8", "data_type": "video", "question_type_id": 10},
    ]
    (tmp_path / "SEED-Bench.json").write_text(json.dumps({"questions": questions, "question_type": {"x": 1, "y": 10}}))
    Image.new("RGB", (3, 3)).save(tmp_path / "1_2", "PNG")
    benchmark = build("SEED", tmp_path / "SEED-Bench.json", image_folder=str(tmp_path))
    (question,) = benchmark.questions()
    assert question.text.splitlines()[:3] == ["What?", "A. aa", "B. bb"]
    assert question.picture().size == (3, 3)
    result = benchmark.score([benchmark.prediction(question, "A")])
    assert result["rules"]["official"]["metrics"]["image"] == 1.0
    assert any("videos" in warning for warning in result["warnings"])


def test_scienceqa_marks_prompts_with_a_picture(tmp_path: Path) -> None:
    items = [
        {"id": "1", "image": "1/image.png", "conversations": [{"value": "<image>\nContext: c\nWhat?\nA. x\nB. y"}]},
        {"id": "2", "conversations": [{"value": "What?\nA. x\nB. y"}]},
    ]
    problems = {name: {"choices": ["x", "y"], "answer": 0, "image": None} for name in "12"}
    (tmp_path / "llava_test_CQM-A.json").write_text(json.dumps(items))
    (tmp_path / "problems.json").write_text(json.dumps(problems))
    (tmp_path / "pid_splits.json").write_text(json.dumps({"test": ["1", "2"]}))
    benchmark = build("ScienceQA", tmp_path)
    first, second = benchmark.questions()
    assert first.text.startswith("Context: c\nWhat?\nA. x\nB. y\nAnswer with")
    assert (first.picture is None, second.picture is None) == (False, True)
    metrics = benchmark.score([benchmark.prediction(first, "A"), benchmark.prediction(second, "B")])["rules"][
        "official"
    ]["metrics"]
    assert (metrics["accuracy"], metrics["IMG-Accuracy"]) == (0.5, 1.0)


def test_mmvp_pictures_go_by_position(tmp_path: Path) -> None:
    rows = [{"Question": "Q?", "Options": "(a) x (b) y", "Correct Answer": "(a)"} for _ in range(2)]
    (tmp_path / "MMVP Images").mkdir()
    Image.new("RGB", (6, 6)).save(tmp_path / "MMVP Images" / "2.jpg")
    benchmark = build("MMVP", write_table(tmp_path / "Questions.csv", rows))
    questions = benchmark.questions()
    assert (questions[1].id, questions[1].text, questions[1].picture().size) == (2, "Q? (a) x (b) y", (6, 6))
    result = benchmark.score([benchmark.prediction(question, "(a)") for question in questions])
    assert result["rules"]["lmms_eval"]["metrics"]["pair_accuracy"] == 1.0


def test_an_unknown_prompt_is_refused(tmp_path: Path) -> None:
    path = write_table(tmp_path / "m.tsv", [{"index": 1, "question": "?", "A": "x", "B": "y"}])
    with pytest.raises(ValueError, match="known are reference, vlmevalkit"):
        build("AI2D", path, prompt="best")
