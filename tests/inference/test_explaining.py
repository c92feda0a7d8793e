"""Probabilities of an answer's tokens, and the attention to pictures: against the losses, and by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from mg_llava.data.pictures.frames import Canvas
from mg_llava.data.records.schema import Turn
from mg_llava.drawing.heat import draw_heat
from mg_llava.inference import Answer, Predictor, Request
from mg_llava.inference.attribution import attribute
from mg_llava.inference.explaining import attention_of_layer, heat_on_picture, read_answer
from mg_llava.inspection.explain import compare_readings, draw_attention, format_comparison
from mg_llava.tokens import IMAGE_TOKEN_INDEX
from tests.inference.serving_toys import a_picture, make_predictor

BOXES = [[4.0, 6.0, 24.0, 24.0]]
REQUEST = Request("what is there?", a_picture(), BOXES)


@pytest.fixture(scope="module")
def predictor(toy_paths: dict[str, str]) -> Predictor:
    return make_predictor(toy_paths)


def test_probabilities_are_those_of_the_answers_tokens(predictor: Predictor) -> None:
    answer = predictor.batch([REQUEST])[0]
    reading = read_answer(predictor, REQUEST, answer.token_ids)
    assert len(reading.tokens) == len(reading.probabilities) == len(answer.token_ids)
    score = attribute(predictor, REQUEST, answer).score
    assert np.log(reading.probabilities).sum() == pytest.approx(score, abs=1e-4)
    assert reading.maps == () and 0 < reading.mean_probability < 1
    ids = predictor.front_end.tokenizer.encode("a cat", add_special_tokens=False)
    told = read_answer(predictor, REQUEST, "a cat")
    assert np.log(told.probabilities).sum() == pytest.approx(
        attribute(predictor, REQUEST, Answer("a cat", tuple(ids))).score, abs=1e-4
    )
    assert "".join(told.tokens).replace(" ", "") == "acat"
    with pytest.raises(ValueError, match="the answer is empty"):
        read_answer(predictor, REQUEST, "")


def test_attention_sums_up_and_does_not_change_what_is_computed(predictor: Predictor) -> None:
    config = predictor.model.llm.config
    before = config._attn_implementation
    plain = read_answer(predictor, REQUEST, "a cat")
    for layer in (0, -1):
        reading = read_answer(predictor, REQUEST, "a cat", layer)
        np.testing.assert_allclose(reading.probabilities, plain.probabilities, atol=1e-5)
        (grids,), (mass,) = reading.maps, reading.masses
        assert grids is not None and grids.shape == (len(reading.tokens), 2, 2)
        assert (grids > 0).all() and (mass > grids.sum(axis=(1, 2))).all() and (mass < 1).all()  # boxes take some
    assert config._attn_implementation == before
    with pytest.raises(ValueError, match=r"layer is 9; the LLM has \d layers"):
        read_answer(predictor, REQUEST, "a cat", 9)


def test_hand_made_attention_gives_the_expected_map(predictor: Predictor, monkeypatch) -> None:
    """The LLM attends to the third visual token with one head, to the box token with the other."""
    llm = predictor.model.llm
    whole = llm.forward
    prompt = predictor.front_end.encode([Turn("human", "<image>\nwhat is there?")], None)
    start = prompt.index(IMAGE_TOKEN_INDEX)

    def forward(*args: object, output_attentions: bool = False, **given: torch.Tensor) -> SimpleNamespace:
        length = given["inputs_embeds"].shape[1]
        found = torch.zeros(1, 2, length, length)
        found[0, 0, :, start + 2] = 1
        found[0, 1, :, start + 4] = 1
        return SimpleNamespace(logits=whole(*args, **given).logits, attentions=(None, found))

    monkeypatch.setattr(llm, "forward", forward)
    reading = read_answer(predictor, REQUEST, "a cat", 1)
    (grids,), (mass,) = reading.maps, reading.masses
    assert grids is not None
    np.testing.assert_allclose(grids, np.tile([[0, 0], [0.5, 0]], (len(grids), 1, 1)))
    np.testing.assert_allclose(mass, 1)
    with pytest.raises(ValueError, match="layer 0 of this LLM gives no attention"):
        read_answer(predictor, REQUEST, "a cat", 0)
    with pytest.raises(ValueError, match="gives no attention; its architecture"):
        attention_of_layer(None, 0)


def test_a_map_lies_on_the_picture_where_its_canvas_does() -> None:
    grid = np.zeros((4, 4))
    grid[1, 3] = 1
    heat = heat_on_picture(grid, Canvas(200, 100, 64))  # padded above and below by half of its height
    assert heat.shape == (100, 200)
    assert np.unravel_index(heat.argmax(), heat.shape)[1] >= 170 and heat[:60, 150:].sum() > 0.8 * heat.sum()
    upright = heat_on_picture(grid, Canvas(100, 200, 64))  # columns 0 and 3 show padding alone
    assert upright.shape == (200, 100) and upright[:, :60].max() < 1e-6
    cropped = heat_on_picture(np.ones((4, 4)), Canvas(300, 100, 64, pad_to_square=False))
    assert (cropped[:, :99] == 0).all() and (cropped[:, 101:199] == 1).all() and (cropped[:, 201:] == 0).all()


def test_heat_is_drawn_from_dark_to_bright() -> None:
    image = Image.new("RGB", (20, 10), "gray")
    heat = np.zeros((10, 20))
    heat[:, 10:] = 2.0
    drawn = np.asarray(draw_heat(image, heat)).astype(int)
    assert drawn.shape == (10, 20, 3) and (drawn[:, :10] == drawn[0, 0]).all()
    assert drawn[0, 15].sum() > drawn[0, 5].sum() + 200
    assert (np.asarray(draw_heat(image, np.zeros((10, 20)))) == drawn[0, 0]).all()
    assert np.asarray(draw_heat(image, heat, most=8.0)).astype(int)[0, 15].sum() < drawn[0, 15].sum()
    with pytest.raises(ValueError, match="the heat map is 10 x 20, the picture 20 x 10"):
        draw_heat(image, heat.T)


def test_both_figures(predictor: Predictor) -> None:
    readings = {name: read_answer(predictor, Request(name, a_picture()), "a cat", -1) for name in ("this", "that")}
    found = compare_readings(readings)
    assert found["tokens"] == list(readings["this"].tokens)
    assert found["mean"]["that"] == pytest.approx(readings["that"].mean_probability, abs=1e-6)
    assert found["mean"]["this"] != found["mean"]["that"]
    lines = format_comparison(found).splitlines()
    assert len(lines) == len(found["tokens"]) + 2 and lines[-1].split()[0] == "mean"
    drawn = draw_attention(a_picture(), readings["this"], most=2)
    assert drawn.width > 3 * 320 and len(np.unique(np.asarray(drawn))) > 50
