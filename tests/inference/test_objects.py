"""Objects of a picture before and after refinement: the detector's at step 0, names that an LLM would choose."""

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mg_llava.data.records.schema import make_box_record
from mg_llava.data.text.perception import PerceptionPrompt
from mg_llava.inference import Predictor
from mg_llava.inference.naming import Naming, name_objects
from mg_llava.inference.objects import ObjectFinder
from tests.contract import cases
from tests.models.systems.test_refinement import build, stir

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8))


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return cases.write_all(tmp_path_factory.mktemp("objects"))


def predictor(paths: dict[str, str], system: Any) -> Predictor:
    processor = {"type": "mg_llava.PictureProcessor", "image_size": system.canvas_size}
    part = {"type": "mg_llava.PerceptionPrompt", "threshold": 0.0, "most": 2}
    return Predictor(system, paths["llm"], "vicuna", processor, parts=[part], max_new_tokens=4)


def test_before_training_objects_are_the_detectors(paths: dict[str, str]) -> None:
    asked = predictor(paths, build(paths))
    raw, refined = ObjectFinder(asked.model, asked.front_end, "head")(PICTURE)
    assert np.array_equal(raw.boxes, refined.boxes) and np.array_equal(raw.scores, refined.scores)
    assert raw.labels == refined.labels and set(raw.labels) <= {"LABEL_0", "LABEL_1", "LABEL_2"}
    assert (
        (raw.boxes >= 0).all()
        and (raw.boxes[:, 2:] <= [64, 48]).all()
        and list(raw.scores) == sorted(-raw.scores * -1)[::-1]
    )
    # the canvas is a square of 64 px with the picture in its middle
    found = asked.model.detector(asked.front_end.picture_processor(PICTURE).pixels[None]).detected
    center = found.boxes[0, :, :2].numpy() * 64 - [0, 8]
    inside = ((raw.boxes[:, 2:] + raw.boxes[:, :2]) / 2)[
        (raw.boxes > 0).all(1) & (raw.boxes < [64, 48, 64, 48]).all(1)
    ]
    assert all(np.abs(center - one).max(1).min() < 1e-3 for one in inside)
    stir(asked.model)
    changed = ObjectFinder(asked.model, asked.front_end, "head")(PICTURE)
    assert not np.allclose(changed.refined.boxes, changed.raw.boxes, atol=0.1)
    assert np.array_equal(changed.raw.boxes, raw.boxes)


def test_the_llm_names_objects_without_training(paths: dict[str, str]) -> None:
    asked = predictor(paths, build(paths))
    finder = ObjectFinder(asked.model, asked.front_end, "language", Naming(weight=0.0, threshold=0.0))
    raw, same = finder(PICTURE)
    assert same.labels == raw.labels and np.array_equal(same.boxes, raw.boxes)
    told = ObjectFinder(asked.model, asked.front_end, "language", Naming(weight=50.0, threshold=0.0))(PICTURE)
    texts = [f"Detected objects: LABEL_{number} " for number in range(3)]
    likely = finder._likelihood(texts)
    assert len(set(likely)) == 3 and all(value < 0 for value in likely)
    assert set(told.refined.labels) <= {"LABEL_0", "LABEL_1", "LABEL_2"}


def test_names_against_all_lists() -> None:
    """A wide beam finds the best of all lists; the order is from left to right."""
    rng = np.random.default_rng(1)
    classes = ("a", "b", "c")
    likely = torch.tensor(rng.dirichlet(np.ones(3), 3))
    boxes = make_box_record([[50, 0, 60, 10], [0, 0, 10, 10], [20, 0, 30, 10]], [0.9, 0.8, 0.7], ["a", "a", "a"])
    there = torch.tensor([0.9, 0.8, 0.2])
    weights = {text: float(rng.normal()) for text in map("; ".join, product(classes, repeat=2))}

    def likelihood(texts: Any) -> list[float]:
        return [weights.get(text.removeprefix("Detected objects: "), 0.0) for text in texts]

    prompt = PerceptionPrompt(text=None, order="left", threshold=0.5)
    given = ((boxes, (100, 50)), (likely, there, classes), prompt, likelihood)
    names, sure = name_objects(Naming(beam=9, candidates=3), *given)
    best = max(
        product(range(3), repeat=2),
        key=lambda pair: (
            math.log(likely[1][pair[0]])
            + math.log(likely[0][pair[1]])
            + weights[f"{classes[pair[0]]}; {classes[pair[1]]}"]
        ),
    )
    assert names == (classes[best[1]], classes[best[0]], "a")  # the third is hardly there
    shares = {
        pair: likely[1][pair[0]] * likely[0][pair[1]] * math.exp(weights[f"{classes[pair[0]]}; {classes[pair[1]]}"])
        for pair in product(range(3), repeat=2)
    }
    agree = sum(share for pair, share in shares.items() if pair[0] == best[0]) / sum(shares.values())
    assert np.isclose(sure[1], float(agree)) and sure[2] == 1
    plain, alone = name_objects(Naming(weight=0.0, beam=9), *given)
    assert np.allclose(alone[:2], [float(row.max() / row.sum()) for row in likely[:2]])
    assert plain[:2] == tuple(classes[int(row.argmax())] for row in likely[:2])


def test_systems_without_the_parts_are_refused(paths: dict[str, str]) -> None:
    bare = predictor(paths, build(paths, refine=None))
    with pytest.raises(ValueError, match="the model has no refine"):
        ObjectFinder(bare.model, bare.front_end, "head")
    with pytest.raises(ValueError, match="refine is 'heads'; allowed: 'head', 'language', 'both', 'none'"):
        ObjectFinder(bare.model, bare.front_end, "heads")  # type: ignore[arg-type]
    ObjectFinder(bare.model, bare.front_end, "none")
    with pytest.raises(ValueError, match=r"beam is 0.*weight is -1"):
        Naming(beam=0, weight=-1)
