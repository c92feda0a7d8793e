"""Contributions of tokens to an answer, and other work between the steps of an engine."""

import threading
from concurrent.futures import CancelledError

import numpy as np
import pytest
import torch

from mg_llava.data.inputs import make_boxes
from mg_llava.data.records.schema import Turn
from mg_llava.inference import Answer, Predictor, Request
from mg_llava.inference.attribution import attribute
from mg_llava.inference.engine import Closed, Engine
from mg_llava.models.interfaces import Seeing
from mg_llava.tokens import IGNORE_INDEX
from tests import toy
from tests.inference.serving_toys import a_picture, make_predictor

BOXES = [[4.0, 6.0, 24.0, 24.0], [30.0, 10.0, 60.0, 44.0]]
QUESTION = "what is there?"
STEP = 0.02


@pytest.fixture(scope="module")
def predictor(toy_paths: dict[str, str]) -> Predictor:
    return make_predictor(toy_paths)


@torch.no_grad()
def log_probability(predictor: Predictor, answer: Answer, seeing: Seeing) -> float:
    """Of an answer, by the loss of the training."""
    prompt = predictor.front_end.encode([Turn("human", f"<image>\n{QUESTION}")], None)
    ids = torch.tensor([[*prompt, *answer.token_ids]])
    labels = ids.clone()
    labels[:, : len(prompt)] = IGNORE_INDEX
    loss = predictor.model({"input_ids": ids, "labels": labels, "seeing": seeing}, mode="loss")["loss"]
    return -float(loss) * len(answer.token_ids)


def slope(predictor: Predictor, answer: Answer, seeing: Seeing, segment: int, token: int) -> float:
    """Change of the log-probability with the length of one token, by making it longer and shorter."""
    found = []
    for factor in (1 + STEP, 1 - STEP):
        segments = list(seeing[0])
        tokens = segments[segment].tokens.clone()
        tokens[token] *= factor
        segments[segment] = segments[segment]._replace(tokens=tokens)
        found.append(log_probability(predictor, answer, [segments]))
    return (found[0] - found[1]) / (2 * STEP)


@pytest.mark.parametrize("boxes", [BOXES, []], ids=["boxes", "none"])
def test_contributions_are_slopes_of_the_log_probability(predictor: Predictor, boxes: list) -> None:
    picture = a_picture()
    answer = predictor.predict(picture, QUESTION, boxes)
    found = attribute(predictor, Request(QUESTION, picture, boxes), answer)
    seen = predictor.front_end.picture_processor(picture, make_boxes(boxes))
    with torch.no_grad():
        seeing = predictor.model.encode(seen.pixels[None], [seen.boxes])
    visual, objects = seeing[0]
    assert found.score == pytest.approx(log_probability(predictor, answer, seeing), abs=1e-4)
    (shares,) = found.pictures
    assert shares.regions is not None and shares.regions.shape == (2, 2)
    assert len(shares.objects) == objects.length == max(1, len(boxes))  # the stand-in is a token too
    wanted = [slope(predictor, answer, seeing, 0, token) for token in range(visual.length)]
    np.testing.assert_allclose(shares.regions.ravel(), wanted, atol=2e-3)
    wanted = [slope(predictor, answer, seeing, 1, token) for token in range(objects.length)]
    np.testing.assert_allclose(shares.objects, wanted, atol=2e-3)
    assert shares.visual == pytest.approx(shares.regions.sum()) and abs(shares.visual) > 1e-2
    assert all(parameter.grad is None for parameter in predictor.model.parameters())


def test_a_model_without_boxes_and_an_answer_without_words(toy_paths: dict[str, str]) -> None:
    model = toy.build_model(toy_paths, box_projector=None)
    predictor = Predictor(model, toy_paths["llm"], "vicuna", make_predictor(toy_paths).front_end.picture_processor)
    request = Request(QUESTION, a_picture())
    found = attribute(predictor, request, predictor.batch([request])[0])
    assert len(found.pictures[0].objects) == 0 and found.pictures[0].regions is not None
    text_alone = attribute(predictor, Request(QUESTION), Answer("?", token_ids=(5, 6)))
    assert text_alone.pictures == () and text_alone.text != 0
    with pytest.raises(ValueError, match="the answer is empty"):
        attribute(predictor, request, Answer(""))


def test_an_engine_does_other_work_between_its_steps(predictor: Predictor) -> None:
    with Engine(predictor) as engine:
        names = engine.call(lambda: threading.current_thread().name).result(30)
        failing = engine.call(lambda: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            failing.result(30)
        started, go_on = threading.Event(), threading.Event()
        running = engine.call(lambda: (started.set(), go_on.wait(30)))
        started.wait(30)
        waiting = engine.call(lambda: None)
        closing = threading.Thread(target=engine.__exit__)
        closing.start()
        while engine._is_open:
            started.wait(0.01)
        go_on.set()
        closing.join()
    assert names == "engine" and running.result(30) == (None, True)
    with pytest.raises(CancelledError):
        waiting.result(30)
    with pytest.raises(Closed):
        engine.call(lambda: None)
