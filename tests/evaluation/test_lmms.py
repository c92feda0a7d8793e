"""The model for lmms-eval: its instances become requests, its replies the predictor's.

Where lmms-eval is not installed, a stand-in has what the adapter takes from its base class.
"""

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
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


class Cache:
    """As lmms-eval's cache of replies: its key has the model's name and the text of its arguments."""

    def __init__(self, key: str) -> None:
        self.key = key

    @classmethod
    def create(cls, cache_root: str, *, model: str = "", model_args: str = "", task_dict: Any = None) -> "Cache":
        return cls(f"{model}|{model_args}")


@pytest.fixture
def adapter(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    if importlib.util.find_spec("lmms_eval") is None:
        for name in ("", ".api", ".api.model", ".caching", ".caching.response_cache"):
            monkeypatch.setitem(sys.modules, f"lmms_eval{name}", ModuleType(f"lmms_eval{name}"))
        sys.modules["lmms_eval.caching.response_cache"].ResponseCache = type("Cache", (Cache,), {})  # type: ignore
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


def test_the_cache_knows_files_by_their_content(
    adapter: ModuleType, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = importlib.import_module("lmms_eval.caching.response_cache").ResponseCache
    monkeypatch.setattr(cache, "create", cache.create)  # so that it is as before afterwards
    files = {name: tmp_path / name for name in ("config.py", "iter_1.pth", "boxes.json")}
    files["boxes.json"].write_text(json.dumps([{"id": "a", "boxes": [[1, 2, 3, 4]]}]))
    files["config.py"].write_text("a = 1")
    files["iter_1.pth"].write_bytes(b"weights")
    arguments = {"config": str(files["config.py"]), "checkpoint": str(files["iter_1.pth"])}

    def key(name: str = adapter.NAME) -> str:
        adapter.MGLLaVAModel(predictor=predictor, box_path=str(files["boxes.json"]), **arguments)
        return str(cache.create("root", model=name, model_args="the same", task_dict={}).key)

    first, others = key(), key("another model")
    assert key() == first and "the same" in first
    seen = {first}
    for name, content in [
        ("boxes.json", json.dumps([{"id": "a", "boxes": [[1, 2, 3, 5]]}])),
        ("config.py", "a = 2"),
        ("iter_1.pth", "weightz"),
    ]:
        files[name].write_text(content)
        seen.add(key())
    assert len(seen) == 4, "each file counts"
    assert others == key("another model") == "another model|the same"
