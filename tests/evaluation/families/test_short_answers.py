"""Short free-form answers: hand-computed cases of the official rules."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mg_llava.evaluation.score import score_predictions
from mg_llava.evaluation.scoring.answers import (
    anls,
    answer_list,
    edit_distance,
    normalize_evalai,
    normalize_vqa,
    relaxed_match,
    round_as_numpy,
    soft_accuracy,
)
from mg_llava.evaluation.scoring.joining import join_repeated, number_repeated

OCR = "\nReference OCR token: GO, STOP\nAnswer the question using a single word or phrase."
SHORT = "\nAnswer the question using a single word or phrase."


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "evalai", "vqa"),
    [
        ("", "", ""),
        ("Yes", "yes", "yes"),
        ("7.", "7", "7"),  # the look-behind of the official pattern has a typo: the period goes
        ("2.5.", "2.5", "2.5"),
        ("3.14.15", "3.14.15", "3.14.15"),
        ("St. Louis", "st louis", "st louis"),
        ("a.b", "ab", "ab"),
        ("." * 40, "." * 8, "." * 8),  # re.UNICODE (32) stands where the count belongs
        ("3.٣", "3.٣", "3.٣"),  # Arabic digits are digits
        ("1,000", "1000", "1000"),
        ("1,000 dollars!", "1000 dollars", "1000 dollars"),
        ("Hello,World", "helloworld", "hello world"),
        ("Hello, World", "hello world", "hello world"),
        ("levi's", "levi 's", "levi's"),
        ("x-ray", "x ray", "x ray"),
        ("well- done x-ray", "well done xray", "well done xray"),
        ("yes!", "yes", "yes"),
        ("(B)", "b", "b"),
        ("The two dogs and an apple", "2 dogs and apple", "2 dogs and apple"),
        ("None", "0", "0"),
        ("eleven", "eleven", "eleven"),
        ("Ten.", "10", "10"),
        ("dont", "don't", "don't"),
        ("im", "im", "im"),  # "Im" is in the table, but words are lowercased before they are looked up
        ("y'alld've", "y'all'd've", "y'all'd've"),
        ("somebody'd", "somebodyd", "somebodyd"),
        ("a", "", ""),
        ("red\nblue\tgreen", "red blue green", "red blue green"),
        ("北京", "北京", "北京"),
        ("Straße", "straße", "straße"),
        ("what?", "what", "what"),
    ],
)
def test_answers_are_normalized_as_by_the_official_scripts(text: str, evalai: str, vqa: str) -> None:
    assert normalize_evalai(text) == evalai
    assert normalize_vqa(text) == vqa


@pytest.mark.parametrize(("count", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_soft_accuracy_leaves_out_each_annotator_in_turn(count: int, expected: float) -> None:
    references = ["cat"] * count + [f"other {i}" for i in range(10 - count)]
    assert soft_accuracy("cat", references) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("reply", "answers", "expected"),
    [
        ("abcd", ["abcd"], 1.0),
        ("ABCD ", ["abcd"], 1.0),
        ("abxy", ["abcd"], 0.5),  # exactly one half is kept
        ("axy", ["abc"], 0.0),
        ("xb", ["ab"], 0.5),
        ("xb  ", ["ab"], 0.75),  # the length is that of the raw text: padding helps
        ("a  b", ["a b"], 1.0),
        ("", ["a"], 0.0),
        ("", [""], 1.0),
        ("no", ["yes", "now"], 1 - 1 / 3),
        ("strasse", ["straße"], 1 - 2 / 7),  # its length is taken in capitals
    ],
)
def test_anls(reply: str, answers: list[str], expected: float) -> None:
    assert anls(reply, answers) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("reply", "answer", "expected"),
    [
        ("10.5", "10", True),
        ("10.51", "10", False),
        ("5%", "0.05", True),
        ("5%", "5", False),
        ("0", "0", True),
        ("0.01", "0", False),  # a true answer of 0 is compared as text
        ("0.0", "0", False),
        ("Yes", "yes", True),
        ("yes.", "yes", False),
        ("nan", "3", False),
        ("-9.6", "-10", True),
        ("", "3", False),
    ],
)
def test_relaxed_match(reply: str, answer: str, expected: bool) -> None:
    assert relaxed_match(reply, answer) is expected


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("['a', \"b's\"]", ["a", "b's"]),
        ("[1, 2]", ["1", "2"]),
        ("plain", ["plain"]),
        ("[sic] text", ["[sic] text"]),
        ("[__import__('os').getcwd()]", ["[__import__('os').getcwd()]"]),
        ("[", ["["]),
        ("[]", ["[]"]),
        ("('a',)", ["('a',)"]),
        ("", [""]),
    ],
)
def test_answer_cells_are_read_and_never_evaluated(cell: str, expected: list[str]) -> None:
    assert answer_list(cell) == expected


words = st.text("abcß. ", max_size=8)


@given(words, words, words)
def test_edit_distance_is_a_metric(a: str, b: str, c: str) -> None:
    assert edit_distance(a, b) == edit_distance(b, a)
    assert (edit_distance(a, b) == 0) is (a == b)
    assert abs(len(a) - len(b)) <= edit_distance(a, b) <= max(len(a), len(b))
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)


@given(st.floats(0, 100), st.integers(0, 3))
def test_rounding_is_numpys(value: float, digits: int) -> None:
    import numpy as np

    assert round_as_numpy(value, digits) == float(np.round(value, digits))


@given(st.lists(st.sampled_from("abc"), max_size=12), st.randoms())
def test_each_question_of_a_repeated_id_gets_one_prediction(keys: list[str], random: Any) -> None:
    lines = [{"key": key, "text": str(number)} for number, key in enumerate(keys)]
    random.shuffle(lines)
    joined = join_repeated(keys, lines, lambda line: line["key"], "text")
    assert (joined.n_missing, joined.n_unknown, joined.n_duplicates) == (0, 0, 0)
    assert sorted(joined.texts) == sorted(line["text"] for line in lines)
    assert len(set(number_repeated(keys))) == len(keys)


def test_of_too_many_predictions_of_an_id_the_last_ones_count() -> None:
    lines = [{"key": "a", "text": text} for text in "wxyz"]
    joined = join_repeated(["a", "b", "a"], lines, lambda line: line["key"], "text")
    assert joined.texts == ["y", "", "z"]
    assert (joined.n_missing, joined.n_duplicates) == (1, 2)


# TextVQA


@pytest.fixture
def textvqa(tmp_path: Path) -> Path:
    data = [
        {"question": "What does IT say?", "image_id": "p1", "question_id": 7, "answers": ["stop"] * 8 + ["go"] * 2},
        {"question": "how many?", "image_id": "p1", "question_id": 8, "answers": ["two"] * 10},
        {"question": "brand?", "image_id": "p2", "question_id": 9, "answers": ["levi's"] * 3 + ["jeans"] * 7},
    ]
    return write_json(tmp_path / "TextVQA_0.5.1_val.json", {"data": data})


def test_textvqa_is_joined_by_picture_and_question(textvqa: Path) -> None:
    lines = [
        {"question_id": "p2", "prompt": "OCR tokens: x. Question: Brand? Short answer:", "text": "Levi's"},
        {"question_id": "p1", "prompt": "Reference OCR token: GO\nHow many?\nAnswer shortly.", "text": "2."},
        {"question_id": "p1", "prompt": "what does it say?" + OCR, "text": "The GO"},
    ]
    result = score_predictions("textvqa", [textvqa], lines)
    rule = result["rules"]["official"]
    assert [(one["id"], one["score"]) for one in rule["per_sample"]] == [
        (7, pytest.approx(0.6)),
        (8, 1.0),
        (9, pytest.approx(0.9)),
    ]
    assert rule["metrics"]["accuracy"] == pytest.approx(2.5 / 3)
    assert rule["metrics"]["accuracy_rounded"] == 83.33
    assert (result["n"], result["n_missing"], result["n_unknown"]) == (3, 0, 0)


def test_textvqa_averages_over_what_is_there_and_counts_the_rest(textvqa: Path) -> None:
    lines = [
        {"question_id": "p1", "prompt": "how many?" + SHORT, "text": "five"},
        {"question_id": "p1", "prompt": "how many?" + SHORT, "text": "two"},
        {"question_id": "p3", "prompt": "how many?" + SHORT, "text": "two"},
        {"question_id": "p1", "prompt": "", "text": "two"},
    ]
    result = score_predictions("textvqa", [textvqa], lines)
    metrics = result["rules"]["official"]["metrics"]
    assert (result["n_missing"], result["n_unknown"], result["n_duplicates"]) == (2, 2, 1)
    assert metrics["accuracy"] == 1.0
    assert metrics["accuracy_over_all"] == pytest.approx(1 / 3)
    assert any("over the questions with a prediction" in warning for warning in result["warnings"])


def test_textvqa_questions_of_the_jsonl_are_the_ones_that_count(textvqa: Path, tmp_path: Path) -> None:
    questions = tmp_path / "llava_textvqa_val_v051_ocr.jsonl"
    questions.write_text(json.dumps({"question_id": "p2", "image": "p2.jpg", "text": "brand?" + OCR}) + "\n")
    result = score_predictions("textvqa", [textvqa, questions], [{"question_id": 9, "text": None}])
    assert (result["n"], result["n_missing"]) == (1, 0)
    assert result["rules"]["official"]["metrics"]["accuracy"] == 0.0


def test_textvqa_as_a_table(tmp_path: Path) -> None:
    table = tmp_path / "TextVQA_VAL.tsv"
    table.write_text(f"index\tquestion\tanswer\n0\tbrand?\t{['nike'] * 10}\n1\tcolor?\t{['red'] * 9}\n")
    lines = [{"index": 0, "prediction": "Nike."}, {"index": 1, "prediction": "blue"}]
    result = score_predictions("textvqa", [table], lines)
    assert result["rules"]["official"]["metrics"]["accuracy"] == 0.5
    assert any("not 10 answers" in warning for warning in result["warnings"])


# DocVQA and the like


def test_docvqa_joins_by_question_and_counts(tmp_path: Path) -> None:
    path = write_json(
        tmp_path / "val_v1.0.json",
        {
            "data": [
                {"questionId": 1, "question": "?", "answers": ["ITC Limited", "itc"], "question_types": ["form"]},
                {"questionId": 2, "question": "?", "answers": ["1/8/93"], "question_types": ["form", "layout"]},
                {"questionId": 3, "question": "?", "answers": ["x"], "question_types": []},
            ]
        },
    )
    lines = [
        {"index": "2", "prediction": "1/8/94"},
        {"index": 1, "prediction": "ITC limited"},
        {"index": 5, "prediction": ""},
    ]
    result = score_predictions("docvqa", [path], lines)
    metrics = result["rules"]["official"]["metrics"]
    assert metrics["anls"] == pytest.approx((1 + 5 / 6) / 3)
    assert metrics["question_types/form"] == pytest.approx((1 + 5 / 6) / 2)
    assert (metrics["question_types/form/n"], metrics["question_types/layout/n"]) == (2, 1)
    assert (result["n"], result["n_missing"], result["n_unknown"]) == (3, 1, 1)


def test_docvqa_table_and_a_test_split(tmp_path: Path) -> None:
    table = tmp_path / "DocVQA_VAL.tsv"
    table.write_text("index\timage\tquestion\tanswer\n4\tabc\tq\t\"['1,5', 'a\"\"b']\"\n")
    lines = [{"index": 4, "prediction": 'A"B'}]
    assert score_predictions("docvqa", [table], lines)["rules"]["official"]["metrics"]["anls"] == 1.0
    table.write_text("index\timage\tquestion\n4\tabc\tq\n")
    result = score_predictions("docvqa", [table], lines)
    assert result["rules"] == {}
    assert any("no answers" in warning for warning in result["warnings"])
    table.write_text("index\tquestion\tanswer\n4\tq\ta\n4\tq\ta\n")
    with pytest.raises(ValueError, match=r"DocVQA_VAL.tsv: id 4 occurs more than once"):
        score_predictions("docvqa", [table], lines)


def test_ocrvqa_wants_the_whole_answer(tmp_path: Path) -> None:
    table = tmp_path / "OCRVQA_TESTCORE.tsv"
    table.write_text("index\tquestion\tanswer\na1\tq\tJ. K. Rowling\na2\tq\tYes\na3\tq\tNo\n")
    lines = [{"index": i, "prediction": p} for i, p in [("a1", " j. k. rowling "), ("a2", "Yes."), ("a3", "no")]]
    result = score_predictions("ocrvqa", [table], lines)
    assert result["rules"]["official"]["metrics"]["accuracy"] == pytest.approx(2 / 3)


def test_chartqa_gives_each_split_and_their_mean(tmp_path: Path) -> None:
    human = write_json(tmp_path / "test_human.json", [{"imgname": "a", "query": "q", "label": "10"}])
    augmented = [{"imgname": "b", "query": "q", "label": "Red"}, {"imgname": "b", "query": "q", "label": "3"}]
    machine = write_json(tmp_path / "test_augmented.json", augmented)
    lines = [
        {"id": "test_human/0", "prediction": "10.4"},
        {"id": "test_augmented/0", "prediction": "red"},
        {"id": "test_augmented/1", "prediction": ""},
    ]
    metrics = score_predictions("chartqa", [human, machine], lines)["rules"]["official"]["metrics"]
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    assert (metrics["split/test_human"], metrics["split/test_augmented"]) == (1.0, 0.5)
    assert metrics["mean_of_splits"] == 0.75


# VQAv2


def annotators(*answers: str) -> list[dict[str, Any]]:
    return [
        {"answer": answer, "answer_confidence": "yes", "answer_id": i} for i, answer in enumerate(answers, start=1)
    ]


@pytest.fixture
def vqav2(tmp_path: Path) -> list[Path]:
    records = [
        ("yes/no", "is the", annotators(*["yes"] * 10)),
        ("other", "what brand", annotators(*["levi's"] * 9, "jeans")),
        ("number", "how many", annotators(*["2"] * 2, *["two "] * 1, *["3"] * 7)),
        ("other", "what", annotators(*["a\tred dress"] * 10)),
    ]
    annotations = [
        {"question_id": i, "image_id": 1, "answer_type": kind, "question_type": start, "answers": answers}
        for i, (kind, start, answers) in enumerate(records)
    ]
    questions = [{"question_id": i, "image_id": 1, "question": "?"} for i in range(len(records))]
    return [
        write_json(tmp_path / "v2_questions.json", {"questions": questions}),
        write_json(tmp_path / "v2_annotations.json", {"annotations": annotations}),
    ]


def test_vqav2_normalizes_only_where_annotators_differ(vqav2: list[Path]) -> None:
    lines = [{"question_id": i, "text": text} for i, text in enumerate(["Yes", "levi's", "Two", "a red dress\n"])]
    rules = score_predictions("vqav2", vqav2, lines)["rules"]
    scores = {name: [one["score"] for one in rule["per_sample"]] for name, rule in rules.items()}
    assert scores["official"] == [0.0, 1.0, pytest.approx(0.9), 1.0]
    assert scores["official_processed"] == [1.0, 0.0, pytest.approx(0.9), 0.0]
    metrics = rules["official"]["metrics"]
    assert metrics["accuracy"] == pytest.approx(2.9 / 4)
    assert metrics["accuracy_rounded"] == 72.5
    assert metrics["answer_type/number"] == pytest.approx(0.9)
    assert (metrics["answer_type/other"], metrics["answer_type/yes/no"]) == (1.0, 0.0)
    assert metrics["question_type/how many_rounded"] == 90.0


def test_vqav2_entries_without_ids_are_left_out_together(tmp_path: Path) -> None:
    answers = [{"answer": "red"}] * 10
    record = {"question_id": 1, "answer_type": "other", "question_type": "what", "answers": answers}
    path = write_json(tmp_path / "annotations.json", {"annotations": [record]})
    result = score_predictions("vqav2", [path], [{"question_id": 1, "text": "red"}])
    assert result["rules"]["official"]["metrics"]["accuracy"] == 0.0


def test_vqav2_counts_what_is_missing_and_unknown(vqav2: list[Path]) -> None:
    lines = [{"question_id": 0, "text": "no"}, {"question_id": 0, "text": "yes"}, {"question_id": 99, "text": "yes"}]
    result = score_predictions("vqav2", vqav2, lines)
    assert (result["n_missing"], result["n_unknown"], result["n_duplicates"]) == (3, 1, 1)
    assert result["rules"]["official"]["metrics"]["accuracy"] == 0.25
    assert score_predictions("vqav2", vqav2[:1], lines)["rules"] == {}


def test_vqav2_submission_has_all_questions_in_order(tmp_path: Path) -> None:
    path = tmp_path / "llava_vqav2_mscoco_test2015.jsonl"
    path.write_text("".join(json.dumps({"question_id": i, "image": "x", "text": "q"}) + "\n" for i in (3, 1, 2)))
    lines = [
        {"question_id": 1, "text": "The Two."},
        {"question_id": 3, "text": "a"},
        {"question_id": 3, "text": "Yes"},
    ]
    result = score_predictions("vqav2_submission", [path], lines)
    assert result["submission"] == [
        {"question_id": 3, "answer": "yes"},
        {"question_id": 1, "answer": "2"},
        {"question_id": 2, "answer": ""},
    ]
    assert (result["n_missing"], result["rules"]) == (1, {})


@pytest.mark.parametrize("benchmark", ["textvqa", "docvqa", "vqav2", "gqa", "refcoco", "mathvista", "msvd_qa"])
def test_a_file_that_is_cut_off_is_named(benchmark: str, tmp_path: Path) -> None:
    path = tmp_path / "test_q.json"
    path.write_text('{"data": [{"questionId": 1,\n "ans')
    with pytest.raises(ValueError, match=r"test_q.json: line 2: not JSON .* is the file cut off\?"):
        score_predictions(benchmark, [path], [])
