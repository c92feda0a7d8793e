"""Odd requests: refused in OpenAI's form before anything is read that need not be, and a server that lives on."""

import asyncio
import base64
import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from mg_llava.inference import Predictor
from mg_llava.inference.engine import Closed, Engine
from mg_llava.inference.frontend import FrontEnd
from mg_llava.inference.serving import pictures
from mg_llava.inference.serving.app import Settings
from mg_llava.inference.serving.errors import RefusedRequest, RequestLimits
from mg_llava.inference.serving.server import ChatServer
from tests.inference.serving_toys import (
    a_picture,
    client_of,
    data_url,
    image,
    make_predictor,
    post,
    running,
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
    with serving(predictor) as server:
        yield server


def asked(*parts: Any, **more: Any) -> dict:
    return {"messages": user(*parts), **more}


def picture_at(url: str, **more: Any) -> dict:
    return asked({"type": "image_url", "image_url": {"url": url, **more}}, text("x"))


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        (b"{", "not JSON", None),
        (b"", "not JSON", None),
        ([], "messages", None),
        ({}, "messages is missing", "messages"),
        ({"messages": []}, "at least 1 item", "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 'role is "tool", must be', "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "content must be a text or a list", "messages[0].content"),
        (asked({"type": "audio"}), "'audio'", "messages[0].content[0]"),
        (asked("x") | {"messages": [{"role": "user", "content": "x", "y": 1}]}, "unknown field", "messages[0].y"),
        (asked(text("")), "empty", "messages"),
        (asked("x", n=2), "n is 2, must be 1", "n"),
        (asked("x", max_tokens=0.5), "max_tokens is 0.5", "max_tokens"),
        (asked("x", max_tokens=True), "max_tokens is true", "max_tokens"),
        (asked("x", max_tokens=0), "max_tokens is 0", "max_tokens"),
        (asked("x", temperature=1.0, top_p=2), "top_p is 2", "top_p"),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": Infinity}', "Infinity", None),
        (asked("x", response_format={"type": "json_object"}), "must be 'text'", "response_format.type"),
        (asked("x", tools=[{"type": "function"}], tool_choice="required"), "tools is", "tools"),
        (asked("x", tool_choice="required"), "tool_choice", "tool_choice"),
        (asked("x", functions=[{"name": "f"}]), "functions is", "functions"),
        (asked("x", modalities=["audio"]), "must be 'text'", "modalities[0]"),
        (asked("x", best_of=2), "unknown field 'best_of'", "best_of"),
        (asked("x", stream="yes"), "must be a valid boolean", "stream"),
        (asked("x", top_logprobs=2), "top_logprobs needs logprobs", "top_logprobs"),
        (asked("x", logprobs=True, top_logprobs=21), "top_logprobs is 21", "top_logprobs"),
        (asked("x", stream_options={"include_usage": True}), "stream_options needs stream", "stream_options"),
        (asked("x", frequency_penalty=2.0), "frequency_penalty", "frequency_penalty"),
        (asked("x", logit_bias={"5": 100}), "logit_bias", "logit_bias"),
        (asked("x", seed="7"), "seed", "seed"),
        (asked("x", seed=1 << 63), "seed", "seed"),
        (asked("x", stop=["a", ""]), "none of them empty", "stop"),
        (asked("x", stop=["a"] * 5), "list of up to 4", "stop"),
        (asked("x", temprature=1.0), "unknown field 'temprature'; known: messages", "temprature"),
        (b'{"messages": [{"role": "user", "content": "\\ud83d"}]}', "surrogate", "messages"),
        (b"[" * 100_000, "not JSON", None),
        (b"[" + b"[],[]," * 400_000, "too many values", None),
        (b'{"messages": ' + b"1" * 5000 + b"}", "not JSON", None),
        (picture_at("http://elsewhere/x.png"), "nothing is fetched", "messages[0].content[0].image_url"),
        (picture_at("file:///etc/passwd"), "nothing is fetched", "messages[0].content[0].image_url"),
        (picture_at("data:image/png;base64,AAAA"), "cannot be decoded", "messages[0].content[0].image_url"),
        (picture_at("data:image/png;base64,%%"), "cannot be decoded", "messages[0].content[0].image_url"),
        (
            picture_at(data_url(a_picture()), boxes=[[1, 2, 3]]),
            "at least 4",
            "messages[0].content[0].image_url.boxes[0]",
        ),
        (picture_at(data_url(a_picture()), boxes=[[5, 5, 1, 1]]), "x1 <= x2", "messages"),
        (picture_at(data_url(a_picture()), boxes=[], labels=["a"]), "1 labels", "messages"),
    ],
)
def test_bad_requests_say_what_is_wrong(server: ChatServer, body: Any, message: str, param: str | None) -> None:
    status, answer = post(server, body)
    error = answer["error"]
    assert (status, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert message in error["message"] and error["code"]


def test_only_users_show_pictures(server: ChatServer) -> None:
    for role in ("system", "assistant"):
        messages = [{"role": role, "content": [image(a_picture())]}, *user("x")]
        status, answer = post(server, {"messages": messages})
        assert status == 400 and f"role '{role}'" in answer["error"]["message"]
    turns = [*user("x"), {"role": "assistant", "content": None, "refusal": "no"}, *user("y")]
    assert post(server, {"messages": turns})[0] == 200


def test_sizes_are_counted_before_anything_is_read(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FrontEnd, "encode", lambda *_: pytest.fail("tokenized"))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("decoded"))
    many = [[0, 0, 1, 1]] * 1001
    for body, message in [
        (asked("a" * 500_000), "500000 characters of text"),
        (asked(*[image(a_picture())] * 17), "17 pictures; at most 16"),
        (asked(image(Image.new("1", (10_000, 7_000))), text("x")), "70000000 pixels"),
        (asked(image(a_picture(), boxes=many), text("x")), "1001 boxes; at most 1000"),
        (asked(image(a_picture(), boxes=[[0, 0, 1, 1]], labels=["a" * 500_000]), text("x")), "characters of text"),
    ]:
        status, answer = post(server, body)
        assert status == 400 and message in answer["error"]["message"]


def test_a_text_beyond_the_context_is_refused_alike_whole_and_streamed(server: ChatServer) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as refused:
            client_of(server).chat.completions.create(model="toy", messages=user("z" * 1000), stream=stream)
        assert refused.value.code == "context_length_exceeded" and "context is 512" in refused.value.message


def test_the_official_client_names_each_refusal(server: ChatServer) -> None:
    with pytest.raises(openai.AuthenticationError) as refused:
        client_of(server, api_key="wrong").models.list()
    assert refused.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError):
        client_of(server).models.retrieve("another")
    with pytest.raises(openai.NotFoundError, match="is unknown; there are /v1/models"):
        client_of(server).embeddings.create(model="toy", input="x")
    with pytest.raises(openai.APIStatusError) as too_large:
        client_of(server).chat.completions.create(model="toy", messages=user("a" * (65 << 20)))
    assert too_large.value.status_code == 413 and "at most 67108864 bytes" in too_large.value.message


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/chat/completions?api-version=1", 200),
        ("POST", "/v1/chat/completions#x", 200),
        ("POST", "/v1/chat/complet%69ons", 200),
        ("POST", "/v1//chat/completions", 404),
        ("POST", "/V1/chat/completions", 404),
        ("POST", "/v1/chat/completions/more", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/chat/completions", 405),
        ("PUT", "/v1/models", 405),
    ],
)
def test_paths_and_methods_are_parsed(server: ChatServer, method: str, path: str, status: int) -> None:
    headers = {"Authorization": "Bearer secret"}
    answer = httpx.request(method, url_of(server) + path, json=asked("x", max_tokens=1), headers=headers, timeout=60)
    assert answer.status_code == status
    if status != 200:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_web_pages_may_not_ask_unless_they_are_allowed(server: ChatServer, predictor: Predictor) -> None:
    assert post(server, asked("x"), Origin="http://evil.example")[0] == 403
    with serving(predictor, origins=("http://good.example",)) as open_one:
        assert post(open_one, asked("x"), Origin="http://evil.example")[0] == 403
        assert post(open_one, asked("x"), Origin="http://good.example")[0] == 200
        preflight = {"Origin": "http://good.example", "Access-Control-Request-Method": "POST"}
        answer = httpx.options(url_of(open_one) + "/v1/chat/completions", headers=preflight, timeout=60)
        assert answer.headers["access-control-allow-origin"] == "http://good.example"


# -- connections ----------------------------------------------------------------------------------------------------


def talk(server: ChatServer, sent: bytes) -> bytes:
    """The answer that comes on a connection: up to the end of its JSON, or until the server closes it."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
        client.sendall(sent)
        return read(client)


def read(client: socket.socket) -> bytes:
    answer = b""
    while not answer.endswith(b"}}") and (part := client.recv(65536)):
        answer += part
    return answer


def first_answer(predictor: Predictor, patience: float, sent: bytes) -> bytes:
    """What is answered to words that were there before the server was, so that they are in time however slow it is."""
    server = ChatServer(
        predictor, port=0, settings=Settings(api_key="secret", limits=RequestLimits(patience=patience))
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
        client.sendall(sent)
        with running(server):
            return read(client)


POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: here\r\n"


def test_the_key_is_looked_at_before_the_body_is_read(server: ChatServer) -> None:
    answer = talk(server, POST + b"Authorization: Bearer wrong\r\nContent-Length: 1000000\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 401") and b"invalid_api_key" in answer


def test_a_slow_client_is_let_go(predictor: Predictor) -> None:
    answer = first_answer(predictor, 0.1, POST + b"Authorization: Bearer secret\r\nContent-Length: 10\r\n\r\n{}")
    assert answer.startswith(b"HTTP/1.1 408") and b"request_timeout" in answer


def test_a_head_that_does_not_come_whole_ends_the_connection(predictor: Predictor) -> None:
    with serving(predictor, limits=RequestLimits(patience=0.5)) as server:
        assert talk(server, b"") == b"" == talk(server, POST + b"Authorization: Bear")
    # one that was used ends as well, when no other request comes on it
    assert b"200 OK" in first_answer(predictor, 0.5, b"GET /health HTTP/1.1\r\nHost: here\r\n\r\n")


def test_a_connection_in_use_outlives_its_patience(predictor: Predictor) -> None:
    """Each request ends the wait for it, and each answer begins another one."""
    with serving(predictor, limits=RequestLimits(patience=600.0)) as server:
        used = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        used.auto_open = 0  # type: ignore[assignment]  # a closed connection is an error, not a new one
        used.connect()
        waits: list[asyncio.TimerHandle] = []
        for _ in range(3):
            used.request("GET", "/health")
            assert used.getresponse().read()
            (ours,) = server._server.server_state.connections
            until(lambda ours=ours: ours._waiting not in (None, *waits))
            waits.append(ours._waiting)  # type: ignore[union-attr]
        assert [wait.cancelled() for wait in waits] == [True, True, False]
        assert waits[0].when() < waits[1].when() < waits[2].when()
        used.close()


def test_no_part_of_an_answer_waits_for_an_acknowledgement(server: ChatServer) -> None:
    """Else each answer on a connection that stays open, and each token of a stream, is 40 ms late."""
    with httpx.Client(base_url=url_of(server), timeout=60) as client:
        answer = client.get("/health")
        assert answer.status_code == 200
        own = answer.extensions["network_stream"].get_extra_info("client_addr")
        open_ones = [one.transport for one in server._server.server_state.connections]
        (ours,) = (one for one in open_ones if one.get_extra_info("peername") == own)
        assert ours.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("length", [b"99999999999999999999", b"67108865"])
def test_a_large_body_is_refused_before_it_comes(server: ChatServer, length: bytes) -> None:
    answer = talk(server, POST + b"Authorization: Bearer secret\r\nContent-Length: " + length + b"\r\n\r\n")
    assert answer.startswith((b"HTTP/1.1 413", b"HTTP/1.1 400"))


def test_a_body_without_a_length_is_counted(predictor: Predictor) -> None:
    with serving(predictor, limits=RequestLimits(body=1000)) as server:
        parts = iter([json.dumps(asked("x")).encode()[:-1], b" " * 2000, b"}"])
        headers = {"Authorization": "Bearer secret"}
        answer = httpx.post(url_of(server) + "/v1/chat/completions", content=parts, headers=headers, timeout=60)
        assert answer.status_code == 413
        assert (server.app.load.requests, server.app.load.bytes) == (0, 0)
    with serving(predictor, limits=RequestLimits(memory=10)) as server:
        status, answer = post(server, asked("x"))
        assert (status, answer["error"]["code"]) == (503, "overloaded")


def test_there_are_only_so_many_places(predictor: Predictor) -> None:
    with serving(predictor, limits=RequestLimits(requests=0)) as server:
        with pytest.raises(openai.RateLimitError) as refused:
            client_of(server).chat.completions.create(model="toy", messages=user("x"))
        assert refused.value.code == "rate_limit_exceeded"


def test_an_answer_that_takes_too_long_is_given_up(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "submit", lambda self, job: None)  # so that none comes, however fast the machine is
    with serving(predictor, limits=RequestLimits(seconds=0.2)) as server:
        for stream in (False, True):
            status, answer = post(server, asked("x", stream=stream))
            assert (status, answer["error"]["code"]) == (504, "timeout")


def test_an_engine_that_has_ended_refuses(predictor: Predictor) -> None:
    from mg_llava.inference import Request

    told: list[Any] = []
    with Engine(predictor) as engine:
        job = engine.prepare(Request("x"), {}, tell=told.append)
    with pytest.raises(Closed):
        engine.submit(job)


def test_what_fails_fails_alone(server: ChatServer, predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that fails as a whole is answered one by one; one that fails alone says so."""
    from mg_llava.inference.answering import Answering

    run = Answering.run

    def broken(self: Answering, replies: Any, *given: Any) -> Any:
        if any("poison" in str(reply.one.prepared.request.question) for reply in replies):
            raise RuntimeError("out of memory")
        yield from run(self, replies, *given)

    monkeypatch.setattr(Answering, "run", broken)
    engine = Engine(predictor, batch_size=4)
    told: dict[str, list[Any]] = {}
    from mg_llava.inference import Request

    jobs = []
    for question in ("a?", "poison", "b?"):
        jobs.append(engine.prepare(Request(question), {}, tell=told.setdefault(question, []).append))
    for _ in engine._lane(jobs):
        pass
    assert isinstance(told["poison"][-1].error, RuntimeError) and len(told["poison"]) == 1
    assert [told[name][-1].answer.text for name in ("a?", "b?")] == [
        predictor.predict(None, name).text for name in ("a?", "b?")
    ]
    status, answer = post(server, asked("poison"))
    assert (status, answer["error"]["type"]) == (500, "server_error") and "memory" not in answer["error"]["message"]


# -- fetching -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    "127.0.0.1 10.1.2.3 192.168.0.9 169.254.169.254 0.0.0.0 100.64.0.1 224.0.0.1 ::1 fe80::1 fd00::1 "
    "::ffff:127.0.0.1".split(),
)
def test_only_public_addresses_are_fetched_from(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    public = (socket.AF_INET, 1, 6, "", ("93.184.216.34", 443))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [public, (family, 1, 6, "", (address, 443))])
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("connected"))
    with pytest.raises(RefusedRequest, match="which is not public"):
        pictures.open_pictures([("p", "https://pictures.example/a.png")], RequestLimits(), {"pictures.example"})


@pytest.mark.parametrize(
    "url",
    [
        "https://other.example/a.png",
        "ftp://pictures.example/a",
        "https://pictures.example:8080/a",
        "https://user@pictures.example/a",
        "https://pictures.example@evil.example/a",
        "//pictures.example/a",
        "https://pictures.example/a\r\nX: y",
        "https://[pictures.example/a",
        "",
    ],
)
def test_only_urls_of_allowed_hosts_are_fetched(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("looked up"))
    with pytest.raises(RefusedRequest, match=r"http or https URLs of pictures\.example"):
        pictures.open_pictures([("p", url)], RequestLimits(), {"pictures.example"})


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\nContent-Length: 0\r\n\r\n", "status 302"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"a" * 3000, "more than 2000 bytes"),
        (b"HTTP/1.1 200 OK\r\n\r\nno picture", "cannot be decoded"),
        (b"nonsense\r\n\r\n", "cannot be fetched"),
        (None, ""),
    ],
)
def test_what_a_host_answers(monkeypatch: pytest.MonkeyPatch, answer: bytes | None, message: str) -> None:
    data = base64.b64decode(data_url(Image.new("RGB", (8, 8), "red")).partition(",")[2])
    ours, theirs = socket.socketpair()
    theirs.sendall(
        answer if answer is not None else b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data) + data
    )
    theirs.shutdown(socket.SHUT_WR)
    connect = socket.create_connection
    monkeypatch.setattr(pictures, "public_address", lambda host, port: ("93.184.216.34", port))
    monkeypatch.setattr(
        socket, "create_connection", lambda to, **more: ours if to[0] == "93.184.216.34" else connect(to, **more)
    )
    given = [("p", "http://pictures.example/a.png?x=1")]
    if message:
        with pytest.raises(RefusedRequest, match=message):
            pictures.open_pictures(given, RequestLimits(body=2000), {"pictures.example"})
    else:
        (found,) = pictures.open_pictures(given, RequestLimits(body=2000), {"pictures.example"})
        assert found.size == (8, 8)
        assert theirs.recv(9999).startswith(b"GET /a.png?x=1 HTTP/1.1\r\nHost: pictures.example\r\n")


def resident() -> int:
    """Kilobytes of memory that this process holds now."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))


# -- anything at all ------------------------------------------------------------------------------------------------

ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from("temperature top_p seed stop max_tokens logprobs n stream messages".split())
PICTURES = st.fixed_dictionaries(
    {"url": st.just(data_url(a_picture())) | st.text(max_size=9)},
    optional={"boxes": ODD, "labels": ODD, "scores": ODD},
)
PARTS = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url", "x"])}, optional={"text": ODD, "image_url": ODD | PICTURES}
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "tool"])},
        optional={"content": ODD | st.lists(PARTS, max_size=3)},
    ),
    max_size=3,
)
BODIES = st.one_of(
    st.binary(max_size=60),
    ODD.map(lambda value: json.dumps(value).encode()),
    st.tuples(MESSAGES, st.dictionaries(NAMES, ODD, max_size=3)).map(
        lambda both: json.dumps({"messages": both[0], "max_tokens": 2, **both[1]}).encode()
    ),
)


@pytest.mark.slow
def test_odd_requests_are_refused_or_answered_and_leave_nothing(server: ChatServer) -> None:
    """A thousand of them, after a hundred that let the process grow to what it needs."""
    good = asked(image(a_picture(), boxes=[[4.0, 6.0, 40.0, 30.0]]), text("what?"))
    wanted = post(server, good)[1]["choices"]
    headers = {"Authorization": "Bearer secret"}
    with httpx.Client(base_url=url_of(server), headers=headers, timeout=60) as client:

        def send(count: int) -> None:
            @settings(max_examples=count, database=None, suppress_health_check=list(HealthCheck))
            @given(BODIES)
            def odd(body: bytes) -> None:
                answer = client.post("/v1/chat/completions", content=body)
                assert answer.status_code in (200, 400)
                if answer.status_code == 400:
                    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}

            odd()

        send(100)
        before = resident()
        send(1000)
        assert resident() < 1.1 * before
    assert post(server, good)[1]["choices"] == wanted
    assert (server.app.load.requests, server.app.load.bytes) == (0, 0)
    assert (server.app.engine.waiting, server.app.engine.running) == (0, 0)
