"""Judges and what their replies amount to."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from mg_llava.evaluation.families.llava_bench import parse_score_pair
from mg_llava.evaluation.families.mm_vet import parse_grade
from mg_llava.evaluation.judging.endpoint import EndpointJudge
from mg_llava.evaluation.judging.protocol import JudgeError
from mg_llava.evaluation.judging.run import CallableJudge, run_judge
from mg_llava.evaluation.score import find_protocol, score_predictions
from mg_llava.evaluation.scoring.files import read_predictions

TOOL = Path(__file__).parents[3] / "tools" / "judge.py"


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def mm_vet(tmp_path: Path) -> Path:
    capabilities = [["ocr", "math"], ["ocr"], ["rec"]]
    content = {
        f"v1_{i}": {"imagename": f"v1_{i}.png", "question": f"q{i}", "answer": "1<AND>2<OR>3", "capability": some}
        for i, some in enumerate(capabilities)
    }
    return write_json(tmp_path / "mm-vet.json", content)


# MM-Vet


@pytest.mark.parametrize(
    ("reply", "grade"),
    [("0.5", 0.5), ("1.0\n", 1.0), ("0.3 because", 0.3), (" 0.3", None), ("1.1", None), ("-0.1", None), ("", None)],
)
def test_grades(reply: str, grade: float | None) -> None:
    assert parse_grade(reply) == grade


def test_mm_vet_figures_of_the_official_grade_file(mm_vet: Path, tmp_path: Path) -> None:
    grades = {
        f"v1_{i}": {"model": ["gpt-4-0613"] * 2, "content": ["x"] * 2, "score": some}
        for i, some in enumerate([[0.5, 0.4], [1.0, 1.0], [0.0, 0.1]])
    }
    result = score_predictions("mm_vet", [mm_vet], read_predictions(write_json(tmp_path / "grade.json", grades)))
    metrics = result["rules"]["official"]["metrics"]
    assert metrics["total"] == pytest.approx(0.5)
    assert metrics["ocr"] == pytest.approx((1.5 + 1.4) / 4)
    assert metrics["combinations/math_ocr"] == pytest.approx(0.45)
    assert (metrics["combinations/ocr"], metrics["combinations/rec"]) == (1.0, pytest.approx(0.05))
    assert metrics["total_rounded"] == 50.0
    assert metrics["ocr_rounded"] == 72.5
    assert metrics["runs_rounded"] == [50.0, 50.0]
    assert metrics["std_rounded"] == 0.0
    assert result["judge"] == "gpt-4-0613"


def test_files_in_another_form_are_named(tmp_path: Path) -> None:
    data = tmp_path / "mm-vet.json"
    data.write_text("[]")
    with pytest.raises(ValueError, match=r"mm-vet.json: not in the form that is needed"):
        find_protocol("mm_vet").requests([data], [])


def test_mm_vet_unusable_replies_are_zero_and_missing_ones_count(mm_vet: Path) -> None:
    lines = [
        {"question_id": 0, "text": "a", "judge": "0.7", "judge_name": "mine"},
        {"question_id": 1, "text": "b", "judge": "I cannot say", "judge_name": "mine"},
        {"question_id": 7, "text": "c", "judge": "1.0"},
    ]
    result = score_predictions("mm_vet", [mm_vet], lines)
    assert result["rules"]["official"]["metrics"]["total"] == pytest.approx(0.7 / 3)
    assert (result["n_missing"], result["n_unknown"], result["judge"]) == (1, 1, "mine")


def test_runs_of_a_judge_are_averaged(mm_vet: Path) -> None:
    lines = [
        {"question_id": i, "text": "a", "judge": grade, "run": run}
        for run, grades in enumerate([["1.0", "1.0", "0.0"], ["0.0", "0.0", "0.0"]])
        for i, grade in enumerate(grades)
    ]
    metrics = score_predictions("mm_vet", [mm_vet], lines)["rules"]["official"]["metrics"]
    assert metrics["runs"] == [pytest.approx(2 / 3), 0.0]
    assert metrics["total_rounded"] == 33.3
    assert metrics["std_rounded"] == 33.3


@pytest.mark.parametrize("benchmark", ["mm_vet", "llava_bench", "msvd_qa"])
def test_without_a_judge_nothing_is_scored(benchmark: str, mm_vet: Path, tmp_path: Path) -> None:
    data = {
        "mm_vet": [mm_vet],
        "llava_bench": [write_lines(tmp_path / "questions.jsonl", [{"question_id": 0, "category": "conv"}])],
        "msvd_qa": [write_json(tmp_path / "test_q.json", [{"question_id": 0, "question": "?", "video_name": "v"}])],
    }[benchmark]
    name = "v1_0" if benchmark == "mm_vet" else 0
    result = score_predictions(benchmark, data, [{"question_id": name, "text": "a reply"}])
    assert result["rules"] == {}
    assert any("tools/judge.py" in warning for warning in result["warnings"])


# LLaVA-Bench


@pytest.mark.parametrize(
    ("review", "pair"),
    [
        ("8 7\nBoth are fine.", (8, 7)),
        ("8,7", (8, 7)),
        ("8.5 7.5", (8.5, 7.5)),
        ("8, 7", (-1, -1)),  # the comma becomes a second space
        ("8  7", (-1, -1)),
        ("8 7 ", (-1, -1)),
        ("Scores: 8 7", (-1, -1)),
        ("eight 7", (-1, -1)),
        ("", (-1, -1)),
    ],
)
def test_score_pairs(review: str, pair: tuple[float, float]) -> None:
    assert parse_score_pair(review) == pair


def test_llava_bench_is_a_ratio_of_means(tmp_path: Path) -> None:
    questions = [
        {"question_id": i, "image": "1.jpg", "text": "?", "category": c}
        for i, c in enumerate(["conv", "conv", "detail", "complex"])
    ]
    path = write_lines(tmp_path / "questions.jsonl", questions)
    reviews = [
        {"question_id": 0, "category": "llava_bench_conv", "content": "8 6", "tuple": [8.0, 6.0]},
        {"question_id": 1, "content": "9 7\nBecause"},
        {"question_id": 2, "judge": "no idea", "judge_name": "mine"},
    ]
    result = score_predictions("llava_bench", [path], reviews)
    metrics = result["rules"]["official"]["metrics"]
    assert metrics["all"] == pytest.approx((6 + 7 - 1) / (8 + 9 - 1))
    assert metrics["llava_bench_conv"] == pytest.approx(13 / 17)
    # The script rounds the means to 3 digits first: 4.0 / 5.333.
    rounded = {name: value for name, value in metrics.items() if name.endswith("_rounded")}
    assert rounded == {"all_rounded": 75.0, "llava_bench_conv_rounded": 76.5, "llava_bench_detail_rounded": 100.0}
    assert result["n_missing"] == 1
    assert any("1 reviews have not two scores" in warning for warning in result["warnings"])
    assert result["judge"] == "mine"


# Video


@pytest.fixture
def video(tmp_path: Path) -> list[Path]:
    questions = [{"question_id": f"v_{i}", "question": f"who {i}?", "video_name": f"vid{i}"} for i in range(6)]
    answers = [{"answer": "man"} for _ in questions]
    return [write_json(tmp_path / "test_q.json", questions), write_json(tmp_path / "test_a.json", answers)]


def test_video_verdicts_as_the_script_reads_them(video: list[Path]) -> None:
    verdicts: list[Any] = [
        "{'pred': 'yes', 'score': 4.8}",  # the score is cut to 4
        "{'pred': 'No.', 'score': '2'}",
        "{'pred': 'unknown', 'score': 1}",  # has "no" in it
        "{'pred': 'yes', 'score': '4.8'}",  # int('4.8') fails: judged, but neither score nor answer
        "Sure! {'pred': 'yes', 'score': 5}",  # no Python literal: not judged
        {"pred": "maybe", "score": 3},
    ]
    lines = [{"id": f"v_{i}", "pred": "a man", "judge": verdict} for i, verdict in enumerate(verdicts)]
    result = score_predictions("msvd_qa", video, lines)
    metrics = result["rules"]["official"]["metrics"]
    assert (metrics["yes"], metrics["no"], metrics["n_judged"]) == (1, 2, 5)
    assert metrics["accuracy"] == pytest.approx(1 / 3)
    assert metrics["score"] == pytest.approx((4 + 2 + 1 + 0 + 3) / 5)
    assert metrics["accuracy_over_all"] == pytest.approx(1 / 6)


def test_the_judges_combined_file(video: list[Path], tmp_path: Path) -> None:
    combined = {
        f"v_{i}": [{"pred": "yes" if i else "no", "score": i}, {"q": "?", "a": "man", "pred": "x"}] for i in range(3)
    }
    result = score_predictions("msrvtt_qa", video, read_predictions(write_json(tmp_path / "all.json", combined)))
    metrics = result["rules"]["official"]["metrics"]
    assert (metrics["accuracy"], metrics["score"]) == (pytest.approx(2 / 3), 1.0)
    assert result["n_missing"] == 3


def test_answers_hold_the_true_one_with_and_without_a_judge(video: list[Path], tmp_path: Path) -> None:
    answers = ["a man", "Man.", "two men", "a mankind", "", "the man there"]
    lines: list[dict[str, Any]] = [{"id": f"v_{i}", "pred": text} for i, text in enumerate(answers)]
    alone = score_predictions("msvd_qa", video, lines)
    held = alone["rules"]["containment"]
    assert list(alone["rules"]) == ["containment"] and any("tools/judge.py" in text for text in alone["warnings"])
    assert held["metrics"] == {"accuracy": pytest.approx(3 / 6), "n_answered": 6}
    judged = score_predictions("msvd_qa", video, [line | {"judge": "{'pred': 'yes', 'score': 5}"} for line in lines])
    assert judged["rules"]["official"]["metrics"]["accuracy"] == 1.0 and judged["rules"]["containment"] == held
    fewer = score_predictions("msvd_qa", video, lines[:2])["rules"]["containment"]["metrics"]
    assert fewer == {"accuracy": pytest.approx(2 / 6), "n_answered": 2}, "an absent answer is wrong"
    combined = {f"v_{i}": [{"pred": "no", "score": 0}, {"q": "?", "a": "man", "pred": "a man"}] for i in range(6)}
    found = score_predictions("msvd_qa", video, read_predictions(write_json(tmp_path / "all.json", combined)))
    assert found["rules"]["containment"]["metrics"]["accuracy"] == 1.0
    verdict_alone = score_predictions("msvd_qa", video, [{"id": "v_0", "pred": "yes", "score": 5}])
    assert list(verdict_alone["rules"]) == ["official"]


def test_verdicts_that_are_neither_give_no_accuracy(video: list[Path]) -> None:
    result = score_predictions("msvd_qa", video, [{"id": "v_0", "judge": "{'pred': 'maybe', 'score': 3}"}])
    assert "accuracy" not in result["rules"]["official"]["metrics"]
    assert any("there is no accuracy" in warning for warning in result["warnings"])


def test_scores_beyond_the_scale_are_named(video: list[Path]) -> None:
    lines = [{"id": f"v_{i}", "judge": f"{{'pred': 'yes', 'score': {score}}}"} for i, score in enumerate((9, 5, -1))]
    result = score_predictions("msvd_qa", video, lines)
    assert result["rules"]["official"]["metrics"]["score"] == pytest.approx((9 + 5 - 1) / 3)
    assert any(w.startswith("2 verdicts have a score that is not from 0 to 5") for w in result["warnings"])
    assert any("(v_0, v_2)" in warning for warning in result["warnings"])


def test_answers_that_do_not_belong_to_the_questions(video: list[Path]) -> None:
    write_json(video[1], [{"answer": "man"}])
    with pytest.raises(ValueError, match="has 1 answers for 6 questions"):
        score_predictions("msvd_qa", video, [])


# Judges


def test_a_judge_is_asked_again_until_its_reply_can_be_used(mm_vet: Path, tmp_path: Path) -> None:
    asked: list[str] = []

    def reply(messages: Sequence[dict[str, str]]) -> str:
        asked.append(messages[-1]["content"])
        return "0.4" if len(asked) == 3 else "It is right"

    protocol = find_protocol("mm_vet")
    requests = protocol.requests([mm_vet], [{"question_id": 0, "text": "it is 2"}, {"question_id": 99, "text": "?"}])
    lines = run_judge(requests, CallableJudge("mine", reply), protocol, tmp_path / "out.jsonl")
    assert asked[0].endswith("q0 | 1 <AND> 2 <OR> 3 | it is 2 | ")
    assert len(asked) == 3 and asked[1] == asked[0] + protocol.hint
    assert (lines[0]["judge"], lines[0]["judge_name"], lines[0]["judge_accepted"]) == ("0.4", "mine", True)
    assert score_predictions("mm_vet", [mm_vet], lines)["rules"]["official"]["metrics"]["ocr"] == pytest.approx(0.2)


def test_thoughts_of_a_judge_are_no_verdict(mm_vet: Path, tmp_path: Path) -> None:
    """Neither of one that is asked, nor on lines that it wrote elsewhere."""
    protocol = find_protocol("mm_vet")
    said = iter(["<think>0.9, or", "<think>0.9? No.</think>\n\n 0.4"])
    requests = protocol.requests([mm_vet], [{"question_id": 0, "text": "it is 2"}])
    (line,) = run_judge(requests, CallableJudge("mine", lambda _: next(said)), protocol, tmp_path / "out.jsonl")
    assert (line["judge"], line["judge_accepted"], list(said)) == ("0.4", True, [])
    elsewhere = [{"question_id": 0, "text": "it is 2", "judge": reply} for reply in ("1.0</think>0.4", ["0.4", "0.4"])]
    for written in (line, *elsewhere):
        rules = score_predictions("mm_vet", [mm_vet], [written])["rules"]
        assert rules["official"]["metrics"]["ocr"] == pytest.approx(0.2), written


VERDICT = "{'pred': 'yes', 'score': 4}"


@pytest.mark.parametrize(
    "reply",
    [
        '```json\n{"pred": "yes", "score": 4}\n```',
        f"Sure! {VERDICT} The answers mean the same.",
        '{"pred": "yes", "score": 4, "why": null}',
        f"<think>{{'pred': 'no'}}</think>\n{VERDICT}",
    ],
)
def test_a_verdict_amid_words_is_taken_as_it_is_scored(video: list[Path], tmp_path: Path, reply: str) -> None:
    protocol, out, asked = find_protocol("msvd_qa"), tmp_path / "out.jsonl", []
    requests = protocol.requests(video, [{"id": "v_0", "pred": "a man"}])
    judge = CallableJudge("mine", lambda messages: asked.append(messages) or reply)  # type: ignore[func-returns-value]
    (line,) = run_judge(requests, judge, protocol, out)
    assert line["judge_accepted"] and len(asked) == 1
    metrics = score_predictions("msvd_qa", video, read_predictions(out))["rules"]["official"]["metrics"]
    assert (metrics["accuracy"], metrics["score"]) == (1.0, 4.0)


@pytest.mark.parametrize(
    "reply",
    [
        "{'pred': 'yes', 'score': 9}",
        "{'pred': 'yes', 'score': -1}",
        "{'pred': 'yes', 'score': '4.8'}",
        "{'pred': 'maybe', 'score': 3}",
        "{'pred': True, 'score': 3}",
        "['pred', 'score']",
    ],
)
def test_verdicts_that_the_scorer_does_not_read_are_asked_for_again(reply: str) -> None:
    assert not find_protocol("msvd_qa").accepts(reply)


def test_a_run_without_any_verdict_ends(tmp_path: Path) -> None:
    names = [f"v_{i}" for i in range(12)]
    questions = write_json(tmp_path / "test_q.json", [{"question_id": name, "question": "who?"} for name in names])
    data = [questions, write_json(tmp_path / "test_a.json", [{"answer": "man"}] * len(names))]
    protocol = find_protocol("msvd_qa")
    requests = protocol.requests(data, [{"id": name, "pred": "a man"} for name in names])
    asked: list[str] = []

    def talk(messages: Sequence[dict[str, str]]) -> str:
        asked.append(messages[-1]["content"])
        return "It is right."

    with pytest.raises(JudgeError, match=r"no verdict about any of 10 questions, the last reply: 'It is right\.'"):
        run_judge(requests, CallableJudge("mine", talk), protocol, tmp_path / "none.jsonl")
    assert len(asked) == 10 * protocol.attempts and protocol.hint and asked[1] == asked[0] + protocol.hint
    said = iter([VERDICT])
    judge = CallableJudge("mine", lambda messages: next(said, "It is right."))
    lines = run_judge(requests, judge, protocol, tmp_path / "one.jsonl")
    assert [line["judge_accepted"] for line in lines] == [True] + [False] * 11, "questions may be hard"
    run_judge(requests, CallableJudge("mine", talk), protocol, tmp_path / "one.jsonl")
    assert len(asked) == 21 * protocol.attempts, "nor does the run end that asks about these again"


def test_replies_are_written_while_another_hangs_and_when_it_fails(mm_vet: Path, tmp_path: Path) -> None:
    protocol, out, others = find_protocol("mm_vet"), tmp_path / "out.jsonl", Event()
    requests = protocol.requests([mm_vet], [{"question_id": i, "text": f"reply {i}"} for i in range(3)])

    def reply(messages: Sequence[dict[str, str]]) -> str:
        if "reply 0" not in messages[-1]["content"]:
            return "0.5"
        raise JudgeError("gone" if others.wait(60) else "the others were held up")

    def progress(lines: Iterable[Any], total: int) -> Iterator[Any]:
        for number, line in enumerate(lines, 1):
            yield line
            if number == 2:
                others.set()

    with pytest.raises(JudgeError, match="gone"):
        run_judge(requests, CallableJudge("mine", reply), protocol, out, workers=2, progress=progress)
    assert {line["question_id"] for line in read_predictions(out)} == {1, 2}


def test_a_reply_under_way_beside_one_that_fails_is_kept(mm_vet: Path, tmp_path: Path) -> None:
    protocol, out, failed = find_protocol("mm_vet"), tmp_path / "out.jsonl", Event()
    requests = protocol.requests([mm_vet], [{"question_id": i, "text": f"reply {i}"} for i in range(2)])

    def reply(messages: Sequence[dict[str, str]]) -> str:
        if "reply 0" in messages[-1]["content"]:
            failed.set()
            raise JudgeError("gone")
        assert failed.wait(60)
        return "0.5"

    with pytest.raises(JudgeError, match="gone"):
        run_judge(requests, CallableJudge("mine", reply), protocol, out, workers=2)
    assert [line["question_id"] for line in read_predictions(out)] == [1]


def test_a_file_of_replies_is_of_one_judge(mm_vet: Path, tmp_path: Path) -> None:
    protocol, out, asked = find_protocol("mm_vet"), tmp_path / "out.jsonl", []
    requests = protocol.requests([mm_vet], [{"question_id": i, "text": f"reply {i}"} for i in range(3)])

    def judge(name: str, grade: str, some: Sequence[Any] = requests) -> dict[str, Any]:
        def reply(messages: Sequence[dict[str, str]]) -> str:
            asked.append(name)
            return grade

        run_judge(some, CallableJudge(name, reply), protocol, out)
        return score_predictions("mm_vet", [mm_vet], read_predictions(out))

    assert judge("first", "1.0")["rules"]["official"]["metrics"]["total"] == 1.0
    second = judge("second", "0.5", requests[:2])
    assert second["judge"] == "second" and second["n_missing"] == 1, "that of the first does not stand in"
    again = judge("first", "0.0")
    assert again["judge"] == "first" and again["rules"]["official"]["metrics"]["total"] == 1.0
    assert asked == ["first"] * 3 + ["second"] * 2


def test_a_stopped_run_goes_on_where_it_was(mm_vet: Path, tmp_path: Path) -> None:
    protocol, out = find_protocol("mm_vet"), tmp_path / "out.jsonl"
    predictions = [{"question_id": i, "text": f"reply {i}"} for i in range(3)]
    asked: list[str] = []

    def reply(messages: Sequence[dict[str, str]]) -> str:
        asked.append(messages[-1]["content"])
        if len(asked) == 3:
            raise JudgeError("gone")
        return "0.5"

    requests = protocol.requests([mm_vet], predictions)
    with pytest.raises(JudgeError):
        run_judge(requests, CallableJudge("mine", reply), protocol, out)
    with open(out, "a") as file:
        file.write('{"question_id": 2, "jud')  # killed while it wrote
    lines = run_judge(requests, CallableJudge("mine", reply), protocol, out)
    assert len(asked) == 4
    assert [line["text"] for line in lines] == ["reply 0", "reply 1", "reply 2"]
    assert len(read_predictions(out)) == 3
    run_judge(
        protocol.requests([mm_vet], [{"question_id": 0, "text": "new"}]), CallableJudge("mine", reply), protocol, out
    )
    run_judge(requests, CallableJudge("other", reply), protocol, out)
    assert len(asked) == 4 + 1 + 3


def test_each_protocol_has_its_own_form(tmp_path: Path, video: list[Path]) -> None:
    (request,) = find_protocol("msvd_qa").requests(video, [{"id": "v_1", "pred": "a boy"}])
    assert "Question: who 1?\nTrue answer: man\nGiven answer: a boy" in request.messages[-1]["content"]
    assert find_protocol("msvd_qa").accepts("{'pred': 'no', 'score': 1}")
    assert not find_protocol("msvd_qa").accepts("no")
    folder = tmp_path / "bench"
    folder.mkdir()
    write_lines(
        folder / "questions.jsonl", [{"question_id": 0, "image": "1.jpg", "text": "What?", "category": "conv"}]
    )
    write_lines(folder / "context.jsonl", [{"id": "1", "image": "1.jpg", "caption": ["A lake.", "A boat."]}])
    write_lines(folder / "answers_gpt4.jsonl", [{"question_id": 0, "text": "A boat on a lake."}])
    write_json(folder / "rule.json", {"llava_bench_conv": {"role": "Helper", "prompt": "Score them."}})
    (request,) = find_protocol("llava_bench").requests([folder], [{"question_id": 0, "text": "A ship."}])
    assert request.messages[-1]["content"] == (
        "[Context]\nA lake.\nA boat.\n\n[Question]\nWhat?\n\n[Helper 1]\nA boat on a lake.\n\n[End of Helper 1]\n\n"
        "[Helper 2]\nA ship.\n\n[End of Helper 2]\n\n[System]\nScore them.\n\n"
    )
    problem = {"question_type": "free_form", "answer_type": "integer", "question": "How many?", "answer": "4"}
    path = write_json(tmp_path / "test_mini.json", {"1": problem, "2": problem})
    lines = [{"pid": "1", "response": "4"}, {"pid": "2", "response": "There are four, 4."}]
    protocol = find_protocol("mathvista")
    judged = run_judge(
        protocol.requests([path], lines), CallableJudge("mine", lambda m: "4"), protocol, tmp_path / "m.jsonl"
    )
    assert [(line["extraction"], line["judge_name"]) for line in judged] == [("4", "rule"), ("4", "mine")]
    with pytest.raises(ValueError, match="no judge's protocol for 'gqa'; known are llava_bench"):
        find_protocol("gqa")


class Endpoint(BaseHTTPRequestHandler):
    seen: list[dict[str, Any]] = []
    failures: list[int] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).seen.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
        status = type(self).failures.pop(0) if type(self).failures else 200
        content = {"choices": [{"message": {"content": "0.5"}}]} if status == 200 else {"error": "busy"}
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[str]:
    Endpoint.seen, Endpoint.failures = [], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_an_endpoint_that_is_busy_is_asked_again(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    Endpoint.failures = [429, 503]
    judge = EndpointJudge(endpoint, "gpt-4-0613", "MY_KEY", pause=0.01)
    assert judge([{"role": "user", "content": "?"}], 3, 0.5) == "0.5"
    assert len(Endpoint.seen) == 3
    seen = Endpoint.seen[-1]
    assert (seen["path"], seen["key"]) == ("/v1/chat/completions", "Bearer secret")
    assert (seen["model"], seen["max_tokens"], seen["temperature"]) == ("gpt-4-0613", 3, 0.5)


def test_an_endpoint_that_refuses_or_is_not_there_is_an_error(endpoint: str) -> None:
    Endpoint.failures = [401]
    with pytest.raises(JudgeError, match="HTTP 401"):
        EndpointJudge(endpoint, "m", pause=0.01)([{"role": "user", "content": "?"}], 3, 0.0)
    with pytest.raises(JudgeError, match="no reply after 2 attempts"):
        EndpointJudge("http://127.0.0.1:9/v1", "m", retries=1, pause=0.01)([{"role": "user", "content": "?"}], 3, 0.0)


def test_the_tool_judges_with_several_workers(mm_vet: Path, tmp_path: Path, endpoint: str) -> None:
    predictions = write_lines(tmp_path / "p.jsonl", [{"question_id": i, "text": "a"} for i in range(3)])
    out = tmp_path / "judged.jsonl"
    command = [sys.executable, str(TOOL), "mm_vet", "--data", str(mm_vet), "--predictions", str(predictions)]
    command += ["--out", str(out), "--endpoint", endpoint, "--model", "toy", "--workers", "3"]
    ran = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OPENAI_API_KEY": ""})
    assert ran.returncode == 0, ran.stderr
    assert "3 replies judged by toy, 0 of them without a usable verdict" in ran.stdout
    result = score_predictions("mm_vet", [mm_vet], read_predictions(out))
    assert (result["rules"]["official"]["metrics"]["total"], result["judge"]) == (0.5, "toy")
    assert len(Endpoint.seen) == 3
    command[command.index("--predictions") + 1] = str(tmp_path / "none.jsonl")
    assert subprocess.run(command, capture_output=True).returncode == 2
