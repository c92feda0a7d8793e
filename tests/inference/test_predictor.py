"""The predictor: batched equals single, boxes reach the model, and errors say what is wrong."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from transformers import AutoTokenizer

from mg_llava.data.pictures.files import PictureError
from mg_llava.data.records.schema import BoxRecord, Turn
from mg_llava.detection.proposals import ConnectedComponentProposals, Proposals
from mg_llava.inference import Predictor, Request
from mg_llava.models.interfaces import Seeing
from tests import toy

PROCESSOR = {"type": "mg_llava.PictureProcessor", "image_size": toy.CANVAS}
BOXES = [[4.0, 6.0, 40.0, 30.0], [20.0, 10.0, 60.0, 44.0]]


@pytest.fixture(scope="module")
def predictor(toy_paths: dict[str, str]) -> Predictor:
    return Predictor(toy.build_model(toy_paths), toy_paths["llm"], "vicuna", PROCESSOR, max_new_tokens=6)


@pytest.fixture
def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def checkpoint_of(model: torch.nn.Module, path: Path) -> Path:
    torch.save({"state_dict": model.state_dict()}, path)
    return path


def test_batched_is_single(predictor: Predictor, picture: Image.Image) -> None:
    requests = [
        Request("what is there?", picture, BOXES),
        Request("a digit"),
        Request("two digits and a longer question?", [picture, picture.rotate(90)], [BOXES[:1], []]),
        Request([Turn("human", "<image>\nwhat?"), Turn("gpt", "a digit"), Turn("human", "is it?")], picture, []),
        Request("and now?", picture, BOXES[:1]),
    ]
    done: list[tuple[int, int]] = []
    many = predictor.predict_many(requests, batch_size=3, progress=lambda *state: done.append(state))
    single = [predictor.predict_many([request])[0] for request in requests]
    assert [answer.token_ids for answer in many] == [answer.token_ids for answer in single]
    assert [answer.text for answer in many] == [answer.text for answer in single]
    assert done == [(3, 5), (5, 5)]
    assert len({answer.token_ids for answer in many}) > 1
    assert predictor.predict_many([]) == []


def test_tokens_that_the_llm_lacks(predictor: Predictor, toy_paths: dict[str, str], tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(toy_paths["llm"])
    rows = predictor.model.llm.get_input_embeddings().num_embeddings
    tokenizer.add_tokens([f"new_{number}" for number in range(rows - len(tokenizer) + 1)])
    with pytest.raises(ValueError, match=rf"ids up to {rows}, the LLM {rows} word embeddings: 1 tokens have none"):
        Predictor(predictor.model, tokenizer, "vicuna", PROCESSOR)


def test_same_ids_as_model(predictor: Predictor, picture: Image.Image) -> None:
    from mg_llava.data.collate import collate
    from mg_llava.data.text.conversation import encode_prompt

    seen = predictor.front_end.picture_processor(picture)
    ids = encode_prompt([Turn("human", "<image>\nwhat?")], predictor.front_end.tokenizer, predictor.front_end.template)
    batch = collate([{"id": "x", "input_ids": ids, "images": [seen.pixels], "boxes": [seen.boxes]}])
    wanted = predictor.model.generate(batch["data"], max_new_tokens=6)[0]
    assert predictor.predict(picture, "what?").token_ids == tuple(wanted.tolist())


def test_boxes_in_original_pixels(predictor: Predictor, picture: Image.Image) -> None:
    answer = predictor.predict(
        picture, "what?", boxes={"boxes": BOXES, "labels": ["cat", "dog"], "scores": [0.5, 0.9]}
    )
    (seen,) = answer.pictures
    assert np.allclose(sorted(seen.boxes.tolist()), sorted(BOXES))
    assert set(seen.labels) == {"cat", "dog"}
    assert (seen.canvas.width, seen.canvas.height) == (64, 48)
    assert answer.to_dict()["pictures"][0]["labels"] == list(seen.labels)
    without = predictor.predict(picture, "what?", boxes=[])
    assert len(without.boxes) == 0


def test_boxes_change_the_answer(predictor: Predictor, picture: Image.Image) -> None:
    ways = [None, [], BOXES, torch.tensor(BOXES), BoxRecord(np.array(BOXES), np.ones(2), ("a", "b"))]
    ids = [predictor.predict(picture, "what?", boxes=boxes, max_new_tokens=12).token_ids for boxes in ways]
    assert ids[0] == ids[1]
    assert ids[2] == ids[3]
    assert ids[0] != ids[2]


def test_proposer(toy_paths: dict[str, str], predictor: Predictor, picture: Image.Image) -> None:
    sizes = []

    def propose(image: Image.Image) -> Proposals:
        sizes.append((image.mode, image.size))
        return Proposals(np.array(BOXES), [1.0, 0.5], ["mark", "spot"])

    with_proposer = Predictor(
        predictor.model, toy_paths["llm"], "vicuna", PROCESSOR, proposer=propose, max_new_tokens=6
    )
    proposed = with_proposer.predict(picture.convert("L"), "what?")
    assert sizes == [("RGB", (64, 48))]
    assert len(proposed.boxes) == 2
    assert len(with_proposer.predict(picture, "what?", boxes=[]).boxes) == 0
    real = Predictor(predictor.model, toy_paths["llm"], "vicuna", PROCESSOR, ConnectedComponentProposals())
    real.predict(picture, "what?")


def test_text_only(predictor: Predictor) -> None:
    answer = predictor.predict(question="what is there?")
    assert answer.pictures == ()
    assert answer.boxes.shape == (0, 4)
    assert len(answer.token_ids) <= 6


def test_low_resolution_only(toy_paths: dict[str, str], picture: Image.Image) -> None:
    model = toy.build_model(toy_paths, high_res_encoder=None, fusion=None, box_projector=None)
    processor = PROCESSOR | {"image_size": model.canvas_size}
    predictor = Predictor(model, toy_paths["llm"], "vicuna", processor, max_new_tokens=4)
    with_boxes = predictor.predict(picture, "what?", boxes=BOXES)
    assert with_boxes.token_ids == predictor.predict(picture, "what?").token_ids


def test_stop_words(predictor: Predictor, toy_paths: dict[str, str], picture: Image.Image) -> None:
    answer = predictor.predict(picture, "what?", max_new_tokens=12)
    assert answer.truncated
    tokenizer = predictor.front_end.tokenizer
    text = tokenizer.decode(answer.token_ids)
    word = next(text[i : i + 3] for i in range(2, len(text)) if len(tokenizer.encode(text[i : i + 3])) > 1)
    template = {"INSTRUCTION": "USER: {input} ASSISTANT:", "SEP": "\n", "STOP_WORDS": [word, "</s>"]}
    stopping = Predictor(predictor.model, toy_paths["llm"], template, PROCESSOR, max_new_tokens=12)
    assert stopping.front_end.stops.words == [word.strip() or word]
    assert stopping.front_end.stops.ids == [2]
    short = stopping.predict(picture, "what?")
    assert not short.truncated
    assert short.text == text[: text.find(word.strip() or word)].strip()
    assert len(short.token_ids) <= len(answer.token_ids)
    both = stopping.predict_many([Request("what?", picture), Request("is there a digit?")], batch_size=2)
    assert both[0].text == short.text
    shared = stopping.predict_many([Request(text, picture) for text in ("what?", "is there a digit?")], batch_size=2)
    assert shared[0].text == short.text and not shared[0].truncated


def test_streamed_pieces_are_the_answer(predictor: Predictor, picture: Image.Image) -> None:
    turns = [Turn("human", "<image>\nwhat?"), Turn("gpt", "a digit"), Turn("human", "is it?")]
    for request in (Request("what is there?", picture, BOXES, "q"), Request(turns, picture, []), Request("a digit")):
        wanted = predictor.predict_many([request], max_new_tokens=12)[0]
        reply = predictor.answer(request, max_new_tokens=12)
        pieces = list(reply)
        assert "".join(pieces) == wanted.text and len(pieces) > 2
        assert reply.whole is not None and reply.whole.to_dict() == wanted.to_dict()
        assert reply.whole.token_ids == wanted.token_ids and reply.whole.prompt_tokens == wanted.prompt_tokens > 0


def test_a_closed_answer_stops_the_work(predictor: Predictor, picture: Image.Image) -> None:
    predictor.model.train()
    before = predictor.statistics.steps
    pieces = iter(predictor.answer(Request("what?", picture), max_new_tokens=50))
    next(pieces), next(pieces)
    pieces.close()
    assert predictor.statistics.steps == before + 2
    assert predictor.model.training, "the mode is as it was"
    predictor.model.eval()


def test_streams_refuse_what_predict_refuses(predictor: Predictor) -> None:
    with pytest.raises(PictureError, match="nowhere"):
        list(predictor.answer(Request("what?", "nowhere.jpg")))
    with pytest.raises(ValueError, match="context is"):
        list(predictor.answer(Request("z" * 5000)))


def test_stop_words_of_a_request_end_its_answer(predictor: Predictor, picture: Image.Image) -> None:
    whole = predictor.predict(picture, "what?", max_new_tokens=12)
    short = predictor.predict(picture, "what?", max_new_tokens=12, stop=[whole.text[3:5]])
    assert short.text == whole.text[: whole.text.find(whole.text[3:5])].strip() and not short.truncated
    assert len(short.token_ids) < len(whole.token_ids)


def test_requests_may_have_a_system_text_of_their_own(predictor: Predictor, toy_paths: dict[str, str]) -> None:
    own = Predictor(predictor.model, toy_paths["llm"], "vicuna", PROCESSOR, system="two digits", max_new_tokens=6)
    mixed = [Request("what?", system="two digits"), Request("what?"), Request("what?", system="")]
    ids = [answer.token_ids for answer in predictor.predict_many(mixed)]
    assert ids[0] == own.predict(question="what?").token_ids != ids[1] == ids[2]
    assert [answer.token_ids for answer in own.predict_many(mixed)] == [ids[0], ids[0], ids[1]]


def test_the_llm_reads_rows_under_the_condition_of_their_pictures(
    predictor: Predictor, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside: list[int] = []
    passes: list[tuple[int, ...]] = []
    decoder = predictor.model.llm.model
    forward = decoder.forward

    @contextmanager
    def condition(rows: Sequence[Seeing]) -> Iterator[None]:
        inside.extend([len(rows), sum(map(len, rows))])
        yield
        inside.clear()

    def spy(*args: Any, **kwargs: Any) -> Any:
        passes.append((len(kwargs["inputs_embeds"]), *inside))  # rows, twice, and their pictures
        return forward(*args, **kwargs)

    monkeypatch.setattr(predictor.model, "condition", condition)
    monkeypatch.setattr(decoder, "forward", spy)
    shared = [Request(text, picture) for text in ("what?", "is there a digit?")]
    predictor.predict_many(shared, batch_size=4, exact=False, max_new_tokens=2)
    assert passes == [(1, 1, 1), (2, 2, 2), (2, 2, 2)], "one prefix, then two rows"
    passes.clear()
    predictor.predict_many([Request("what?", [picture, picture]), Request("a digit")], exact=False, max_new_tokens=2)
    assert passes == [(2, 2, 2), (2, 2, 2)], "two pictures of one row"


def test_sampling_is_possible(predictor: Predictor, picture: Image.Image) -> None:
    torch.manual_seed(1)
    answers = {predictor.predict(picture, "what?", do_sample=True, temperature=5.0).token_ids for _ in range(3)}
    assert len(answers) > 1


def test_context_limit(predictor: Predictor, picture: Image.Image) -> None:
    context = predictor.model.llm.config.max_position_embeddings
    with pytest.raises(ValueError, match=f"context is {context}"):
        predictor.predict(picture, "z" * (context + 1))
    nearly = "z" * (context - 100)
    left = context - len(predictor.front_end.tokenizer.encode("USER:  ASSISTANT:")) - (context - 100)
    assert len(predictor.predict(question=nearly, max_new_tokens=10_000).token_ids) <= left


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([1, 2, 3, 4], r"shape \(4,\)"),
        ([[1, 2, 3]], r"shape \(1, 3\)"),
        (np.zeros((2, 2, 2)), r"shape \(2, 2, 2\)"),
        ([[5, 5, 1, 1]], "x1 <= x2"),
        ([["a", "b", "c", "d"]], "four numbers"),
        ({"scores": [1]}, "'boxes' is needed"),
        ({"boxes": BOXES, "labels": ["one"]}, "1 labels"),
    ],
)
def test_bad_boxes(predictor: Predictor, picture: Image.Image, boxes: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        predictor.predict_many([Request("what?", picture, boxes, id="q7")])
    assert "q7" in str(error.value)


def test_bad_requests(predictor: Predictor, picture: Image.Image, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"not a picture")
    with pytest.raises(PictureError, match=r"broken\.jpg"):
        predictor.predict(tmp_path / "broken.jpg", "what?")
    with pytest.raises(PictureError, match=r"nowhere\.jpg.*does not exist"):
        predictor.predict_many([Request("a?"), Request("what?", "nowhere.jpg")], batch_size=1)
    for picture_like, question, boxes, message in [
        (picture, "", None, "question is empty"),
        (picture, [("human", "a?"), ("gpt", "b")], None, "question is empty"),
        (None, "<image> what?", None, "1 <image> in the questions, 0 pictures"),
        (None, "<video> what?", None, "1 <video> in the questions, 0 videos"),
        (picture, [("robot", "what?")], None, "robot"),
        (None, "what?", BOXES, "no picture"),
        ([picture, picture], "what?", BOXES[:1], "2 sets of boxes"),
    ]:
        with pytest.raises(ValueError, match=message):
            predictor.predict(picture_like, question, boxes)
    with pytest.raises(TypeError, match="picture is a int"):
        predictor.predict(7, "what?")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size"):
        predictor.predict_many([], batch_size=0)


@pytest.fixture
def config(toy_paths: dict[str, str]) -> Config:
    return Config(
        {
            "model": toy.model_config(toy_paths, tuning="full", pretrained_pth="gone.pth"),
            "tokenizer": {"type": "transformers.AutoTokenizer", "pretrained_model_name_or_path": toy_paths["llm"]},
            "prompt_template": "vicuna",
            "picture_processor": PROCESSOR,
        }
    )


def test_from_config(config: Config, toy_paths: dict[str, str], picture: Image.Image, tmp_path: Path) -> None:
    trained = toy.build_model(toy_paths, tuning="full")
    torch.nn.init.normal_(trained.projector.model[2].weight, std=0.5)
    checkpoint = checkpoint_of(trained, tmp_path / "iter_3.pth")
    config.model.losses = [
        dict(type="mg_llava.LanguageLoss", kernel="liger")
    ]  # what training had is not needed to answer
    config.dump(tmp_path / "config.py")
    wanted = Predictor(trained, toy_paths["llm"], "vicuna", PROCESSOR).predict(picture, "what?", BOXES)
    for given in (config, tmp_path / "config.py", str(tmp_path / "config.py")):
        predictor = Predictor.from_pretrained(given, checkpoint, device="cpu")
        assert predictor.predict(picture, "what?", BOXES).token_ids == wanted.token_ids


def test_from_config_errors(config: Config, toy_paths: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config nowhere\.py"):
        Predictor.from_pretrained("nowhere.py", "x.pth")
    with pytest.raises(FileNotFoundError, match=r"checkpoint nowhere\.pth"):
        Predictor.from_pretrained(config, "nowhere.pth")
    with pytest.raises(ValueError, match="Hugging Face"):
        Predictor.from_pretrained(config, toy_paths["llm"])
    stage1 = checkpoint_of(toy.build_model(toy_paths, tuning="frozen"), tmp_path / "stage1.pth")
    with pytest.raises(ValueError, match="llm is absent"):
        Predictor.from_pretrained(config, stage1)
    with pytest.raises(ValueError, match="lacks tokenizer, picture_processor"):
        Predictor.from_pretrained(Config({"model": {}, "prompt_template": "vicuna"}), stage1)
