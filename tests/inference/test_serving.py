"""The server over real HTTP, asked by the official client: the predictor's answers, whole and in pieces."""

import http.client
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import torch
from openai import OpenAI

from mg_llava.data.records.schema import Turn
from mg_llava.inference import Predictor, Request
from mg_llava.inference.serving.server import ChatServer
from tests.inference.serving_toys import (
    BOXES,
    a_picture,
    client_of,
    image,
    make_predictor,
    post,
    serving,
    text,
    url_of,
    user,
)
from tests.run import until


@pytest.fixture(scope="module")
def predictor(toy_paths: dict[str, str]) -> Predictor:
    return make_predictor(toy_paths)


@pytest.fixture(scope="module")
def server(predictor: Predictor) -> Iterator[ChatServer]:
    with serving(predictor, batch_size=16) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: ChatServer) -> OpenAI:
    return client_of(server)


def ask(client: OpenAI, messages: list[dict], **given: Any) -> Any:
    return client.chat.completions.create(model="toy", messages=messages, **given)


def test_answers_are_the_predictors(client: OpenAI, predictor: Predictor) -> None:
    picture = a_picture()
    reply = ask(client, user(image(picture, boxes=BOXES), text("what is there?")), max_tokens=4)
    wanted = predictor.predict(picture, "what is there?", BOXES, max_new_tokens=4)
    (choice,) = reply.choices
    assert (choice.message.role, choice.message.content) == ("assistant", wanted.text)
    assert choice.finish_reason == ("length" if wanted.truncated else "stop")
    assert (reply.model, reply.object) == ("toy", "chat.completion")
    assert reply.usage.completion_tokens == len(wanted.token_ids) <= 4
    assert reply.usage.prompt_tokens == wanted.prompt_tokens
    without = ask(client, user(image(picture), text("what is there?")), max_tokens=4)
    assert without.choices[0].message.content != wanted.text


def test_several_pictures_with_boxes_of_their_own(client: OpenAI, predictor: Predictor) -> None:
    pictures = [a_picture(seed) for seed in range(3)]
    parts = [image(pictures[0], boxes=BOXES), text("one"), image(pictures[1], boxes=[]), image(pictures[2])]
    reply = ask(client, user(*parts, text("what?")))
    turns = [Turn("human", "<image>\none<image>\n<image>\nwhat?")]
    assert reply.choices[0].message.content == predictor.predict(pictures, turns, [BOXES, [], None]).text


def test_pictures_beside_the_placeholder_of_a_video_are_its_frames(
    client: OpenAI, server: ChatServer, predictor: Predictor
) -> None:
    frames = [a_picture(seed) for seed in range(3)]
    parts = [text("<video>\nwhat?"), *(image(frame, boxes=BOXES) for frame in frames)]
    reply = ask(client, user(*parts))
    wanted = predictor.predict(frames, "<video>\nwhat?", [BOXES] * 3)
    assert reply.choices[0].message.content == wanted.text and reply.usage.prompt_tokens == wanted.prompt_tokens
    plain = predictor.predict(frames, "what?", [BOXES] * 3)
    assert plain.prompt_tokens > wanted.prompt_tokens, "pictures have lines of their own"
    later = [{"role": "assistant", "content": "a digit"}, *user(image(frames[0]), text("and this?"))]
    status, answer = post(server, {"model": "toy", "messages": [*user(*parts), *later]})
    assert status == 400 and "1 <image> in the questions, 4 pictures" in answer["error"]["message"]


def test_places_of_a_video_where_none_is_shown_are_left_out(client: OpenAI, predictor: Predictor) -> None:
    wanted = predictor.predict(None, "\nwhat?").text
    for content in ("<video>\nwhat?", text("<video>\nwhat?")):
        assert ask(client, user(content)).choices[0].message.content == wanted
    frames = [a_picture(seed) for seed in range(2)]
    parts = [text("<video>\nand here?"), *(image(frame, boxes=BOXES) for frame in frames)]
    messages = [*user("a <video>?"), {"role": "assistant", "content": "no <video>"}, *user(*parts)]
    turns = [Turn("human", "a ?"), Turn("gpt", "no <video>", is_said=True), Turn("human", "<video>\nand here?")]
    wanted = predictor.predict_many([Request(turns, frames, [BOXES] * 2)])[0].text
    assert ask(client, messages).choices[0].message.content == wanted


def test_conversations_with_a_system_text_and_a_later_picture(client: OpenAI, predictor: Predictor) -> None:
    messages = [
        {"role": "system", "content": "two digits"},
        {"role": "user", "content": "a digit?"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": [text("and <image> here "), image(a_picture())]},
    ]
    turns = [Turn("human", "a digit?"), Turn("gpt", "two"), Turn("human", "and  here <image>\n")]
    request = Request(turns, a_picture(), system="two digits")
    assert ask(client, messages).choices[0].message.content == predictor.predict_many([request])[0].text


def test_streams_are_the_answer_in_pieces(client: OpenAI, predictor: Predictor) -> None:
    messages = user(image(a_picture(), boxes=BOXES), text("what is there?"))
    wanted = predictor.predict(a_picture(), "what is there?", BOXES, max_new_tokens=12)
    chunks = list(ask(client, messages, max_tokens=12, stream=True, stream_options={"include_usage": True}))
    first, *middle, last, usage = chunks
    assert (first.choices[0].delta.role, last.choices[0].finish_reason) == ("assistant", "length")
    assert "".join(chunk.choices[0].delta.content for chunk in middle) == wanted.text and len(middle) > 2
    assert usage.choices == [] and usage.usage.completion_tokens == len(wanted.token_ids)
    assert len({chunk.id for chunk in chunks}) == 1 and all(chunk.usage is None for chunk in chunks[:-1])


def test_stop_strings_end_the_answer(client: OpenAI) -> None:
    whole = ask(client, user("what?")).choices[0].message.content
    for stream in (False, True):
        reply = ask(client, user("what?"), stop=[whole[2]], stream=stream)
        if stream:
            chunks = list(reply)
            found, reason = "".join(c.choices[0].delta.content or "" for c in chunks), chunks[-1].choices[0]
        else:
            found, reason = reply.choices[0].message.content, reply.choices[0]
        assert (found, reason.finish_reason) == (whole[: whole.find(whole[2])], "stop")


def test_logprobs_are_those_of_the_chosen_ids(client: OpenAI, predictor: Predictor) -> None:
    answer = predictor.predict(None, "what?")
    for stream in (False, True):
        reply = ask(client, user("what?"), logprobs=True, top_logprobs=3, stream=stream)
        parts = [c.choices[0].logprobs for c in reply] if stream else [reply.choices[0].logprobs]
        tokens = [token for part in parts for token in part.content]
        decode = predictor.front_end.tokenizer.decode
        assert [token.token for token in tokens] == [decode([number]) for number in answer.token_ids]
        for token in tokens:
            assert len(token.top_logprobs) == 3 and token.logprob == token.top_logprobs[0].logprob, "greedy"
            assert sum(torch.tensor([one.logprob for one in token.top_logprobs]).exp()) <= 1 + 1e-5


def test_the_same_seed_gives_the_same_answer(client: OpenAI) -> None:
    def drawn(seed: int) -> str:
        more = {"top_k": 0}
        return ask(client, user("what?"), temperature=2.0, seed=seed, extra_body=more).choices[0].message.content

    assert len({drawn(3) for _ in range(4)}) == 1 and len({drawn(seed) for seed in range(4)}) > 1


def test_fields_that_ask_for_what_happens_anyway_are_taken(client: OpenAI) -> None:
    plain = ask(client, user("what?")).choices
    harmless = {"n": 1, "stream": False, "logprobs": None, "presence_penalty": 0, "tools": [], "store": False}
    more = {"response_format": {"type": "text"}, "user": "u", "metadata": {}, "temperature": 0, "seed": 4}
    assert ask(client, user("what?"), **harmless, **more).choices == plain


def test_the_model_is_listed(client: OpenAI, server: ChatServer) -> None:
    assert [model.id for model in client.models.list()] == ["toy"] == [client.models.retrieve("toy").id]
    assert httpx.get(url_of(server) + "/health", timeout=60).json() == {"status": "ok"}


def test_many_at_once_are_answered_as_one_at_a_time(
    client: OpenAI, server: ChatServer, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With pictures, boxes, histories, limits and stop words of their own, a third of them streamed."""
    words = ["what?", "a digit?", "two digits and a longer question?", "is there?"]

    def request(number: int) -> dict[str, Any]:
        parts = [image(a_picture(number % 5), boxes=BOXES[: number % 2])] if number % 3 else []
        asked = user(*parts, text(words[number % 4] + str(number)))
        if number % 5 == 0:
            asked = [*user("a digit?"), {"role": "assistant", "content": "two"}, *asked]
        return {"messages": asked, "max_tokens": 4 + number % 7, "stop": ["q"] if number % 4 == 0 else None}

    def answer(number: int) -> str:
        if number % 3 == 0:
            chunks = ask(client, **request(number), stream=True)
            return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        return ask(client, **request(number)).choices[0].message.content

    before = predictor.statistics.steps
    alone = [answer(number) for number in range(32)]
    steps_alone, before = predictor.statistics.steps - before, predictor.statistics.steps
    assert all_at_once(server, 32, answer, monkeypatch) == alone
    assert 3 * (predictor.statistics.steps - before) <= steps_alone


def all_at_once(server: ChatServer, count: int, answer: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Answers of so many clients, whose requests reach the engine together."""
    submit, held = server.app.engine.submit, []

    def gather(job: Any) -> None:
        held.append(job)
        if len(held) == count:
            with server.app.engine._changed:  # it takes none before all are there
                for waiting in held:
                    submit(waiting)

    monkeypatch.setattr(server.app.engine, "submit", gather)
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(answer, range(count)))


def test_questions_about_one_picture_share_what_is_before_them(
    client: OpenAI, server: ChatServer, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve about a picture with boxes of two kinds: it is encoded and read twice."""

    def answer(number: int) -> tuple[str, int]:
        parts = [image(a_picture(), boxes=BOXES[: number % 2]), text(f"what is {'there' * (number % 5)} {number}?")]
        reply = ask(client, user(*parts), max_tokens=3 + number)
        return reply.choices[0].message.content, reply.usage.prompt_tokens

    alone, statistics = [answer(number) for number in range(12)], predictor.statistics
    before = statistics.pictures, statistics.prefixes, statistics.alone
    assert all_at_once(server, 12, answer, monkeypatch) == alone
    again = statistics.alone - before[2]  # those that rounding could have decided have their picture encoded once more
    assert (statistics.pictures - before[0] - again, statistics.prefixes - before[1]) == (2, 2)


def test_metrics_count(client: OpenAI, server: ChatServer) -> None:
    def value(name: str) -> float:
        secret = {"Authorization": "Bearer secret"}
        lines = httpx.get(url_of(server) + "/metrics", headers=secret, timeout=60).text.splitlines()
        return next((float(line.split()[-1]) for line in lines if line.startswith(name + " ")), 0.0)

    name = 'mg_llava_requests_total{status="%d"}'
    before = value(name % 200), value(name % 400), value("mg_llava_generated_tokens_total")
    new = ask(client, user("what?")).usage.completion_tokens
    assert post(server, {"messages": []})[0] == 400
    after = value(name % 200), value(name % 400), value("mg_llava_generated_tokens_total")
    assert after == (before[0] + 1, before[1] + 1, before[2] + new)
    assert value("mg_llava_running_requests") == 0 and value("mg_llava_request_seconds_count") > 0


def test_a_client_that_leaves_ends_the_work(toy_paths: dict[str, str]) -> None:
    predictor = make_predictor(toy_paths, eos_token_id=[])
    begun, goes_on = threading.Event(), threading.Event()
    forward = predictor.model.llm.model.forward

    def slow(*given: Any, **named: Any) -> Any:
        if predictor.statistics.steps == 3:
            begun.set()
            assert goes_on.wait(60)
        return forward(*given, **named)

    predictor.model.llm.model.forward = slow
    with serving(predictor) as server:
        with ask(client_of(server), user("what?"), max_tokens=400, stream=True) as stream:
            next(iter(stream))
            assert begun.wait(60)
        job = server.app.engine._answered[0]
        until(lambda: job.is_gone)
        goes_on.set()
        assert ask(client_of(server), user("what?"), max_tokens=2).choices[0].finish_reason == "length"
        assert predictor.statistics.steps <= 4 + 2
        assert (server.app.load.requests, server.app.load.bytes) == (0, 0)


def test_a_waiting_client_that_leaves_is_not_answered(toy_paths: dict[str, str]) -> None:
    predictor = make_predictor(toy_paths)
    with serving(predictor) as server:
        entered, goes_on = threading.Event(), threading.Event()
        take = server.app.engine._take

        def held() -> Any:
            entered.set()
            assert goes_on.wait(60)
            return take()

        server.app.engine._take = held
        lost = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        headers = {"Authorization": "Bearer secret"}
        lost.request("POST", "/v1/chat/completions", json.dumps({"messages": user("what?")}), headers)
        assert entered.wait(60)
        lost.close()
        until(lambda: server.app.load.requests == 0)
        goes_on.set()
        assert ask(client_of(server), user("x"), max_tokens=1).choices
        assert predictor.statistics.rows == 1
