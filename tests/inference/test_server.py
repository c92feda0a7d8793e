"""The chat-completions server over real HTTP: the predictor's answers, and clear refusals."""

import base64
import io
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from mg_llava.data.records.schema import Turn
from mg_llava.inference import Predictor
from mg_llava.inference.server import make_server
from tests import toy

BOXES = [[4.0, 6.0, 40.0, 30.0]]


@pytest.fixture(scope="module")
def predictor(toy_paths: dict[str, str]) -> Predictor:
    processor = {"type": "mg_llava.PictureProcessor", "image_size": toy.CANVAS}
    return Predictor(toy.build_model(toy_paths), toy_paths["llm"], "vicuna", processor, max_new_tokens=6)


@pytest.fixture(scope="module")
def url(predictor: Predictor) -> Iterator[str]:
    server = make_server(predictor, port=0, model="toy", api_key="secret")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


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
        (user(text("x")) | {"stream": True}, "streaming"),
        (user(text("x")) | {"n": 2}, "n=1"),
        (user(text("x")) | {"max_tokens": 0.5}, "max_tokens"),
        (user({"type": "image_url", "image_url": {"url": "http://elsewhere/x.png"}}), "nothing is fetched"),
        (user({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}), "cannot be decoded"),
        (user({"type": "image_url", "image_url": {"url": "data:image/png;base64,%%"}}), "cannot be decoded"),
    ],
)
def test_bad_requests_say_what_is_wrong(url: str, body: object, message: str) -> None:
    status, answer = ask(url, body)
    assert status == 400 and message in answer["error"]["message"]


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
