"""Samples with object images and named boxes, from records to the loss."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mg_llava.batch import TokenCount
from mg_llava.data.boxes.augment import CropAugmentation
from mg_llava.data.collate import collate
from mg_llava.data.dataset import LLaVADataset
from mg_llava.data.pictures.frames import crop_of
from mg_llava.data.pictures.processor import PictureProcessor
from mg_llava.data.text.budget import BudgetError
from mg_llava.models import FramePooling
from mg_llava.models.vision import FeatureExtractor
from mg_llava.tokens import BOX_TOKEN_INDEX, IMAGE_TOKEN_INDEX, OBJECT_TOKEN_INDEX
from tests import toy
from tests.features import fill

POOLER = {"type": FramePooling, "side": 2}
OBJECTS = [{"box": [2, 3, 30, 40]}, {"box": [20, 20, 44, 44], "picture": 1}, {"box": [5, 30, 25, 46]}]
TALKS = {
    "both": ("<image> or <image>? <object:1> and <object:0> at <box:2>", "at <box:0>", "or <object:2>?", "a digit"),
    "one": ("what is there?\n<image> at <box:0>", "two digits"),
    "none": ("what is there?", "two digits"),
}
PICTURES = {"both": ["a.png", "b.png"], "one": "a.png"}
BOXES = {
    "both#0": [[1, 1, 20, 20], [5, 5, 39, 29]],
    "both#1": [[4, 4, 30, 30], [8, 2, 20, 28]],
    "one": [[2, 2, 9, 9], [30, 9, 60, 40]],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures and records about both, one and none, with four boxes and three objects."""
    path, rng = tmp_path_factory.mktemp("regions"), np.random.default_rng(0)
    for name, shape in {"a.png": (48, 64), "b.png": (64, 48)}.items():
        Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(path / name)
    records = [
        {
            "id": name,
            "conversations": [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)],
            **({"image": PICTURES[name]} if name in PICTURES else {}),
            **({"objects": OBJECTS} if name == "both" else {}),
        }
        for name, texts in TALKS.items()
    ]
    (path / "records.json").write_text(json.dumps(records))
    boxes = [{"id": key, "boxes": own, "labels": ["x", "y"]} for key, own in BOXES.items()]
    (path / "boxes.json").write_text(json.dumps(boxes))
    return path


def build(folder: Path, paths: dict[str, str], tokens: TokenCount | None, **changes: Any) -> LLaVADataset:
    processor = PictureProcessor(toy.CANVAS, regions=changes.pop("regions", {}))
    files = {"data_path": folder / "records.json", "image_folder": folder, "box_path": folder / "boxes.json"}
    arguments = {"tokenizer": paths["llm"], "template": "vicuna", "picture_processor": processor, "tokens": tokens}
    return LLaVADataset(**{**files, **arguments, **changes})


@pytest.fixture(scope="module")
def model(toy_paths: dict[str, str]) -> torch.nn.Module:
    return toy.build_model(toy_paths, object_pooler=POOLER).eval()


def loss_of(model: torch.nn.Module, samples: list[dict[str, Any]]) -> torch.Tensor:
    return model(collate(samples)["data"])["loss"].double()


@pytest.mark.parametrize("names", ["", "obj{}"])
def test_a_sample_has_the_same_loss_alone_and_beside_others(folder, toy_paths, model, names) -> None:
    dataset = build(folder, toy_paths, model.token_count, regions={"names": names})
    samples = [dataset[number] for number in range(3)]
    both = samples[0]
    assert both["crops"] == [False, False, True, True, True] and len(both["images"]) == 5
    assert [len(boxes) for boxes in both["boxes"]] == [2, 2, 0, 0, 0]
    places = [token for token in both["input_ids"] if token < 0 and token != BOX_TOKEN_INDEX]
    assert places == [*[IMAGE_TOKEN_INDEX] * 2, *[OBJECT_TOKEN_INDEX] * 3]
    assert both["input_ids"].count(BOX_TOKEN_INDEX) == (4 if names else 0)
    with torch.no_grad():
        alone = [loss_of(model, [sample]) for sample in samples]
        weights = [sum(label >= 0 for label in sample["labels"]) for sample in samples]
        together = loss_of(model, [samples[1], samples[2], samples[0]])
    expected = sum(loss * weight for loss, weight in zip(alone, weights, strict=True)) / sum(weights)
    assert float(together) == pytest.approx(float(expected), abs=1e-5)


def test_tokens_of_object_images_are_their_own(folder, toy_paths, model) -> None:
    dataset = build(folder, toy_paths, model.token_count)
    sample = dataset[0]
    picture, crop = model.token_count.per_canvas, model.token_count.per_crop
    assert (picture, crop) == (4, 1) and sample["tokens"] == [picture + 2, picture + 2, crop, crop, crop]
    data = collate([sample])["data"]
    seen = model.see(data)
    assert [[segment.kind for segment in own] for own in seen] == [["visual", "object"]] * 2 + [["crop"]] * 3
    moved = {**data, "canvas": data["canvas"].clone()}
    moved["canvas"][3] += 60
    changed = [not torch.equal(a[0].tokens, b[0].tokens) for a, b in zip(seen, model.see(moved), strict=True)]
    assert changed == [False, False, False, True, False]


def test_crops_are_the_zoomed_part_of_the_original(folder, toy_paths) -> None:
    sample = build(folder, toy_paths, None)[0]
    image = Image.open(folder / "b.png")
    part = image.crop((20, 20, 44, 44)).resize((toy.CANVAS, toy.CANVAS), Image.Resampling.BICUBIC)
    assert torch.equal(sample["images"][2], torch.from_numpy(np.array(part)).permute(2, 0, 1))
    wide = build(folder, toy_paths, None, regions={"context": 0.5})[0]
    part = image.crop((8, 8, 48, 56))
    canvas = PictureProcessor(toy.CANVAS).draw(part, PictureProcessor(toy.CANVAS).canvas_of(part.size))
    assert torch.equal(wide["images"][2], canvas)


def test_object_images_change_in_training_with_seed_and_epoch_alone(folder, toy_paths) -> None:
    change = {"type": "mg_llava.CropAugmentation"}
    plain, dataset = (
        build(folder, toy_paths, None),
        build(folder, toy_paths, None, boxes={"crop_augmentation": change}),
    )
    first, again = dataset[0]["images"], dataset[0]["images"]
    dataset.set_epoch(1)
    later = dataset[0]["images"]
    for number, image in enumerate(plain[0]["images"]):
        is_crop = number >= 2
        assert torch.equal(first[number], again[number])
        assert torch.equal(first[number], image) != is_crop and torch.equal(first[number], later[number]) != is_crop


def test_changed_regions_stay_near() -> None:
    rng = np.random.default_rng(0)
    change = CropAugmentation(context=0.5, shift=0.1, brightness=0.2)
    moved = np.array([change.move((10, 20, 30, 60), rng) for _ in range(500)])
    least, most = np.array([10 - 12, 20 - 24, 30 - 2, 60 - 4]), np.array([10 + 2, 20 + 4, 30 + 12, 60 + 24])
    assert (moved >= least).all() and (moved <= most).all() and (np.ptp(moved, axis=0) > 0.8 * (most - least)).all()
    gray = change.brighten(torch.full((3, 2, 2), 100, dtype=torch.uint8), rng)
    assert gray.dtype == torch.uint8 and 80 <= int(gray[0, 0, 0]) <= 120
    with pytest.raises(ValueError, match="shift"):
        CropAugmentation(shift=2)


def test_crops_are_whole_pixels_of_the_picture() -> None:
    rng = np.random.default_rng(0)
    for _ in range(2000):
        size = tuple(rng.integers(1, 50, 2).tolist())
        corners = np.sort(rng.uniform(-60, 110, (2, 2)), axis=0)
        left, top, right, bottom = crop_of(corners.flatten().tolist(), size, float(rng.choice([0, 0.5, 3])))
        assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]


def test_the_budget_counts_object_images_and_names(folder, toy_paths, model) -> None:
    whole = build(folder, toy_paths, model.token_count)
    lengths = [len(whole[n]["input_ids"]) + sum(whole[n].get("tokens", ())) - len(whole[n]["boxes"]) for n in range(3)]
    for limit in range(lengths[0] - 6, lengths[0] + 1):
        sample = build(folder, toy_paths, model.token_count, budget={"context_length": limit})[0]
        assert len(sample["input_ids"]) - 5 + sum(sample["tokens"]) <= limit and len(sample["images"]) == 5
    with pytest.raises(BudgetError, match="3 object images of 1"):
        build(folder, toy_paths, model.token_count, budget={"context_length": 11})
    counts = []
    for limit in range(40, 110):
        settings = {"regions": {"names": "obj{}"}, "budget": {"context_length": limit}}
        sample = build(folder, toy_paths, model.token_count, **settings)[1]
        boxes = sample["input_ids"].count(BOX_TOKEN_INDEX)
        assert len(sample["input_ids"]) - 1 - boxes + sum(sample["tokens"]) <= limit
        counts.append(boxes)
    assert counts == sorted(counts) and {0, 1, 2} == set(counts)


def test_a_model_without_object_images_refuses_them(folder, toy_paths, model) -> None:
    with pytest.raises(ValueError, match="give it an object_pooler"):
        build(folder, toy_paths, TokenCount(4))
    plain = toy.build_model(toy_paths).eval()
    with pytest.raises(ValueError, match="object_pooler"):
        plain(collate([build(folder, toy_paths, None)[0]])["data"])
    with pytest.raises(ValueError, match="fusion that keeps them"):
        toy.build_model(toy_paths, object_pooler=POOLER, fusion={"type": "mg_llava.ChannelConcatFusion"})


def test_pictures_from_a_feature_cache_go_with_new_object_images(folder, toy_paths, model, tmp_path) -> None:
    dataset = build(folder, toy_paths, model.token_count)
    plain = [dataset[number] for number in range(3)]
    fill(dataset, tmp_path, FeatureExtractor(model))
    cached = build(folder, toy_paths, model.token_count, caches={"feature_cache": tmp_path})
    samples = [cached[number] for number in range(3)]
    assert samples[0]["cached"] == [True, True, False, False, False] and len(samples[0]["images"]) == 3
    model.cached.accept(cached.features.cache.about["encoders"], cached.features.cache.name)
    with torch.no_grad():
        assert float(loss_of(model, samples)) == pytest.approx(float(loss_of(model, plain)), abs=1e-5)
