"""A conversation about two pictures with object images and four boxes, as a training sample."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mg_llava.data.dataset import LLaVADataset
from mg_llava.data.pictures.processor import PictureProcessor
from tests import toy

OBJECTS = [{"box": [2, 3, 30, 40]}, {"box": [20, 20, 44, 44], "picture": 1}, {"box": [5, 30, 25, 46]}]
BOXES = [[[1, 1, 20, 20], [5, 5, 39, 29]], [[4, 4, 30, 30], [8, 2, 20, 28]]]
TURNS = [
    ("human", "<image> or <image>? <object:1> and <object:0> at <box:2>"),
    ("gpt", "at <box:0>"),
    ("human", "or <object:2>, [0.1, 0.2, 0.6, 0.7]?"),
    ("gpt", "a digit"),
]
USES = [{}, {"attach": "coordinates", "context": 0.2}, {"names": "obj{}"}]


def write_pictures(folder: Path) -> list[str]:
    """Two pictures of noise."""
    rng = np.random.default_rng(0)
    for name, shape in {"a.png": (48, 64), "b.png": (64, 48)}.items():
        Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(folder / name)
    return [str(folder / "a.png"), str(folder / "b.png")]


def train(paths: dict[str, str], pictures: list[str], **regions: Any) -> dict[str, Any]:
    """The training sample of the whole conversation."""
    folder = Path(pictures[0]).parent
    talk = [{"from": role, "value": text} for role, text in TURNS]
    record = {"id": "x", "image": ["a.png", "b.png"], "objects": OBJECTS, "conversations": talk}
    (folder / "records.json").write_text(json.dumps([record]))
    boxes = [{"id": f"x#{n}", "boxes": own, "labels": ["x", "y"]} for n, own in enumerate(BOXES)]
    (folder / "boxes.json").write_text(json.dumps(boxes))
    files = {"data_path": folder / "records.json", "image_folder": folder, "box_path": folder / "boxes.json"}
    processor = PictureProcessor(toy.CANVAS, regions=regions)
    return LLaVADataset(**files, tokenizer=paths["llm"], template="vicuna", picture_processor=processor)[0]
