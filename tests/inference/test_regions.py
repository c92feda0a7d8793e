"""Object images and named boxes in questions: the same tensors as in training, whatever the way they come."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from mg_llava.data.collate import collate
from mg_llava.data.inputs import make_turns
from mg_llava.data.pictures.files import PictureError
from mg_llava.data.pictures.processor import PictureProcessor
from mg_llava.data.records.turns import Turn
from mg_llava.inference import Predictor, Request
from mg_llava.inference.batching import MOST_OBJECTS, PictureGroup, PreparedRequest
from mg_llava.inference.conversation import Conversation
from mg_llava.inference.serving.errors import RequestLimits
from mg_llava.inference.serving.question import read_question
from mg_llava.inference.web.boards import Board, BoardBox
from mg_llava.tokens import BOX_TOKEN_INDEX, OBJECT_TOKEN_INDEX
from tests import toy
from tests.regions import BOXES, OBJECTS, TURNS, USES, train, write_pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_pictures(tmp_path_factory.mktemp("regions"))


def make_predictor(paths: dict[str, str], **regions: Any) -> Predictor:
    model = toy.build_model(paths, object_pooler={"type": "mg_llava.FramePooling", "side": 2})
    return Predictor(model, paths["llm"], "vicuna", PictureProcessor(toy.CANVAS, regions=regions), max_new_tokens=4)


def ask(pictures: list[str], **changes: Any) -> Request:
    boxes = [{"boxes": own, "labels": ["x", "y"]} for own in BOXES]
    return Request(**{"question": TURNS[:-1], "picture": pictures, "boxes": boxes, "objects": OBJECTS, **changes})


@pytest.mark.parametrize("regions", USES, ids=str)
def test_a_question_is_what_was_trained(toy_paths, pictures, regions) -> None:
    predictor, trained = make_predictor(toy_paths, **regions), train(toy_paths, pictures, **regions)
    prepared = PreparedRequest(predictor.front_end, 0, ask(pictures))
    decoded = PictureGroup([prepared]).load()
    assert prepared.ids == trained["input_ids"][: len(prepared.ids)]
    assert [label for label in trained["labels"][len(prepared.ids) :] if label >= 0]
    seen = [decoded.pictures[place] for place in decoded.chosen[0]]
    assert len(seen) == len(trained["images"]) == 5 + 2 * (regions.get("attach") == "coordinates")
    for one, image, boxes in zip(seen, trained["images"], trained["boxes"], strict=True):
        assert torch.equal(one.pixels, image) and torch.equal(one.boxes, boxes)
    assert prepared.ids.count(BOX_TOKEN_INDEX) == (4 if "names" in regions else 0)
    (encoded,) = predictor.answering({}, 1).encoded([(PictureGroup([prepared]), decoded)], [])
    data = collate([{**trained, "input_ids": prepared.ids, "labels": None}])["data"]
    expected = predictor.model.see(data)
    for own, other in zip(encoded.seeing, expected, strict=True):
        assert all(torch.allclose(a.tokens, b.tokens, atol=1e-5) for a, b in zip(own, other, strict=True))


@pytest.mark.parametrize("regions", USES, ids=str)
def test_answers_do_not_depend_on_their_batch(toy_paths, pictures, regions) -> None:
    predictor = make_predictor(toy_paths, **regions)
    requests = [ask(pictures), ask(pictures, question=TURNS[:1]), Request("what is there?", pictures[0])]
    alone = [predictor.predict_many([request])[0] for request in requests]
    together = predictor.predict_many(requests)
    assert [one.token_ids for one in alone] == [one.token_ids for one in together]
    assert [len(one.pictures) for one in together] == [2, 2, 1]
    shown = 3 + 2 * (regions.get("attach") == "coordinates")
    assert len(together[0].objects) == shown and together[0].to_dict()["objects"][0]["box"] == (20, 20, 44, 44)


@pytest.mark.parametrize("regions", USES, ids=str)
def test_a_server_reads_the_same(toy_paths, pictures, regions) -> None:
    predictor = make_predictor(toy_paths, **regions)
    regions_as_boxes = [[one["box"] for one in OBJECTS if one.get("picture", 0) == n] for n in range(2)]
    urls = [f"data:image/png;base64,{base64.b64encode(Path(path).read_bytes()).decode()}" for path in pictures]
    parts: list[dict[str, Any]] = []
    for url, boxes in zip(urls, regions_as_boxes, strict=True):
        parts.append({"type": "image_url", "image_url": {"url": url, "boxes": boxes}})
    parts.append({"type": "text", "text": "<object:1> and <object:2> at <box:0>, [0.1, 0.2, 0.6, 0.7]?"})
    body = json.dumps({"messages": [{"role": "user", "content": parts}]}).encode()
    served = PreparedRequest(predictor.front_end, 0, read_question(body, RequestLimits()).request(RequestLimits(), ()))
    question = "<image>\n<image>\n<object:1> and <object:2> at <box:0>, [0.1, 0.2, 0.6, 0.7]?"
    asked = PreparedRequest(predictor.front_end, 0, Request(question, pictures, regions_as_boxes))
    decoded = [PictureGroup([one]).load() for one in (served, asked)]
    assert served.ids == asked.ids and served.regions == asked.regions and served.regions
    for one, other in zip(*(own.pictures for own in decoded), strict=True):
        assert torch.equal(one.pixels, other.pixels) and torch.equal(one.boxes, other.boxes)


def test_boxes_that_are_typed_bring_their_object_images(toy_paths, pictures) -> None:
    predictor = make_predictor(toy_paths, attach="coordinates", text={"frame": "original"})
    box = [6.4, 4.8, 32, 38.4]
    typed = predictor.predict(pictures[0], "What is at [0.1, 0.1, 0.5, 0.8]?")
    shown = predictor.predict(pictures[0], "What is at [0.1, 0.1, 0.5, 0.8] <object:0>?", objects=[box])
    assert typed.objects[0].box == pytest.approx(box) and typed.token_ids == shown.token_ids
    assert typed.prompt_tokens == shown.prompt_tokens
    plain = make_predictor(toy_paths).predict(pictures[0], "What is at [0.1, 0.1, 0.5, 0.8]?")
    extra = len(predictor.front_end.tokenizer.encode(" ", add_special_tokens=False))
    assert typed.prompt_tokens - plain.prompt_tokens <= extra + predictor.model.token_count.per_crop


def test_boxes_of_the_picture_are_regions(toy_paths, pictures) -> None:
    predictor = make_predictor(toy_paths)
    request = Request("What is <object:1>?", pictures[0], BOXES[0])
    prepared = PreparedRequest(predictor.front_end, 0, request)
    PictureGroup([prepared]).load()
    assert prepared.regions[0].box == tuple(BOXES[0][1]) and OBJECT_TOKEN_INDEX in prepared.ids


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": "<image> <image> <object:3>"}, "<object:3> stands in the text"),
        ({"objects": [{"box": [3, 3, 1, 1]}]}, "object 0 has box"),
        ({"objects": [{"box": [0, 0, 1, 1], "picture": 2}]}, "there are 2"),
        ({"question": "<image> <image> <object:9>", "objects": ()}, "there are 4 regions"),
        ({"question": "<video> <object:0>"}, "regions of a video; regions are of pictures alone"),
        ({"question": "<video> or <video>?"}, "2 <video> in the questions; one stands for all frames"),
        ({"objects": [{"box": [200, 3, 900, 40]}] * 3}, r"is in pixels, the picture is 64 x 48.*thousandths"),
        ({"objects": [{"box": [-9, 3, -2, 40], "picture": 1}] * 3}, "the picture is 48 x 64; it is of another"),
        ({"question": "<image> <image>" + "<object:0>" * (MOST_OBJECTS + 1)}, f"at most {MOST_OBJECTS}"),
    ],
)
def test_wrong_regions_are_named(toy_paths, pictures, changes, message) -> None:
    predictor = make_predictor(toy_paths)
    with pytest.raises((ValueError, PictureError), match=message):
        predictor.predict_many([ask(pictures, id="q", **changes)])


def test_placeholders_in_a_system_text_stand_for_nothing(toy_paths, pictures) -> None:
    predictor = make_predictor(toy_paths)
    body = {"messages": [{"role": "system", "content": "<object:0>"}, {"role": "user", "content": "a"}]}
    served = read_question(json.dumps(body).encode(), RequestLimits()).request(RequestLimits(), ())
    for request in (served, Request("a", pictures[0], system="<image> and <object:0>")):
        answer = predictor.predict_many([request])[0]
        assert len(answer.pictures) == (request is not served)
        ids = PreparedRequest(predictor.front_end, 0, request).ids
        assert [token for token in ids if token < 0] == [-200] * len(answer.pictures)


ANSWERS = ["<object:0>", "<box:0> and <box:9>", "<image> <image>", "<video> of <object:7>"]


def shown(ids: list[int]) -> list[int]:
    return [token for token in ids if token < 0]


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("question", ["what is there?", "what is <object:1> at <box:0>?"])
def test_placeholders_in_what_the_model_said_are_words(toy_paths, pictures, answer, question) -> None:
    predictor = make_predictor(toy_paths, attach="coordinates")
    asked: list[Request] = []
    monitored = predictor.answer
    predictor.answer = lambda request, **options: asked.append(request) or monitored(request, **options)  # type: ignore[method-assign]
    talk = Conversation(predictor)
    talk.show(pictures[0], BOXES[0])
    talk.turns, talk._placed = [("human", "<image>\nwhat?"), ("gpt", answer)], 1
    assert "".join(talk.ask(question)).strip() == talk.answer.text and len(talk.turns) == 4  # type: ignore[union-attr]
    board = Board(Image.open(pictures[0]).convert("RGB"), [BoardBox(tuple(box)) for box in BOXES[0]])  # type: ignore[arg-type]
    board.turns["with"] = [("human", "what?"), ("gpt", answer)]
    url = f"data:image/png;base64,{base64.b64encode(Path(pictures[0]).read_bytes()).decode()}"
    picture = {"type": "image_url", "image_url": {"url": url, "boxes": BOXES[0]}}
    messages = [
        {"role": "user", "content": [picture, {"type": "text", "text": "what?"}]},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": question},
    ]
    served = read_question(json.dumps({"messages": messages}).encode(), RequestLimits()).request(RequestLimits(), ())
    wanted = None
    for request in (asked[0], board.request(question, "with"), served):
        prepared = PreparedRequest(predictor.front_end, 0, request)
        PictureGroup([prepared]).load()
        wanted = wanted or prepared.ids
        assert prepared.ids == wanted and len(shown(prepared.ids)) == 1 + 2 * ("<object:1>" in question)
    said = predictor.front_end.tokenizer.encode(answer, add_special_tokens=False)
    assert str(said)[1:-1] in str(wanted)
    with pytest.raises(ValueError, match="<object:9> stands in the text, but there are 2 regions"):
        list(talk.ask("and <object:9>?"))


@pytest.mark.parametrize("answer", ANSWERS)
def test_placeholders_in_what_was_said_of_a_video_are_words(toy_paths, pictures, answer) -> None:
    predictor = make_predictor(toy_paths)
    frames = [pictures[0]] * 3
    for first in ("<video>\nwhat?", "what?"):
        turns = [Turn("human", first), Turn("gpt", answer, is_said=True), Turn("human", "and now?")]
        plain = [turns[0], Turn("gpt", "x"), turns[2]]
        made, other = (make_turns(given, 3, "a video", is_video=True) for given in (turns, plain))
        assert (made[0], made[2]) == (other[0], other[2]) and made[1].text == answer
    asked = [("human", "<video>\nwhat?"), ("gpt", answer)]
    assert predictor.chat(frames, "and now?", history=asked).prompt_tokens > 0


def test_names_follow_the_boxes_as_they_were_given(toy_paths, pictures) -> None:
    tokenizer = AutoTokenizer.from_pretrained(toy_paths["llm"])
    predictor = make_predictor(toy_paths, names="obj{}")
    boxes = {
        "boxes": [[0, 0, 9, 9], [30, 30, 50, 45], [10, 2, 30, 30]],
        "scores": [0.1, 0.5, 0.9],
        "labels": list("abc"),
    }
    prepared = PreparedRequest(predictor.front_end, 0, Request("which is obj2?", pictures[0], boxes))
    decoded = PictureGroup([prepared]).load()
    order = [boxes["labels"].index(label) for label in decoded.pictures[0].labels]
    names = [tokenizer.encode(f"obj{number + 1}", add_special_tokens=False) for number in order]
    expected = [token for name in names for token in [*name, BOX_TOKEN_INDEX]]
    start = prepared.ids.index(-200) + 1
    assert prepared.ids[start : start + len(expected)] == expected and sorted(order) == [0, 1, 2]
