"""Judge's replies that cannot be read: named where some are, and nothing is scored where all are."""

import json
from pathlib import Path
from typing import Any

import pytest

from mg_llava.commands import score
from mg_llava.evaluation.score import find_protocol, score_predictions
from tests.evaluation.benchmark_files import write_json_lines, write_table

PROSE = "The given answer is fine."
NAMES = ("a", "b", "c")


def make(benchmark: str, folder: Path) -> tuple[list[Path], list[dict[str, Any]], str]:
    """Data, prediction lines without a judge's reply, and a reply that can be read."""
    if benchmark == "mm_vet":
        content = {name: {"question": "?", "answer": "1", "capability": ["ocr"]} for name in NAMES}
        (folder / "mm-vet.json").write_text(json.dumps(content))
        return [folder / "mm-vet.json"], [{"question_id": name, "text": "1"} for name in NAMES], "1.0"
    if benchmark == "llava_bench":
        lines = [{"question_id": name, "category": "conv", "text": "?"} for name in NAMES]
        write_json_lines(folder / "questions.jsonl", lines)
        return [folder / "questions.jsonl"], [{"question_id": name, "text": "1"} for name in NAMES], "8 8\nWell."
    if benchmark == "mmvp":
        rows = [{"Index": n, "Question": "?", "Options": "(a) x (b) y", "Correct Answer": "(a)"} for n in (1, 2, 3)]
        table = write_table(folder / "Questions.csv", rows)
        return [table], [{"question_id": n, "response": "(b)"} for n in (1, 2, 3)], "yes"
    files = [folder / "test_q.json", folder / "test_a.json"]
    files[0].write_text(json.dumps([{"question_id": name, "question": "?"} for name in NAMES]))
    files[1].write_text(json.dumps([{"answer": "dog"} for _ in NAMES]))
    return files, [{"id": name, "pred": "dog"} for name in NAMES], "{'pred': 'yes', 'score': 5}"


@pytest.mark.parametrize("benchmark", ["mm_vet", "llava_bench", "mmvp", "msvd_qa"])
def test_unreadable_replies_are_named_and_no_zero(
    benchmark: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data, lines, good = make(benchmark, tmp_path)
    name = str(next(iter(lines[1].values())))
    some = [{**line, "judge": PROSE if i == 1 else good} for i, line in enumerate(lines)]
    result = score_predictions(benchmark, data, some)
    assert "official" in result["rules"]
    assert any(f"({name})" in warning for warning in result["warnings"]), result["warnings"]
    result = score_predictions(benchmark, data, [{**line, "judge": PROSE} for line in lines])
    assert "official" not in result["rules"]
    assert any("3 judge's replies" in warning and name in warning for warning in result["warnings"])
    if benchmark not in ("mmvp", "msvd_qa"):  # which have a rule without a judge
        predictions = write_json_lines(tmp_path / "p.jsonl", [{**line, "judge": PROSE} for line in lines])
        given = [part for path in data for part in ("--data", str(path))]
        arguments = [benchmark, *given, "--predictions", str(predictions), "--out", str(tmp_path / "o.json")]
        assert score.main(arguments) == 1
        assert "nothing was scored" in capsys.readouterr().err


def test_a_verdict_without_its_fields_is_no_silent_zero(tmp_path: Path) -> None:
    data, lines, good = make("msvd_qa", tmp_path)
    judged = [{**line, "judge": reply} for line, reply in zip(lines, [good, "5", "{'score': 4}"], strict=True)]
    result = score_predictions("msvd_qa", data, judged)
    assert result["rules"]["official"]["metrics"]["accuracy"] == 1.0
    assert any("2 verdicts" in warning and "(b, c)" in warning for warning in result["warnings"])


def test_an_empty_extraction_is_said(tmp_path: Path) -> None:
    problem = {"question_type": "free_form", "answer_type": "integer", "question": "?", "answer": "4"}
    choice = {**problem, "question_type": "multi_choice", "answer_type": "text", "choices": ["4", "6"]}
    (tmp_path / "test_mini.json").write_text(json.dumps({"1": problem, "2": problem, "3": choice}))
    lines = [{"pid": "1", "extraction": "4"}, {"pid": "2", "extraction": "four"}, {"pid": "3", "extraction": ""}]
    result = score_predictions("mathvista", [tmp_path / "test_mini.json"], lines)
    assert any(w.startswith("2 extracted answers") and "(2, 3)" in w for w in result["warnings"])


def test_a_judge_of_videos_needs_true_answers(tmp_path: Path) -> None:
    data, lines, _ = make("msvd_qa", tmp_path)
    protocol = find_protocol("msvd_qa")
    assert len(protocol.requests(data, lines)) == 3
    with pytest.raises(ValueError, match=r"3 questions have no true answer.*\(a, b, c\)"):
        protocol.requests(data[:1], lines)
    data[1].write_text(json.dumps([{"answer": "dog"}, {"answer": None}, {}]))
    with pytest.raises(ValueError, match=r"2 questions have no true answer.*\(b, c\)"):
        protocol.requests(data, lines)
    contained = score_predictions("msvd_qa", data, lines)["rules"]["containment"]["metrics"]
    assert contained == {"accuracy": 1.0, "n_answered": 1, "n_without_true_answer": 2}


def test_files_whose_names_do_not_say_what_they_are(tmp_path: Path) -> None:
    data, lines, _ = make("msvd_qa", tmp_path)
    truth, second = (tmp_path / "truth.json", tmp_path / "val_a.json")
    for path in (truth, second):
        path.write_text(data[1].read_text())
    for given in ([data[0], truth], [*data, truth]):
        with pytest.raises(ValueError, match=r"truth\.json: questions or answers\?"):
            score_predictions("msvd_qa", given, lines)
    with pytest.raises(ValueError, match=r"several files may be the answer file: .*test_a\.json, .*val_a\.json"):
        score_predictions("msvd_qa", [*data, second], lines)
    asked = data[0].rename(tmp_path / "asked.json")
    assert "containment" in score_predictions("msvd_qa", [asked, truth], lines)["rules"], "in this order"
    with pytest.raises(ValueError, match="questions or answers"):
        score_predictions("msvd_qa", [asked, truth, truth], lines)


def test_a_judge_needs_all_that_it_compares(tmp_path: Path) -> None:
    lines = [{"question_id": name, "category": "conv", "text": "?", "image": f"{name}.jpg"} for name in NAMES]
    write_json_lines(tmp_path / "questions.jsonl", lines)
    replies = [{"question_id": name, "text": "1"} for name in NAMES]
    protocol = find_protocol("llava_bench")
    with pytest.raises(ValueError, match=r"3 questions have no answer of the reference.*\(a, b, c\)"):
        protocol.requests([tmp_path], replies)
    write_json_lines(tmp_path / "answers_gpt4.jsonl", [{"question_id": name, "text": "2"} for name in NAMES])
    assert len(protocol.requests([tmp_path], replies)) == 3
    write_json_lines(tmp_path / "context.jsonl", [{"image": "a.jpg", "caption": "A lake."}])
    with pytest.raises(ValueError, match=r"2 questions have no description.*\(b, c\)"):
        protocol.requests([tmp_path], replies)
