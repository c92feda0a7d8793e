"""The page's server without a browser: boards, boxes, questions, what is behind an answer, and what it refuses."""

import io
import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from mg_llava.data.pictures.processor import PictureProcessor
from mg_llava.inference import Predictor, Request
from mg_llava.inference.attribution import attribute
from mg_llava.inference.serving.errors import RefusedRequest
from mg_llava.inference.web import app
from mg_llava.inference.web.boards import Board, BoardBox, Boards
from mg_llava.inference.web.server import PageServer
from mg_llava.inference.web.views import contributions, model_input
from tests import toy
from tests.inference.serving_toys import a_picture
from tests.inference.web.page_toys import FOUND, answers_of, ask, finding_predictor, page_of, png_of, visitor_of


@pytest.fixture(scope="module")
def predictor(toy_paths: dict[str, str]) -> Predictor:
    return finding_predictor(toy_paths)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("examples")
    for seed in range(2):
        a_picture(seed).save(folder / f"{seed}.png")
    (folder / "secret.txt").write_text("secret")
    return sorted(folder.glob("*.png"))


@pytest.fixture(scope="module")
def page(predictor: Predictor, examples: list[Path]) -> Iterator[PageServer]:
    with page_of(predictor, examples, body=1 << 20, pixels=1_000_000, boxes=20) as server:
        yield server


@pytest.fixture(scope="module")
def visitor(page: PageServer) -> Iterator[httpx.Client]:
    with visitor_of(page) as client:
        yield client


def opened(visitor: httpx.Client, seed: int = 0) -> dict:
    return visitor.post("/boards", content=png_of(a_picture(seed))).json()


def message_of(answer: httpx.Response, status: int = 400) -> str:
    assert answer.status_code == status, answer.text
    assert "Traceback" not in answer.text
    return answer.json()["error"]["message"]


# -- boards -----------------------------------------------------------------------------------------------------------


def test_a_picture_opens_with_the_boxes_that_are_found(visitor: httpx.Client) -> None:
    board = opened(visitor)
    assert (board["width"], board["height"]) == (64, 48)
    assert [one["box"] for one in board["boxes"]] == FOUND["boxes"]
    assert [(one["label"], one["score"], one["on"]) for one in board["boxes"]] == [("a", 0.9, True), ("b", 0.4, True)]
    shown = Image.open(io.BytesIO(visitor.get(f"/boards/{board['key']}/picture").content))
    np.testing.assert_array_equal(np.asarray(shown), np.asarray(a_picture()))


def test_examples_are_chosen_by_number(visitor: httpx.Client) -> None:
    about = visitor.get("/about").json()
    assert about["examples"] == ["0.png", "1.png"] and about["title"] == "<b>toy</b>" and about["finds"]
    assert Image.open(io.BytesIO(visitor.get("/examples/1").content)).size == (64, 48)
    assert visitor.post("/boards?example=1").json()["width"] == 64
    for number in ("2", "-1", "../secret.txt", "%2e%2e%2fsecret.txt", "٣", "1" * 5000):
        assert visitor.get(f"/examples/{number}").status_code in (403, 404)
        assert message_of(visitor.post("/boards", params={"example": number}), 404) == "there are 2 examples"


def test_boxes_are_clipped_put_in_order_and_checked() -> None:
    board = Board(a_picture(), [BoardBox((1, 2, 3, 4))])
    board.set_boxes([BoardBox((60, 40, -5, 4), "x", on=False), BoardBox((10, 10, 999, 30))])
    assert [one.box for one in board.boxes] == [(0, 4, 60, 40), (10, 10, 64, 30)]
    assert board.boxes[0].label == "x" and not board.boxes[0].on
    for outside in [(70, 0, 90, 10), (5, 5, 5, 20), (0, 50, 10, 60)]:
        with pytest.raises(RefusedRequest, match=r"no part of the picture \(64 x 48 pixels\)"):
            board.set_boxes([BoardBox(outside)])
    assert len(board.boxes) == 2 and board.record("without").boxes.shape == (0, 4)
    assert board.record("with").boxes.tolist() == [[10, 10, 64, 30]]


def test_old_boards_make_room_but_not_while_an_answer_is_given() -> None:
    boards = Boards(most=3, pixels=4 * 64 * 48)
    kept = [boards.add(Board(a_picture())) for _ in range(3)]
    kept[0].begin()
    assert boards[kept[1].key] is kept[1]  # used last
    new = boards.add(Board(a_picture()))
    assert len(boards) == 3 and boards[kept[0].key] and boards[new.key]
    with pytest.raises(RefusedRequest, match="choose it again"):
        boards[kept[2].key]
    with pytest.raises(RefusedRequest, match="is being given"):
        kept[0].begin()
    large = boards.add(Board(a_picture().resize((128, 48))))
    assert len(boards) == 3 and boards[large.key]
    with pytest.raises(RefusedRequest):
        boards[kept[1].key]


# -- questions --------------------------------------------------------------------------------------------------------


def test_answers_with_and_without_boxes_are_the_predictors(visitor: httpx.Client, predictor: Predictor) -> None:
    board, picture = opened(visitor), a_picture()
    found = answers_of(ask(visitor, board["key"], "what is there?"))
    wanted = {
        side: predictor.predict(picture, "what is there?", boxes).text
        for side, boxes in (("with", FOUND), ("without", []))
    }
    assert found == wanted and found["with"] != found["without"]
    turns = [("human", "what is there?"), ("gpt", found["without"]), ("human", "and now?")]
    again = answers_of(ask(visitor, board["key"], "and <image>now?", "without"))
    assert again == {"without": predictor.batch([Request(turns, picture, [])])[0].text}
    visitor.post(f"/boards/{board['key']}/reset")
    assert answers_of(ask(visitor, board["key"], "what is there?")) == wanted


def test_boxes_that_were_changed_are_those_that_the_model_gets(visitor: httpx.Client, predictor: Predictor) -> None:
    board = opened(visitor)
    drawn = {"box": [10.5, 12.25, 40.0, 30.0], "label": "<script>alert(1)</script>"}
    off = {**board["boxes"][0], "on": False}
    changed = visitor.put(f"/boards/{board['key']}/boxes", json={"boxes": [off, drawn]}).json()
    assert changed["boxes"] == [off, {**drawn, "score": 1.0, "on": True}]
    found = answers_of(ask(visitor, board["key"], "what is there?", "with"))
    given = {"boxes": [drawn["box"]], "labels": [drawn["label"]], "scores": [1.0]}
    assert found["with"] == predictor.predict(a_picture(), "what is there?", given).text
    seen = visitor.post(f"/boards/{board['key']}/input", json={"question": "x"}).json()
    assert [(one["label"], one["token"], one["reason"]) for one in seen["boxes"]] == [(drawn["label"], 0, "kept")]


def test_what_the_model_receives(visitor: httpx.Client, predictor: Predictor) -> None:
    key = opened(visitor)["key"]
    seen = visitor.post(f"/boards/{key}/input", json={"question": "what is there?"}).json()
    events = ask(visitor, key, "what is there?", "with")
    text = events[-1]["tokens"] - 6
    assert seen["tokens"] == {"text": text, "visual": 4, "boxes": 2, "crops": 0, "all": text + 6}
    assert seen["prompt"].count("<image>") == 1 and "USER: <image>\nwhat is there? ASSISTANT:" in seen["prompt"]
    assert seen["size"] == 64 and seen["canvas"].startswith("data:image/png;base64,")
    canvas = predictor.front_end.picture_processor.canvas_of((64, 48))
    places = [one["box"] for one in sorted(seen["boxes"], key=lambda one: one["token"])]
    np.testing.assert_allclose(places, canvas.to_canvas(np.array(FOUND["boxes"])), atol=1)  # whole pixels
    after = visitor.post(f"/boards/{key}/input", json={"question": "and?"}).json()
    assert after["prompt"].count("ASSISTANT:") == 2


def test_contributions_are_those_of_the_answer(visitor: httpx.Client, predictor: Predictor) -> None:
    key, picture = opened(visitor)["key"], a_picture()
    path = f"/boards/{key}/contributions"
    assert "ask a question first" in message_of(visitor.post(path, json={"side": "with"}))
    ask(visitor, key, "what is there?")
    found = visitor.post(path, json={"side": "with"}).json()
    answer = predictor.predict(picture, "what is there?", FOUND)
    wanted = attribute(predictor, Request("what is there?", picture, FOUND), answer)
    assert found["score"] == pytest.approx(wanted.score, abs=1e-4) and found["method"].startswith("Leave one out")
    assert [one["label"] for one in found["objects"]] == ["a", "b"] and found["stand_in"] is None
    np.testing.assert_allclose([one["share"] for one in found["objects"]], wanted.pictures[0].objects, atol=1e-4)
    np.testing.assert_allclose(found["regions"], wanted.pictures[0].regions, atol=1e-4)
    assert found["visual"] == 4 and found["area"] == [0, -8, 64, 56]  # the padded square around 64 x 48
    without = visitor.post(path, json={"side": "without"}).json()
    assert without["objects"] == [] and without["stand_in"] is not None


def test_named_boxes_and_object_images(toy_paths: dict[str, str]) -> None:
    processor = PictureProcessor(toy.CANVAS, regions={"names": "obj{}", "attach": "coordinates"})
    model = toy.build_model(toy_paths, object_pooler={"type": "mg_llava.FramePooling", "side": 2})
    predictor = Predictor(model, toy_paths["llm"], "vicuna", processor, max_new_tokens=4)
    board = Board(a_picture(), [BoardBox(tuple(box)) for box in FOUND["boxes"]])
    request = board.request("what is <object:1>?", "with")
    (answer,) = predictor.batch([request])
    seen = model_input(predictor, request)
    assert seen["tokens"]["crops"] == 1 and seen["tokens"]["all"] == answer.prompt_tokens
    assert re.search(r"<image>\s*obj1<box>\s*obj2<box>", seen["prompt"]) and seen["prompt"].count("<object>") == 1
    shown = contributions(attribute(predictor, request, answer), answer)
    assert len(shown["objects"]) == 2 and len(shown["crops"]) == 1 and np.shape(shown["regions"]) == (2, 2)


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_uploads_that_are_no_pictures_or_too_large(visitor: httpx.Client) -> None:
    assert "it is no picture, or none of PNG, JPEG" in message_of(visitor.post("/boards", content=b"text in a .jpg"))
    assert "it is no picture" in message_of(visitor.post("/boards", content=b""))
    large = png_of(Image.new("1", (20_000, 10_000)))
    assert len(large) < 1 << 20
    assert "200000000 pixels" in message_of(visitor.post("/boards", content=large))
    wide = png_of(Image.new("1", (2000, 600)))
    assert "at most 1000000 are allowed" in message_of(visitor.post("/boards", content=wide))
    assert "at most 1048576 bytes" in message_of(visitor.post("/boards", content=bytes(1 << 21)), 413)
    cut = png_of(a_picture())[:-900]
    assert "cannot be decoded" in message_of(visitor.post("/boards", content=cut))


@pytest.mark.parametrize(
    ("name", "body", "said"),
    [
        ("ask", "{", "is not JSON"),
        ("ask", "[]", "the body is a list, must be"),
        ("ask", '{"question": "   "}', "the question is empty"),
        ("ask", '{"question": "<image><video>"}', "the question is empty"),
        ("ask", '{"question": "a", "sides": ["other"]}', "sides[0]"),
        ("ask", '{"question": "a", "more": 1}', "unknown field more"),
        ("ask", '{"question": "\\ud800"}', "surrogate"),
        ("boxes", '{"boxes": [{"box": [1, 2, 3]}]}', "boxes[0].box"),
        ("boxes", '{"boxes": [{"box": [1, 2, 3, NaN]}]}', "is not JSON"),
        ("boxes", '{"boxes": [{"box": [1, 2, 3, 1e999]}]}', "finite"),
        ("boxes", '{"boxes": [{"box": [1, 2, 3, 4], "score": 2}]}', "score"),
        ("boxes", '{"boxes": [{"box": [1, 2, 3, 4], "label": 5}]}', "label"),
        ("contributions", '{"side": "both"}', "side"),
    ],
)
def test_wrong_requests_get_messages(visitor: httpx.Client, name: str, body: str, said: str) -> None:
    key = opened(visitor)["key"]
    method = "PUT" if name == "boxes" else "POST"
    assert said in message_of(visitor.request(method, f"/boards/{key}/{name}", content=body))
    assert answers_of(ask(visitor, key, "what?", "with"))  # the board goes on


def test_more_limits(visitor: httpx.Client) -> None:
    key = opened(visitor)["key"]
    boxes = [{"box": [1, 2, 3, 4]}] * 21
    assert "21 boxes; at most 20" in message_of(visitor.put(f"/boards/{key}/boxes", json={"boxes": boxes}))
    assert "characters of text" in message_of(visitor.post(f"/boards/{key}/ask", json={"question": "a" * 100_000}))
    assert "the LLM's context is 512" in ask(visitor, key, "a " * 600, "with")[-1]["error"]
    assert answers_of(ask(visitor, key, "what?", "with"))


def test_paths_and_other_pages_get_nothing(visitor: httpx.Client, page: PageServer) -> None:
    for path in ("/../setup.py", "/page/page.js", "/file=/etc/passwd", "/boards/../about", "//etc/passwd", "/docs"):
        url = f"http://127.0.0.1:{page.port}{path}"
        assert "root:" not in visitor.get(url).text and visitor.get(url).status_code in (404, 200, 405)
    assert "choose it again" in message_of(visitor.get("/boards/unknown/picture"), 404)
    assert "unknown" in message_of(visitor.get("/setup.py"), 404)
    assert "not at 'evil.example'" in message_of(visitor.get("/about", headers={"Host": "evil.example"}), 403)
    other = {"Origin": "http://evil.example"}
    assert "other web pages" in message_of(visitor.post("/boards", content=png_of(a_picture()), headers=other), 403)
    own = {"Origin": f"http://127.0.0.1:{page.port}"}
    assert visitor.post("/boards", content=png_of(a_picture()), headers=own).status_code == 200


def test_the_page_loads_nothing_from_elsewhere(visitor: httpx.Client) -> None:
    for path, (_, kind) in app._PAGE.items():
        answer = visitor.get(path)
        assert answer.headers["content-type"].startswith(kind) and "'unsafe" not in answer.headers.get(
            "content-security-policy"
        )
        urls = set(re.findall(r"https?://[^\s\"'`]+", answer.text))
        assert urls <= {"http://www.w3.org/2000/svg"}  # a name, not an address
        assert "innerHTML" not in answer.text and "document.write" not in answer.text


def test_an_answer_ends_when_its_reader_leaves(visitor: httpx.Client, page: PageServer) -> None:
    key = opened(visitor)["key"]
    with visitor.stream("POST", f"/boards/{key}/ask", json={"question": "what?"}) as answer:
        next(answer.iter_lines())
    engine = page.app.engine
    while engine.running or page.app.boards[key].is_busy:
        time.sleep(0.01)
    assert page.app.load.requests == 0 and page.app.load.bytes == 0
    assert answers_of(ask(visitor, key, "what?"))
