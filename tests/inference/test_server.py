"""The chat-completions server over real HTTP: the predictor's answers, and clear refusals."""

import base64
import io
import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageFile

from mg_llava.data.records.schema import Turn
from mg_llava.inference import Predictor
from mg_llava.inference.chat_request import Limits
from mg_llava.inference.frontend import FrontEnd
from mg_llava.inference.server import Abandoned, ChatServer, complete, make_server
from tests import toy

BOXES = [[4.0, 6.0, 40.0, 30.0]]


@pytest.fixture(scope="module")
def predictor(toy_paths: dict[str, str]) -> Predictor:
    processor = {"type": "mg_llava.PictureProcessor", "image_size": toy.CANVAS}
    return Predictor(toy.build_model(toy_paths), toy_paths["llm"], "vicuna", processor, max_new_tokens=6)


@pytest.fixture(scope="module")
def server(predictor: Predictor) -> Iterator[ChatServer]:
    server = make_server(predictor, port=0, model="toy", api_key="secret")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def url(server: ChatServer) -> str:
    return f"http://127.0.0.1:{server.server_port}"


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8))


def data_url(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def ask(url: str, body: object, key: str = "secret", path: str = "/v1/chat/completions") -> tuple[int, dict]:
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def user(*parts: object) -> dict:
    return {"messages": [{"role": "user", "content": list(parts)}]}


def text(content: str) -> dict:
    return {"type": "text", "text": content}


def image(picture: Image.Image, **extra: object) -> dict:
    return {"type": "image_url", "image_url": {"url": data_url(picture), **extra}}


def test_answers_are_the_predictors(url: str, predictor: Predictor, picture: Image.Image) -> None:
    status, answer = ask(url, user(image(picture, boxes=BOXES), text("what is there?")) | {"max_tokens": 4})
    wanted = predictor.predict(picture, "what is there?", BOXES, max_new_tokens=4)
    (choice,) = answer["choices"]
    assert status == 200 and answer["model"] == "toy"
    assert choice["message"] == {"role": "assistant", "content": wanted.text}
    assert choice["finish_reason"] == ("length" if wanted.truncated else "stop")
    assert answer["usage"]["completion_tokens"] == len(wanted.token_ids) <= 4
    without = ask(url, user(image(picture), text("what is there?")) | {"max_tokens": 4})[1]
    assert without["choices"][0]["message"]["content"] != wanted.text


def test_conversations_with_a_system_text_and_a_later_picture(
    url: str, predictor: Predictor, picture: Image.Image
) -> None:
    messages = [
        {"role": "system", "content": "two digits"},
        {"role": "user", "content": "a digit?"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": [text("and <image> here "), image(picture)]},
    ]
    status, answer = ask(url, {"messages": messages})
    turns = [Turn("human", "a digit?"), Turn("gpt", "two"), Turn("human", "and  here <image>\n")]
    own = Predictor(
        predictor.model,
        predictor.front_end.tokenizer,
        predictor.front_end.template,
        predictor.front_end.picture_processor,
        system="two digits",
        max_new_tokens=6,
    )
    assert status == 200
    assert answer["choices"][0]["message"]["content"] == own.predict(picture, turns).text
    assert predictor.front_end.system == ""


def test_stop_strings_end_the_answer(url: str) -> None:
    whole = ask(url, user(text("what?")))[1]["choices"][0]["message"]["content"]
    cut = ask(url, user(text("what?")) | {"stop": whole[2]})[1]["choices"][0]
    assert cut == {
        "index": 0,
        "message": {"role": "assistant", "content": whole[: whole.find(whole[2])]},
        "finish_reason": "stop",
    }


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "Expecting"),
        ([], "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "role 'tool'"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "a part is"),
        (user(text("")), "empty"),
        (user(text("x")) | {"stream": True}, "stream is true, must be false"),
        (user(text("x")) | {"n": 2}, "n is 2, must be 1"),
        (user(text("x")) | {"max_tokens": 0.5}, "max_tokens is 0.5"),
        (user(text("x")) | {"max_tokens": True}, "max_tokens is true"),
        (user(text("x")) | {"temperature": 1.0, "top_p": 2}, "top_p is 2"),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": Infinity}', "Infinity"),
        (user(text("x")) | {"response_format": {"type": "json_object"}}, "response_format"),
        (user(text("x")) | {"tools": [{"type": "function"}], "tool_choice": "required"}, "tools is"),
        (user(text("x")) | {"tool_choice": "required"}, "tool_choice"),
        (user(text("x")) | {"logprobs": True, "top_logprobs": 2}, "logprobs"),
        (user(text("x")) | {"frequency_penalty": 2.0}, "frequency_penalty"),
        (user(text("x")) | {"logit_bias": {"5": 100}}, "logit_bias"),
        (user(text("x")) | {"seed": "7"}, "seed"),
        (user(text("x")) | {"seed": 1 << 63}, "seed"),
        (user(text("x")) | {"stop": ["a", ""]}, "none of them empty"),
        (user(text("x")) | {"temprature": 1.0}, "unknown field 'temprature'"),
        (b'{"messages": [{"role": "user", "content": "\\ud83d"}]}', "surrogate"),
        (b"[" * 100_000, "not JSON"),
        (b'{"messages": ' + b"1" * 5000 + b"}", "not JSON"),
        (user({"type": "image_url", "image_url": {"url": "http://elsewhere/x.png"}}), "nothing is fetched"),
        (user({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}), "cannot be decoded"),
        (user({"type": "image_url", "image_url": {"url": "data:image/png;base64,%%"}}), "cannot be decoded"),
    ],
)
def test_bad_requests_say_what_is_wrong(url: str, body: object, message: str) -> None:
    status, answer = ask(url, body)
    assert status == 400 and message in answer["error"]["message"]
    assert set(answer["error"]) == {"message", "type", "param", "code"}


def test_fields_that_ask_for_what_happens_anyway_are_taken(url: str) -> None:
    plain = ask(url, user(text("what?")))[1]["choices"]
    harmless = {"model": "m", "n": 1, "stream": False, "logprobs": None, "presence_penalty": 0, "tools": []}
    more = {"response_format": {"type": "text"}, "user": "u", "metadata": {}, "temperature": 0, "seed": 4}
    assert ask(url, user(text("what?")) | harmless | more)[1]["choices"] == plain


def test_the_same_seed_gives_the_same_answer(url: str) -> None:
    def drawn(seed: int) -> str:
        body = user(text("what?")) | {"temperature": 2.0, "top_k": 0, "seed": seed}
        return ask(url, body)[1]["choices"][0]["message"]["content"]

    assert len({drawn(3) for _ in range(4)}) == 1 and len({drawn(seed) for seed in range(4)}) > 1


def test_only_users_show_pictures(url: str, picture: Image.Image) -> None:
    for role in ("system", "assistant"):
        messages = [{"role": role, "content": [image(picture)]}, {"role": "user", "content": "x"}]
        status, answer = ask(url, {"messages": messages})
        assert status == 400 and f"role '{role}'" in answer["error"]["message"]
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": None, "refusal": "no"}]
    assert ask(url, {"messages": [*turns, {"role": "user", "content": "y"}]})[0] == 200


def test_sizes_are_counted_before_anything_is_read(
    url: str, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FrontEnd, "encode", lambda *_: pytest.fail("tokenized"))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("decoded"))
    large = image(Image.new("1", (10_000, 7_000)))
    for body, message in [
        (user(text("a" * 500_000)), "500000 characters of text"),
        (user(*[image(picture)] * 17), "17 pictures; at most 16"),
        (user(large), "70000000 pixels"),
    ]:
        status, answer = ask(url, body)
        assert status == 400 and message in answer["error"]["message"]


def test_an_abandoned_answer_stops_between_two_steps(predictor: Predictor) -> None:
    before, polls = predictor.statistics.steps, iter([False, False, False, True])
    with pytest.raises(Abandoned):
        complete(predictor, user(text("what?")), "toy", Limits(), lambda: next(polls))
    assert predictor.statistics.steps == before + 3


def test_nobody_is_answered_who_has_hung_up(url: str, server: ChatServer, predictor: Predictor) -> None:
    body = json.dumps(user(text("what?"))).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nAuthorization: Bearer secret\r\nContent-Length: {len(body)}\r\n\r\n"
    before = predictor.statistics.rows
    with server.lock:
        with socket.create_connection(("127.0.0.1", server.server_port)) as client:
            client.sendall(head.encode() + body)
    assert ask(url, user(text("x")))[0] == 200
    assert predictor.statistics.rows == before + 1


def test_64_requests_at_once_are_all_answered(url: str) -> None:
    with ThreadPoolExecutor(64) as pool:
        states = list(pool.map(lambda _: ask(url, user(text("x")) | {"max_tokens": 1})[0], range(64)))
    assert states == [200] * 64


# -- connections ---------------------------------------------------------------------------------------------------


def talk(server: ChatServer, sent: bytes) -> bytes:
    """All that comes back on a connection until the server closes it."""
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=60) as client:
        client.sendall(sent)
        return b"".join(iter(lambda: client.recv(65536), b""))


POST = b"POST /v1/chat/completions HTTP/1.1\r\n"


def test_the_key_is_looked_at_before_the_body_is_read(server: ChatServer) -> None:
    answer = talk(server, POST + b"Authorization: Bearer wrong\r\nContent-Length: 1000000\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 401") and b"invalid_api_key" in answer


def test_a_slow_client_is_let_go(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mg_llava.inference.server.PATIENCE", 0.1)
    answer = talk(server, POST + b"Authorization: Bearer secret\r\nContent-Length: 10\r\n\r\n{}")
    assert answer.startswith(b"HTTP/1.1 408")


def test_the_body_of_a_get_is_not_the_next_request(server: ChatServer) -> None:
    second = b"GET /v1/models HTTP/1.1\r\n\r\n"
    answer = talk(server, b"GET /health HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(second), second))
    assert answer.count(b"HTTP/1.1") == 1


def test_connections_are_kept_for_whole_requests(server: ChatServer) -> None:
    one = b"GET /health?from=here HTTP/1.1\r\n\r\n"
    assert talk(server, one + one + b"GET / HTTP/1.0\r\n\r\n").count(b"HTTP/1.1") == 3


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"Transfer-Encoding: chunked\r\n", b"411"),
        (b"Content-Length: 12a\r\n", b"411"),
        (b"Content-Length: 99999999999999999999\r\n", b"413"),
        (b"no header at all\r\n" * 200, b"431"),
    ],
)
def test_what_is_no_request_is_refused_as_json(server: ChatServer, head: bytes, status: bytes) -> None:
    answer = talk(server, POST + b"Authorization: Bearer secret\r\n" + head + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"


def test_bad_boxes_are_refused_and_the_server_lives_on(url: str, picture: Image.Image) -> None:
    status, answer = ask(url, user(image(picture, boxes=[[1, 2, 3]]), text("x")))
    assert status == 400 and "boxes" in answer["error"]["message"]
    assert ask(url, None, path="/v1/models")[1]["data"][0]["id"] == "toy"
    assert ask(url, None, path="/health") == (200, {"status": "ok"})


def test_keys_and_unknown_places(url: str) -> None:
    assert ask(url, user(text("x")), key="wrong")[0] == 401
    assert ask(url, None, key="", path="/v1/models")[0] == 401
    assert ask(url, user(text("x")), path="/v1/embeddings")[0] == 404
    assert ask(url, None, path="/")[0] == 404
