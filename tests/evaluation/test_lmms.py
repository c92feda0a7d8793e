"""The model for lmms-eval: its instances become requests, its replies the predictor's.

Where lmms-eval is not installed, a stand-in has what the adapter takes from its base class.
"""

import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mg_llava.inference import Predictor
from tests import toy

PROCESSOR = {"type": "mg_llava.PictureProcessor", "image_size": toy.CANVAS}
ADAPTER = "mg_llava.evaluation.lmms"


class Base:
    """As lmms-eval's model: the tasks' documents, and a cache that is told of replies."""

    def __init__(self) -> None:
        self.task_dict: dict[str, Any] = {}
        self.cache_hook = SimpleNamespace(add_partial=lambda *reply: None)


@pytest.fixture
def adapter(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    if importlib.util.find_spec("lmms_eval") is None:
        for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        sys.modules["lmms_eval.api.model"].lmms = Base  # type: ignore[attr-defined]
    monkeypatch.delitem(sys.modules, ADAPTER, raising=False)
    yield importlib.import_module(ADAPTER)
    sys.modules.pop(ADAPTER, None)


@pytest.fixture(scope="module")
def predictor(toy_paths: dict[str, str]) -> Predictor:
    return Predictor(toy.build_model(toy_paths), toy_paths["llm"], "vicuna", PROCESSOR)


def pictures() -> list[Image.Image]:
    pixels = [np.random.default_rng(n).integers(0, 256, (40, 60, 3)).astype(np.uint8) for n in range(3)]
    return [Image.fromarray(array) for array in pixels]


def instance(text: str, number: int, **asked: Any) -> SimpleNamespace:
    return SimpleNamespace(args=(text, asked, lambda doc: doc["visuals"], number, "toy", "test"))


def test_replies_are_the_predictors(adapter: ModuleType, predictor: Predictor) -> None:
    model = adapter.MGLLaVAModel(predictor=predictor, batch_size="4", unknown_setting=1)
    images = pictures()
    documents = [{"visuals": [image]} for image in images] + [{"visuals": []}, {"visuals": images[:2]}]
    model.task_dict = {"toy": {"test": documents}}
    long = predictor.predict(images[0], "what is there?", max_new_tokens=9).text
    asked = [
        instance("<image>\nwhat is there?", 0, max_new_tokens=9),
        instance("two digits?", 1, max_new_tokens=4, temperature=0, do_sample=True),
        instance("a digit?", 3, max_new_tokens=4),
        instance("two digits?", 4, max_new_tokens=4),
        instance("what is there?", 0, max_new_tokens=9, until=[long[2:4]]),
    ]
    expected = [
        long,
        predictor.predict(images[1], "two digits?", max_new_tokens=4).text,
        predictor.predict(None, "a digit?", max_new_tokens=4).text,
        predictor.predict(images[:2], "two digits?", max_new_tokens=4).text,
        long[: long.find(long[2:4])],
    ]
    assert model.generate_until(asked) == expected and model.batch_size == 4


def test_what_cannot_be_answered_is_said(adapter: ModuleType, predictor: Predictor) -> None:
    model = adapter.MGLLaVAModel(predictor=predictor)
    model.task_dict = {"toy": {"test": [{"visuals": ["clip.mp4"]}]}}
    with pytest.raises(TypeError, match="toy test 0: a str is not supported; choose tasks with pictures"):
        model.generate_until([instance("what?", 0)])
    with pytest.raises(NotImplementedError, match="likelihoods"):
        model.loglikelihood([])
    with pytest.raises(ValueError, match="allowed: none, proposals"):
        adapter.MGLLaVAModel(predictor=predictor, boxes="all")


def test_proposals_become_boxes(adapter: ModuleType, predictor: Predictor) -> None:
    picture = Image.new("RGB", (64, 48), "white")
    picture.paste((0, 0, 0), (10, 12, 30, 34))
    model = adapter.MGLLaVAModel(predictor=predictor, boxes="proposals")
    model.task_dict = {"toy": {"test": [{"visuals": [picture]}]}}
    source, looked_up = model.source, []
    model.source = SimpleNamespace(look_up=lambda *asked: looked_up.append(source.look_up(*asked)) or looked_up[-1])
    model.generate_until([instance("what?", 0, max_new_tokens=2)])
    assert [found.counts["generated"] for found in looked_up] == [1]
