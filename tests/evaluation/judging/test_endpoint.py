"""Endpoints: a refusal belongs to its question, parameters adapt to what the endpoint takes, and the advice fits."""

import json
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from mg_llava.evaluation.judging.endpoint import EndpointJudge
from mg_llava.evaluation.judging.protocol import JudgeError, JudgeRefusal
from mg_llava.evaluation.judging.run import run_judge
from mg_llava.evaluation.score import find_protocol, score_predictions
from mg_llava.evaluation.scoring.files import read_predictions
from tests.evaluation.judging.endpoints import CUT_OFF, Answer, Body, endpoints, error, reply

TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "?"}]


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], tuple[str, list[Body]]]]:
    with endpoints() as start:
        yield start


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were to be waited for."""
    found: list[float] = []
    monkeypatch.setattr("mg_llava.evaluation.judging.endpoint.time.sleep", found.append)
    return found


REFUSALS = {
    "filter of the reply": reply(None, "content_filter"),
    "refusal in the message": reply(None, refusal="I cannot help with that."),
    "moderation": error("Your input was flagged by moderation", 403),
    "risk": error("Content Exists Risk"),
    "too long": error("This model's maximum context length is 4096 tokens; you requested 9000", code="context_length"),
    "too large": error("Request Entity Too Large", 413),
    "no choices": (200, {"choices": []}),
    "choices of nothing": (200, {"choices": None, "promptFeedback": {"blockReason": "OTHER"}}),
    "neither reply nor text": (
        200,
        {"choices": [{"message": {"role": "assistant"}, "finish_reason": "content_filter"}]},
    ),
    "an error that a relay hands on": error("Provider returned error", 200, code=400),
    "law": error("Unavailable For Legal Reasons", 451),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_refusal_belongs_to_its_question(serve: Any, kind: str, tmp_path: Path) -> None:
    questions = {f"v1_{i}": {"question": f"q{i}?", "answer": "red", "capability": ["rec"]} for i in range(4)}
    (tmp_path / "mm-vet.json").write_text(json.dumps(questions))
    refused = [True]
    url, seen = serve(lambda body: REFUSALS[kind] if "q1?" in str(body) and refused[0] else reply("0.5"))
    protocol = find_protocol("mm_vet")
    requests = protocol.requests(
        [tmp_path / "mm-vet.json"], [{"question_id": name, "text": "a"} for name in questions]
    )
    out = tmp_path / "judged.jsonl"

    def judge() -> list[bool]:
        lines = run_judge(requests, EndpointJudge(url, "m", pause=0.01), protocol, out)
        return [line["judge_accepted"] for line in lines]

    assert judge() == [True, False, True, True]
    scored = score_predictions("mm_vet", [tmp_path / "mm-vet.json"], read_predictions(out))
    assert scored["rules"]["official"]["metrics"]["total"] == pytest.approx(0.375)
    assert any("v1_1" in warning for warning in scored["warnings"])
    before = len(seen)
    assert judge() == [True, False, True, True] and len(seen) == before + 1, "only the refused one is asked again"
    refused[0] = False
    assert judge() == [True] * 4 and len(read_predictions(out)) == 4
    assert "judge_error" not in out.read_text()


PARAMETERS: dict[str, tuple[Callable[[Body], bool], tuple[int, Body], Callable[[Body], bool]]] = {
    "temperature is fixed": (
        lambda body: "temperature" in body,
        error("Unsupported value: 'temperature' does not support 0.5. Only the default (1) value is supported."),
        lambda body: body["max_tokens"] == 3,
    ),
    "temperature has another range": (
        lambda body: body.get("temperature", 0) > 0.3,
        (422, {"detail": [{"loc": ["body", "temperature"], "msg": "Input should be less than or equal to 0.3"}]}),
        lambda body: "temperature" not in body,
    ),
    "no messages of the system": (
        lambda body: body["messages"][0]["role"] == "system",
        error("'messages[0].role' does not support 'system' with this model", param="messages[0].role"),
        lambda body: body["messages"] == [{"role": "user", "content": "Be brief.\n\n?"}],
    ),
    "least number of tokens": (
        lambda body: body.get("max_tokens", 99) < 16,
        error("Invalid 'max_tokens': integer below minimum value. Expected a value >= 16, but got 3 instead."),
        lambda body: body["max_tokens"] == 16,
    ),
    "strict fields": (
        lambda body: "max_tokens" in body,
        (422, {"detail": [{"loc": ["body", "max_tokens"], "msg": "Extra inputs are not permitted"}]}),
        lambda body: body["max_completion_tokens"] == 3,
    ),
    "neither limit": (
        lambda body: "max_tokens" in body or "max_completion_tokens" in body,
        error("Unrecognized request argument supplied: max_completion_tokens or max_tokens"),
        lambda body: body["temperature"] == 0.5,
    ),
}


@pytest.mark.parametrize("kind", PARAMETERS)
def test_parameters_adapt_to_the_endpoint(serve: Any, kind: str) -> None:
    is_refused, refusal, is_right = PARAMETERS[kind]
    url, seen = serve(lambda body: refusal if is_refused(body) else reply("0.5"))
    judge = EndpointJudge(url, "m", pause=0.01)
    assert judge(TALK, 3, 0.5) == "0.5" and is_right(seen[-1])
    asked = len(seen)
    assert judge(TALK, 3, 0.5) == "0.5" and len(seen) == asked + 1, "it is known from the first time"


def test_a_relays_error_that_passes_is_asked_again(serve: Any) -> None:
    busy = [error("Provider is busy", 200, code=502), error("Rate limited", 200, code=429)]
    url, seen = serve(lambda body: busy.pop() if busy else reply("0.5"))
    assert EndpointJudge(url, "m", pause=0.01)(TALK, 3, 0.0) == "0.5" and len(seen) == 3


def test_what_is_cut_off_is_asked_again(serve: Any) -> None:
    cut = [(*reply("0.1"), CUT_OFF), (*error("bad request"), CUT_OFF)]
    url, seen = serve(lambda body: cut.pop() if cut else reply("0.5"))
    assert EndpointJudge(url, "m", pause=0.01)(TALK, 3, 0.0) == "0.5" and len(seen) == 3


def test_pauses_are_no_shorter_than_the_endpoint_says(serve: Any, pauses: list[float]) -> None:
    said = ["7", formatdate(time.time() + 90, usegmt=True), "86400", "soon"]
    busy = [(*error("busy", 503), {"Retry-After": after}) for after in said]
    url, _ = serve(lambda body: busy.pop(0) if busy else reply("0.5"))
    assert EndpointJudge(url, "m", pause=0.01)(TALK, 3, 0.0) == "0.5"
    assert pauses[0] == 7 and 60 < pauses[1] <= 90, "a number, and a date"
    assert pauses[2:] == [300, 0.08], "no longer than some minutes, and as without one that cannot be read"


def test_a_rate_by_the_minute_is_waited_for(serve: Any, pauses: list[float]) -> None:
    url, _ = serve(lambda body: reply("0.5") if sum(pauses) > 60 else error("Rate limit reached", 429))
    assert EndpointJudge(url, "m")(TALK, 3, 0.0) == "0.5"
    url, seen = serve(lambda body: error("Rate limit reached", 429))
    with pytest.raises(JudgeError, match="no reply after 9 attempts: HTTP 429"):
        EndpointJudge(url, "m")(TALK, 3, 0.0)
    assert len(seen) == 9


def test_a_reply_in_parts_is_one_text(serve: Any) -> None:
    parts = [{"type": "text", "text": "0."}, {"type": "reasoning"}, {"type": "text", "text": "5"}]
    url, _ = serve(lambda body: (200, {"choices": [{"message": {"content": parts}, "finish_reason": "stop"}]}))
    assert EndpointJudge(url, "m")(TALK, 3, 0.0) == "0.5"


@pytest.mark.parametrize("given", ["", "<think>Is it 0.9, or"])
def test_a_model_that_thinks_gets_room(serve: Any, given: str) -> None:
    url, seen = serve(lambda body: reply("0.5") if body["max_tokens"] > 1000 else reply(given, "length"))
    assert EndpointJudge(url, "m")(TALK, 3, 0.0) == "0.5" and len(seen) == 2


def test_what_no_question_can_change_ends_the_run(serve: Any, tmp_path: Path) -> None:
    for answer, advice in [
        (error("no such model", 404), "the URL and the model's name"),
        (error("wrong key", 401), "the key in MY_KEY"),
        (error("pay first", 402), "takes no such request"),
    ]:
        url, seen = serve(lambda body, answer=answer: answer)
        with pytest.raises(JudgeError, match=advice):
            EndpointJudge(url, "m", "MY_KEY")(TALK, 3, 0.0)
        assert len(seen) == 1
    questions = {f"v1_{i}": {"question": "?", "answer": "a", "capability": ["rec"]} for i in range(30)}
    (tmp_path / "mm-vet.json").write_text(json.dumps(questions))
    url, seen = serve(lambda body: error("bad request"))
    with pytest.raises(JudgeRefusal, match="bad request"):
        EndpointJudge(url, "m")(TALK, 3, 0.0)
    protocol = find_protocol("mm_vet")
    requests = protocol.requests(
        [tmp_path / "mm-vet.json"], [{"question_id": name, "text": "a"} for name in questions]
    )
    with pytest.raises(JudgeError, match=r"10 questions in a row were refused, the last one: .*bad request"):
        run_judge(requests, EndpointJudge(url, "m"), protocol, tmp_path / "out.jsonl")
