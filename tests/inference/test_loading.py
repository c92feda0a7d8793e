"""Models from everything that holds one, and pictures from everything that holds one, give the same answers."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from transformers import GPT2Config, LlamaConfig

from mg_llava.data.pictures.files import PictureError
from mg_llava.inference import Predictor, Request
from mg_llava.models.positions import take_positions
from tests import toy
from tests.hf.conftest import BOXES, make_picture, training_config, write_folder

QUESTION = "what is there?"


def ids(predictor: Predictor) -> tuple[int, ...]:
    return predictor.predict(make_picture(), QUESTION, BOXES, max_new_tokens=8).token_ids


@pytest.fixture(scope="module")
def predictor(toy_paths: dict[str, str]) -> Predictor:
    config = training_config(toy_paths)
    return Predictor(toy.build_model(toy_paths), toy_paths["llm"], "vicuna", config["picture_processor"])


@pytest.mark.parametrize("standalone", [False, True])
def test_a_hugging_face_folder(
    predictor: Predictor, toy_paths: dict[str, str], tmp_path: Path, standalone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "user" / "toy"
    write_folder(folder, toy_paths, standalone=standalone)
    for file in folder.glob("*.py"):
        file.write_text("raise SystemExit('the code of a folder was run')")
    found = Predictor.from_pretrained(folder, device="cpu")
    assert ids(found) == ids(predictor)
    assert found.front_end.stops.ids == predictor.front_end.stops.ids
    turned = Predictor.from_pretrained(str(folder), device="cpu", pictures={"apply_exif": True}, max_new_tokens=3)
    assert turned.front_end.picture_processor.apply_exif and turned.generation["max_new_tokens"] == 3
    with pytest.raises(ValueError, match="has its weights"):
        Predictor.from_pretrained(folder, "iter_1.pth")


def test_a_hub_id(toy_paths: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative folder named as a hub id is that folder; another id is looked up on the hub."""
    write_folder(tmp_path / "user" / "toy", toy_paths)
    monkeypatch.chdir(tmp_path)
    assert Predictor.from_pretrained("user/toy", device="cpu")
    with pytest.raises(OSError, match="user/other"):
        Predictor.from_pretrained("user/other", device="cpu")


def test_rows_may_be_as_long_as_those_of_the_training(toy_paths: dict[str, str], tmp_path: Path) -> None:
    torch.save({"state_dict": toy.build_model(toy_paths).state_dict()}, tmp_path / "iter_1.pth")
    predictors, question = {}, "z" * 600
    for length in (2048, 100):
        loader = {"dataset": {"budget": {"context_length": length}}}
        config = Config({**training_config(toy_paths), "train_dataloader": loader})
        predictor = Predictor.from_pretrained(config, tmp_path / "iter_1.pth", "cpu", max_new_tokens=2)
        predictors[length] = predictor
    assert predictors[2048].predict(make_picture(), question).token_ids
    with pytest.raises(ValueError, match="context is 512"):  # shorter rows take none of the LLM's positions away
        predictors[100].predict(make_picture(), question)


def test_positions_that_an_llm_does_not_have_are_not_taken() -> None:
    scaled = {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}
    for config, length in ((LlamaConfig(), 8192), (LlamaConfig(**scaled), 2048), (GPT2Config(), 1024)):
        take_positions(config, 8192)
        take_positions(config, None)
        assert config.max_position_embeddings == length


DEFAULT, SCALED = (
    {"rope_type": "default", "rope_theta": 1e4},
    {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
)


@pytest.mark.parametrize(
    ("rotary", "length"),
    [
        ({"rope_theta": 1e4, "rope_scaling": None}, 8192),
        ({"rope_theta": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}, 2048),
        ({"rope_parameters": DEFAULT, "rope_scaling": DEFAULT}, 8192),
        ({"rope_parameters": SCALED, "rope_scaling": SCALED}, 2048),
        ({"rope_parameters": {"sliding_attention": DEFAULT, "full_attention": DEFAULT}}, 8192),
        ({"rope_parameters": {"sliding_attention": DEFAULT, "full_attention": SCALED}}, 2048),
        ({"rope_parameters": None}, 2048),
        ({"rope_parameters": {}}, 2048),
    ],
)
def test_rotary_positions_as_either_release_of_transformers_has_them(rotary: dict[str, Any], length: int) -> None:
    config = SimpleNamespace(max_position_embeddings=2048, **rotary)
    take_positions(config, 8192)
    assert config.max_position_embeddings == length


def test_what_holds_no_model(toy_paths: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config\.json; give a Hugging Face folder"):
        Predictor.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"config no\.py does not exist"):
        Predictor.from_pretrained("no.py")
    with pytest.raises(FileNotFoundError, match="config nowhere does not exist"):
        Predictor.from_pretrained("nowhere")
    with pytest.raises(ValueError, match="a config needs a checkpoint"):
        Predictor.from_pretrained(Config(training_config(toy_paths)))


def test_pictures_of_every_kind_are_the_same(predictor: Predictor, tmp_path: Path) -> None:
    picture = make_picture()
    picture.save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    kinds: list[Any] = [tmp_path / "a.png", str(tmp_path / "a.png"), data, picture, np.asarray(picture)]
    assert {predictor.predict(kind, QUESTION, BOXES).token_ids for kind in kinds} == {ids_of(predictor)}
    together = predictor.batch([{"question": QUESTION, "picture": kind, "boxes": BOXES} for kind in kinds])
    assert {answer.token_ids for answer in together} == {ids_of(predictor)}
    gray = np.asarray(picture)[:, :, 0]
    assert predictor.predict(gray, QUESTION).token_ids == predictor.predict(picture.split()[0], QUESTION).token_ids


def ids_of(predictor: Predictor) -> tuple[int, ...]:
    return predictor.predict(make_picture(), QUESTION, BOXES).token_ids


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (b"", "in memory of request 0 cannot be read .empty"),
        (b"text, not a picture", "cannot be read .not a picture"),
        (np.zeros((4, 4, 4), np.uint8), r"uint8 of shape \(4, 4, 4\)"),
        (np.zeros((4, 4, 3)), r"float64 of shape \(4, 4, 3\)"),
    ],
)
def test_what_is_no_picture(predictor: Predictor, picture: Any, message: str) -> None:
    with pytest.raises(PictureError, match=message):
        predictor.predict(picture, QUESTION)


def test_cut_bytes_are_named(predictor: Predictor) -> None:
    file = io.BytesIO()
    make_picture().save(file, format="PNG")
    with pytest.raises(PictureError, match="truncated"):
        predictor.predict(file.getvalue()[:200], QUESTION)


def test_a_chat_goes_on(predictor: Predictor) -> None:
    picture = make_picture()
    first = predictor.chat(picture, QUESTION, boxes=BOXES, history=None, stream=False)
    assert first.token_ids == ids_of(predictor)
    history = [("human", QUESTION), ("gpt", first.text)]
    second = predictor.chat(picture, "and now?", BOXES, history=history)
    (wanted,) = predictor.predict_many([Request([*history, ("human", "and now?")], picture, BOXES)])
    assert second.token_ids == wanted.token_ids
    reply = predictor.chat(picture, "and now?", BOXES, history, stream=True)
    assert "".join(reply) == second.text and reply.whole.token_ids == second.token_ids
