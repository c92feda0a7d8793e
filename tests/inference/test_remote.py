"""An engine whose LLM another process runs: the answers of our own generation, and every fault of the other side."""

import logging
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
import torch

from mg_llava.commands import serve
from mg_llava.inference import Predictor, Request
from mg_llava.inference.serving.errors import RequestLimits
from mg_llava.inference.serving.far_side import FarSide, check_url
from mg_llava.inference.serving.remote import RemoteEngine
from mg_llava.inference.serving.server import ChatServer
from mg_llava.models.llm import keep_word_embeddings
from tests.inference.serving_toys import BOXES, a_picture, client_of, image, make_predictor, post, serving, text, user
from tests.inference.vllm_stub import KEY, VLLMStub, vllm_stub


@pytest.fixture(scope="module")
def predictor(toy_paths: dict[str, str]) -> Predictor:
    return make_predictor(toy_paths)


@pytest.fixture(scope="module")
def headless(toy_paths: dict[str, str]) -> Predictor:
    """A predictor whose LLM has word embeddings alone."""
    predictor = make_predictor(toy_paths)
    keep_word_embeddings(predictor.model.llm)
    return predictor


@pytest.fixture(scope="module")
def started(toy_paths: dict[str, str]) -> Iterator[VLLMStub]:
    with vllm_stub(toy_paths["llm"]) as stub:
        yield stub


@pytest.fixture
def stub(started: VLLMStub) -> VLLMStub:
    started.behave = ""
    started.left.clear()
    started.goes_on.clear()
    started.bodies.clear()
    return started


@pytest.fixture
def server(stub: VLLMStub, headless: Predictor) -> Iterator[ChatServer]:
    engine = RemoteEngine(headless, far_side(stub))
    with serving(headless, engine=engine, limits=RequestLimits(seconds=30)) as server:
        yield server


def far_side(stub: VLLMStub, **given: Any) -> FarSide:
    return FarSide(check_url(stub.url, ()), **{"key": KEY, "seconds": 30.0, **given})


def ask(server: ChatServer, messages: list[dict], **given: Any) -> Any:
    return client_of(server).chat.completions.create(model="toy", messages=messages, **given)


def words_of(chunks: Any) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def test_answers_are_those_of_our_own_generation(server: ChatServer, stub: VLLMStub, predictor: Predictor) -> None:
    """With pictures, boxes, a history, limits, stop words and a third of them streamed, all at once."""
    pictures = [a_picture(seed) for seed in range(3)]

    def request(number: int) -> tuple[list[dict], Request, dict[str, Any]]:
        shown = pictures[: number % 3]
        parts = [image(picture, boxes=BOXES[: number % 2]) for picture in shown]
        boxes: Any = [BOXES[: number % 2]] * len(shown)
        turns = [("human", "<image>\n" * len(shown) + f"what is {number}?")]
        messages = user(*parts, text(f"what is {number}?"))
        if number % 5 == 0:
            messages = [*user("a digit?"), {"role": "assistant", "content": "two"}, *messages]
            turns = [("human", "a digit?"), ("gpt", "two"), *turns]
        found = boxes[0] if len(shown) == 1 else boxes or None
        more = {"max_new_tokens": 3 + number, "stop": ["q"] if number % 4 == 0 else []}
        return messages, Request(turns, shown or None, found), more

    def answer(number: int) -> tuple[str, str]:
        messages, _, more = request(number)
        given: dict[str, Any] = {"max_tokens": more["max_new_tokens"], "stop": more["stop"] or None}
        if number % 3 == 0:
            chunks = list(ask(server, messages, **given, stream=True))
            return words_of(chunks), chunks[-1].choices[0].finish_reason
        (choice,) = ask(server, messages, **given).choices
        return choice.message.content, choice.finish_reason

    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(answer, range(12)))
    for number in range(12):
        _, asked, more = request(number)
        wanted = predictor.predict_many([asked], **more)[0]
        assert found[number] == (wanted.text, "length" if wanted.truncated else "stop")
    assert server.app.engine.running == 0 and all(body["temperature"] == 0 for body in stub.bodies)


def test_logprobs_usage_and_metrics(server: ChatServer, predictor: Predictor) -> None:
    wanted = predictor.predict(None, "what?", max_new_tokens=5)
    with serving(predictor) as own:
        ours = ask(own, user("what?"), max_tokens=5, logprobs=True, top_logprobs=3)
    far = ask(server, user("what?"), max_tokens=5, logprobs=True, top_logprobs=3)
    assert far.usage == ours.usage and far.usage.completion_tokens == len(wanted.token_ids)
    pairs = zip(far.choices[0].logprobs.content, ours.choices[0].logprobs.content, strict=True)
    for one, other in pairs:
        assert one.token == other.token and abs(one.logprob - other.logprob) < 1e-4
        assert [top.token for top in one.top_logprobs] == [top.token for top in other.top_logprobs]


def test_arguments_reach_the_other_side(server: ChatServer, stub: VLLMStub, predictor: Predictor) -> None:
    more = {"extra_body": {"top_k": 7, "repetition_penalty": 1.5}}
    ask(server, user("what?"), temperature=0.5, top_p=0.9, seed=3, max_tokens=2, **more)
    body = stub.bodies[-1]
    sent = {name: body[name] for name in ("temperature", "top_p", "top_k", "seed", "repetition_penalty", "max_tokens")}
    assert sent == dict(temperature=0.5, top_p=0.9, top_k=7, seed=3, repetition_penalty=1.5, max_tokens=2)
    assert set(body["stop_token_ids"]) == set(predictor.front_end.stops.ids)


def test_a_prompt_has_to_fit_into_the_other_sides_context(server: ChatServer) -> None:
    with pytest.raises(openai.BadRequestError, match="context is 300") as refused:
        ask(server, user("z" * 310))
    assert refused.value.code == "context_length_exceeded"


def test_a_client_that_leaves_ends_the_work_there(server: ChatServer, stub: VLLMStub) -> None:
    stub.behave = "slow"
    with ask(server, user("what?"), max_tokens=200, stream=True) as stream:
        next(iter(stream))
    assert stub.left.wait(30) and stub.steps < 200
    stub.behave = ""
    assert ask(server, user("what?"), max_tokens=2).choices
    assert (server.app.load.requests, server.app.engine.waiting) == (0, 0)


@pytest.mark.parametrize(
    ("behave", "status", "code", "said"),
    [
        ("status", 502, "engine_error", "server failed"),
        ("drop", 502, "engine_error", "broke off"),
        ("error", 502, "engine_error", "server failed"),
        ("text", 502, "engine_error", "server failed"),
    ],
)
def test_faults_are_error_objects_and_the_key_stays_secret(
    server: ChatServer, stub: VLLMStub, behave: str, status: int, code: str, said: str, caplog: Any, capfd: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    stub.behave = behave
    found, answer = post(server, {"messages": user("what?"), "max_tokens": 6})
    assert (found, answer["error"]["code"], answer["error"]["type"]) == (status, code, "server_error")
    assert said in answer["error"]["message"] and KEY not in str(answer)
    with pytest.raises(openai.APIError):
        list(ask(server, user("what?"), max_tokens=6, stream=True))
    stub.behave = ""
    assert ask(server, user("what?"), max_tokens=2).choices, "the server lives on"
    logged = caplog.text + "".join(capfd.readouterr())
    assert KEY not in logged and KEY not in repr(server.app.engine.far)  # type: ignore[attr-defined]


def test_silence_is_a_time_out(stub: VLLMStub, headless: Predictor) -> None:
    for limit, patience in ((0.3, 30.0), (30.0, 0.3)):
        stub.behave = ""
        engine = RemoteEngine(headless, far_side(stub))
        # the short limit is for the question alone, not for the look at the start whether embeddings are taken
        engine.far = replace(engine.far, seconds=patience)
        engine._client = httpx.AsyncClient(**engine.far.options)
        with serving(headless, engine=engine, limits=RequestLimits(seconds=limit)) as server:
            stub.behave = "silent"
            found, answer = post(server, {"messages": user("what?")})
            assert (found, answer["error"]["code"]) == (504, "timeout")


def test_an_end_of_the_server_ends_what_is_asked(stub: VLLMStub, headless: Predictor) -> None:
    told: list[Any] = []
    with RemoteEngine(headless, far_side(stub)) as engine:
        stub.behave, ended = "silent", threading.Event()

        def tell(event: Any) -> None:
            told.append(event)
            ended.set()

        engine.submit(engine.prepare(Request("what?"), {}, tell=tell))
        while not engine.running:
            ended.wait(0.01)
    assert ended.wait(30) and "engine has ended" in str(told[-1].error) and engine.running == 0


def test_what_is_no_server_for_embeddings_is_found_at_the_start(stub: VLLMStub, headless: Predictor) -> None:
    with pytest.raises(ValueError, match=r"status 401: Unauthorized.*--enable-prompt-embeds"):
        RemoteEngine(headless, far_side(stub, key="wrong"))
    stub.behave = "status"
    with pytest.raises(ValueError, match=r"out of memory \*\*\*"):
        RemoteEngine(headless, far_side(stub))
    stub.behave = ""
    with pytest.raises(ValueError, match="wrong prompt_embeds"):
        far_side(stub).connect(torch.zeros(3, 5))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(OSError, match=f"127.0.0.1:{port}/v1 cannot be reached"):
        RemoteEngine(headless, FarSide(f"http://127.0.0.1:{port}/v1"))


def test_only_this_machine_and_named_hosts_are_asked() -> None:
    assert check_url("http://127.0.0.1:8001", ()) == "http://127.0.0.1:8001/v1"
    assert check_url("http://localhost:8001/v1/", ()) == "http://localhost:8001/v1"
    assert check_url("http://[::1]:8001/v1", ()) == "http://[::1]:8001/v1"
    assert check_url("https://gpu.example/far/v1", ("gpu.example",)) == "https://gpu.example/far/v1"
    for url, message in [
        ("http://gpu.example/v1", "--engine-host gpu.example allows it"),
        ("http://169.254.169.254/", "is not this machine"),
        ("http://127.0.0.1.evil.example/", "is not this machine"),
        ("ftp://127.0.0.1/", "no address of a server"),
        ("http://127.0.0.1:x/", "no address of a server"),
        ("127.0.0.1:8001", "no address of a server"),
        ("http://127.0.0.1/v1?a=b", "no address of a server"),
    ]:
        with pytest.raises(ValueError, match=message):
            check_url(url, ("other.example",))
    with pytest.raises(ValueError, match="no name or password") as refused:
        check_url("http://name:hush@127.0.0.1:8001/", ())
    assert "hush" not in str(refused.value)


def test_the_command_asks_for_an_engine_that_there_is(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    for engine, message in [
        ("sglang=http://127.0.0.1", "allowed: vllm=URL"),
        ("vllm=http://a.example", "this machine"),
    ]:
        monkeypatch.setattr("sys.argv", ["serve", "CONFIG.py", "--engine", engine])
        assert serve.main() == 1 and message in capsys.readouterr().err
