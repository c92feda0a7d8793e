"""Contributions of tokens to an answer, and other work between the steps of an engine."""

import threading
from concurrent.futures import CancelledError
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mg_llava.data.inputs import make_boxes
from mg_llava.data.pictures.processor import PictureProcessor
from mg_llava.data.records.schema import Turn
from mg_llava.inference import Answer, Predictor, Request, attribution
from mg_llava.inference.attribution import attribute, visual_grid
from mg_llava.inference.engine import Closed, Engine
from mg_llava.models.interfaces import Part, Seeing, Spec
from mg_llava.models.systems.lyrics import Lyrics
from mg_llava.models.systems.mr_mllm import MRMLLM
from mg_llava.tokens import IGNORE_INDEX
from tests import toy
from tests.contract import cases, contract
from tests.inference.serving_toys import a_picture, make_predictor

BOXES = [[4.0, 6.0, 24.0, 24.0], [30.0, 10.0, 60.0, 44.0]]
QUESTION = "what is there?"


@pytest.fixture(scope="module")
def predictor(toy_paths: dict[str, str]) -> Predictor:
    return make_predictor(toy_paths)


def test_tokens_lie_on_the_grid_of_an_encoder_or_on_none() -> None:
    """A class token among them leaves none."""
    encoders = [SimpleNamespace(spec=Spec("Encoder", 14, (), (), tokens=count)) for count in (257, 0, 16)]
    model = SimpleNamespace(named_parts=lambda: [(Part("it", "it", "encoder"), encoder) for encoder in encoders])
    assert [visual_grid(model, count) for count in (257, 256, 16, 0)] == [None, None, 4, None]


@torch.no_grad()
def log_probability(predictor: Predictor, answer: Answer, seeing: Seeing) -> float:
    """Of an answer, by the loss of the training."""
    prompt = predictor.front_end.encode([Turn("human", f"<image>\n{QUESTION}")], None)
    ids = torch.tensor([[*prompt, *answer.token_ids]])
    labels = ids.clone()
    labels[:, : len(prompt)] = IGNORE_INDEX
    loss = predictor.model({"input_ids": ids, "labels": labels, "seeing": seeing}, mode="loss")["loss"]
    return -float(loss) * len(answer.token_ids)


def fall(predictor: Predictor, answer: Answer, seeing: Seeing, kind: str, tokens: list[int]) -> float:
    """Of the log-probability when box tokens are left out, or visual tokens replaced by the mean of all."""
    segments = []
    for segment in seeing[0]:
        changed = segment.tokens.clone()
        if segment.kind == kind == "visual":
            changed[tokens] = segment.tokens.mean(dim=0)
        elif segment.kind == kind:
            changed = changed[[place for place in range(len(changed)) if place not in tokens]]
        segments.append(segment._replace(tokens=changed))
    return log_probability(predictor, answer, seeing) - log_probability(predictor, answer, [segments])


@pytest.mark.parametrize("boxes", [BOXES, []], ids=["boxes", "none"])
def test_contributions_are_what_the_answer_loses(predictor: Predictor, boxes: list) -> None:
    picture = a_picture()
    answer = predictor.predict(picture, QUESTION, boxes)
    found = attribute(predictor, Request(QUESTION, picture, boxes), answer)
    seen = predictor.front_end.picture_processor(picture, make_boxes(boxes))
    with torch.no_grad():
        seeing = predictor.model.encode(seen.pixels[None], [seen.boxes])
    visual, objects = (range(segment.length) for segment in seeing[0])
    assert found.score == pytest.approx(log_probability(predictor, answer, seeing), abs=1e-4)
    (shares,) = found.pictures
    assert shares.regions is not None and shares.regions.shape == (2, 2)
    assert len(shares.objects) == len(objects) == max(1, len(boxes))  # the stand-in is a token too
    wanted = [fall(predictor, answer, seeing, "visual", [token]) for token in visual]
    np.testing.assert_allclose(shares.regions.ravel(), wanted, atol=1e-4)
    wanted = [fall(predictor, answer, seeing, "object", [token]) for token in objects]
    np.testing.assert_allclose(shares.objects, wanted, atol=1e-4)
    assert abs(shares.objects).max() > 1e-2 and abs(shares.regions).max() > 1e-2
    kinds = {"visual": list(visual), "object": list(objects)}
    every = [fall(predictor, answer, seeing, kind, tokens) for kind, tokens in kinds.items()]
    np.testing.assert_allclose([shares.every_region, shares.every_object], every, atol=1e-4)


@pytest.mark.parametrize(("system", "queries"), [(Lyrics, True), (MRMLLM, False)])
def test_systems_without_visual_tokens(system: type, queries: bool, tmp_path: Path) -> None:
    paths = cases.write_all(tmp_path)
    model = contract.build(cases.case_of(system, paths).model)
    predictor = Predictor(model, paths["llm"], "vicuna", PictureProcessor(model.canvas_size), max_new_tokens=4)
    request = Request(QUESTION, a_picture(), BOXES)
    (shares,) = attribute(predictor, request, predictor.batch([request])[0]).pictures
    assert shares.regions is None and len(shares.objects) == 0
    assert (shares.visual > 0) == queries == (abs(shares.every_region) > 1e-3)


def test_regions_are_blocks_of_a_large_grid() -> None:
    blocks = list(attribution._blocks(20))
    assert len(blocks) == attribution.MOST_BLOCKS**2 and sorted(torch.cat(blocks).tolist()) == list(range(400))
    for block in blocks:
        rows, columns = block // 20, block % 20
        assert len(block) == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1) <= 9


def test_a_model_without_boxes_and_an_answer_without_words(toy_paths: dict[str, str]) -> None:
    model = toy.build_model(toy_paths, box_projector=None)
    predictor = Predictor(model, toy_paths["llm"], "vicuna", make_predictor(toy_paths).front_end.picture_processor)
    request = Request(QUESTION, a_picture())
    found = attribute(predictor, request, predictor.batch([request])[0])
    assert len(found.pictures[0].objects) == 0 and found.pictures[0].regions is not None
    text_alone = attribute(predictor, Request(QUESTION), Answer("?", token_ids=(5, 6)))
    assert text_alone.pictures == () and text_alone.score < 0
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
