"""Regions in the browser and in the doctor: object images on their boxes, tokens counted, wrong regions found."""

import json
from pathlib import Path
from typing import Any

import pytest

from mg_llava.batch import TokenCount
from mg_llava.data.dataset import LLaVADataset
from mg_llava.data.pictures.processor import PictureProcessor
from mg_llava.inspection.browse.drawing import draw_sample
from mg_llava.inspection.browse.samples import view_sample
from mg_llava.inspection.doctor import CheckOptions, check_dataset
from mg_llava.tokens import BOX_TOKEN_INDEX, OBJECT_TOKEN_INDEX
from tests import toy
from tests.regions import BOXES, OBJECTS, TURNS, USES, train, write_pictures

TOKENS = TokenCount(4, per_crop=2)


def files_of(toy_paths: dict[str, str], folder: Path) -> dict[str, Any]:
    train(toy_paths, write_pictures(folder))  # writes records and boxes
    files = {"data_path": folder / "records.json", "image_folder": folder, "box_path": folder / "boxes.json"}
    return {**files, "tokenizer": toy_paths["llm"], "template": "vicuna"}


@pytest.mark.parametrize("regions", USES, ids=str)
def test_the_browser_shows_object_images_on_their_boxes(toy_paths, tmp_path, regions) -> None:
    processor = PictureProcessor(toy.CANVAS, regions=regions)
    source = LLaVADataset(**files_of(toy_paths, tmp_path), picture_processor=processor, tokens=TOKENS)
    sample, view = source[0], view_sample(source, 0)
    assert view.length == len(sample["input_ids"]) - len(sample["tokens"]) + sum(sample["tokens"])
    assert len(view.pictures) == len(sample["images"])
    crops = [token for token in view.tokens if token.id == OBJECT_TOKEN_INDEX]
    assert [token.text for token in crops] == ["<object image: 2 tokens>"] * sum(sample["crops"])
    assert sum(token.id == BOX_TOKEN_INDEX for token in view.tokens) == (4 if "names" in regions else 0)
    first, second = (picture for picture in view.pictures if picture.path.endswith(".png"))
    assert second.regions[0][0] == "object image 0"
    assert second.regions[0][1] == pytest.approx(
        tuple(second.canvas.to_canvas(source.record(0).regions[1].box)), abs=0.5
    )
    assert first.path == "a.png" and len(first.regions) + len(second.regions) == sum(sample["crops"])
    assert draw_sample(view).size[1] > 3 * toy.CANVAS
    assert json.dumps(view.to_dict())


def test_the_doctor_names_regions_that_training_would_stumble_over(toy_paths, tmp_path) -> None:
    files = files_of(toy_paths, tmp_path)
    raw = json.loads((tmp_path / "records.json").read_text())[0]
    outside, far = ([*OBJECTS[:2], {"box": box}] for box in ([65, 49, 70, 54], [100, 100, 130, 130]))
    thin = [*OBJECTS[:2], {"box": [5, 5, 5.2, 9]}]
    many = [{"from": role, "value": text.replace("<object:2>", "<object:7>")} for role, text in TURNS]
    records = [raw, {**raw, "id": "out", "objects": outside}, {**raw, "id": "thin", "objects": thin}]
    records.append({**raw, "id": "far", "objects": far})
    records += [
        {**raw, "id": "more", "objects": [], "conversations": many},
        {**raw, "id": "none", "objects": [[1, 2]]},
    ]
    keys = [(f"{one['id']}#{n}", own) for one in records for n, own in enumerate(BOXES)]
    boxes = [{"id": key, "boxes": own, "labels": ["x", "y"]} for key, own in keys]
    (tmp_path / "records.json").write_text(json.dumps(records))
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    processor = {"type": "mg_llava.PictureProcessor", "image_size": toy.CANVAS}
    settings = {"type": "mg_llava.LLaVADataset", **files, "picture_processor": processor, "tokens": TOKENS}
    report = check_dataset(settings, CheckOptions(workers=1, show_progress=False))
    found = {kind: {one.id for one in some} for kind, some in report.sources[0].findings.examples.items()}
    assert found["box_outside"] == {"out"} and found["flat_box"] == {"thin"}
    assert found["object_convention"] == {"far"}
    assert found["placeholder_count"] == {"more"} and found["bad_record"] == {"none"}
    assert {name for names in found.values() for name in names} - {""} == {"out", "far", "thin", "more", "none"}
