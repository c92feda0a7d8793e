"""Detectors on small models on disk: parity with transformers, batches, frames, limits and odd pictures."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from mg_llava.compat import picture_processor
from mg_llava.data.boxes.filter import BoxRules
from mg_llava.data.records.schema import NO_BOXES, BoxRecord, RecordError
from mg_llava.detection.boxes import tidy_boxes
from mg_llava.detection.files import BoxFile, CocoBoxes, ProposalDetector, YoloBoxes
from mg_llava.detection.grounding_dino import GroundingDINODetector
from mg_llava.detection.networks import split_text
from mg_llava.detection.owlv2 import OWLv2Detector
from mg_llava.detection.tags import PictureName, TagFile
from tests.detection import toys

SIZES = [(100, 60), (60, 100), (64, 64), (333, 50), (1, 1), (20_000, 100), (100, 20_000)]
TAGS = [("cat", "dog"), ("a b",), ("zebra", "cat", "horse"), (), ("x",), ("dog",), ("cat", "dog", "sheep", "y")]


def noise(size, seed=0):
    width, height = size
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("detectors")
    return {
        "owlv2": toys.write_owlv2(root / "owlv2"),
        "dino": toys.write_grounding_dino(root / "dino"),
    }


@pytest.fixture(scope="module")
def owlv2(folders):
    return OWLv2Detector(folders["owlv2"], threshold=0.1)


@pytest.fixture(scope="module")
def dino(folders):
    return GroundingDINODetector(folders["dino"], threshold=0.1)


def test_owlv2_does_what_transformers_does(folders, owlv2):
    from transformers import Owlv2ForObjectDetection

    tokenizer, processor = owlv2.tokenizer, picture_processor("Owlv2ImageProcessor", folders["owlv2"])
    model = Owlv2ForObjectDetection.from_pretrained(folders["owlv2"]).eval()
    for size, tags in [((100, 60), ("cat", "dog")), ((60, 90), ("zebra",)), ((700, 900), ("a", "b", "c"))]:
        image = noise(size)
        prompts = [f"a photo of {tag}" for tag in tags]
        inputs = tokenizer(prompts, padding="max_length", max_length=owlv2.limit, return_tensors="pt")
        inputs |= processor(images=image, return_tensors="pt")
        square = owlv2._square(owlv2.prepare(image))
        assert (square - inputs["pixel_values"][0]).abs().max() < 1e-5
        with torch.no_grad():
            outputs = model(**inputs)
        side = max(size)
        wanted = processor.post_process_object_detection(outputs, threshold=0.1, target_sizes=[(side, side)])[0]
        assert len(wanted["boxes"]) > 5
        record = BoxRecord(
            wanted["boxes"].double().numpy(),
            wanted["scores"].double().numpy(),
            tuple(tags[i] for i in wanted["labels"].tolist()),
        )
        wanted = tidy_boxes(record, size)
        found = owlv2([image], [tags])[0]
        assert found.labels == wanted.labels
        np.testing.assert_allclose(found.boxes, wanted.boxes, atol=1e-3)
        np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-5)


def test_grounding_dino_does_what_transformers_does(folders, dino):
    from transformers import GroundingDinoForObjectDetection

    processor = picture_processor("GroundingDinoImageProcessor", folders["dino"])
    model = GroundingDinoForObjectDetection.from_pretrained(folders["dino"]).eval()
    image = noise((192, 128))  # 72 x 48 after resizing: whole steps of 24 pixels, so without padding
    detector = GroundingDINODetector(folders["dino"], threshold=0.1, step=24)
    inputs = dino.tokenizer("cat. dog.", return_tensors="pt") | processor(images=image, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    probabilities = outputs.logits[0].sigmoid()
    best = probabilities[:, [1, 2, 3, 5, 6, 7]].max(dim=-1)  # the letters
    found = detector([image], [("cat", "dog")])[0]
    assert len(found) == int((best.values > 0.1).sum()) > 3
    order = best.values.argsort(descending=True)[: len(found)]
    np.testing.assert_allclose(found.scores, best.values[order], atol=1e-5)
    assert found.labels == tuple(("cat", "dog")[int(i) // 3] for i in best.indices[order])
    boxes = processor.post_process_object_detection(outputs, 0.0, [(128, 192)])[0]["boxes"][order]
    np.testing.assert_allclose(found.boxes, boxes.clamp(min=0).minimum(torch.tensor([192, 128] * 2)), atol=1e-2)


@pytest.mark.parametrize("name", ["owlv2", "dino"])
def test_batched_equals_one_by_one(name, request):
    detector = request.getfixturevalue(name)
    images = [noise(size, seed) for seed, size in enumerate(SIZES)]
    together = detector(images, TAGS)
    for image, tags, found in zip(images, TAGS, together, strict=True):
        alone = detector([image], [tags])[0]
        assert alone.labels == found.labels
        np.testing.assert_allclose(alone.boxes, found.boxes, atol=0.05)
        np.testing.assert_allclose(alone.scores, found.scores, atol=1e-4)
        assert (found.boxes >= 0).all() and (found.boxes <= np.tile(image.size, 2)).all()
    assert together[3] is NO_BOXES  # without tags
    assert sum(map(len, together)) > 15
    assert detector([], []) == []


def see_bright_object(monkeypatch, detector):
    """Make OWLv2 answer with the place of what is bright in the pixels that reach it."""
    found = []

    def look(pixel_values):
        for view in pixel_values.mean(dim=1):
            rows, columns = torch.nonzero(view > view.max() - 0.2, as_tuple=True)
            low = torch.stack([columns.min(), rows.min()]).float()
            high = torch.stack([columns.max(), rows.max()]).float() + 1
            found.append(torch.cat([(low + high) / 2, high - low]) / view.shape[-1])
        return (torch.zeros(len(pixel_values), 1, 1, 4),)

    stand_in = SimpleNamespace(
        image_embedder=look,
        class_predictor=lambda features, queries, mask: (torch.full((len(features), 1, queries.shape[1]), 5.0),),
        box_predictor=lambda features, feature_map: torch.stack(found[-len(features) :])[:, None],
        config=detector.model.config,
        owlv2=detector.model.owlv2,
    )
    monkeypatch.setattr(detector, "model", stand_in)


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((1000, 600), (400, 300, 700, 540)),
        ((1000, 600), (0, 500, 100, 600)),
        ((600, 1000), (300, 400, 540, 700)),
        ((640, 640), (100, 200, 400, 300)),
        ((3000, 200), (2000, 0, 2900, 200)),
        ((31, 64), (3, 20, 25, 50)),
    ],
)
def test_boxes_come_back_on_the_object(size, box, monkeypatch, folders, owlv2):
    """The network sees a padded square; its box must lie on the object in original pixels."""
    see_bright_object(monkeypatch, owlv2)
    image = Image.new("RGB", size)
    image.paste("white", box)
    found = owlv2([image], [("thing",)])[0]
    cell = max(size) / toys.SIDE  # the object's edge may fall anywhere in a pixel of the network's view
    np.testing.assert_allclose(found.boxes[0], box, atol=1.5 * cell)
    assert len(found) == 1 and found.labels == ("thing",)


def test_long_tags_are_split_not_cut(folders):
    limit = 24
    detector = OWLv2Detector(toys.write_owlv2_again(folders["owlv2"], limit), threshold=0.0)
    tag = "a green parrot on a branch antidisestablishmentarianism"
    prompts, owners = detector._prompts(("cat", tag))
    assert owners[0] == 0 and set(owners[1:]) == {1} and len(prompts) > 4
    assert "".join(prompt.removeprefix("a photo of ") for prompt in prompts[1:]).replace(" ", "") == tag.replace(
        " ", ""
    )
    assert all(len(detector.tokenizer(prompt)["input_ids"]) <= limit for prompt in prompts)
    found = detector([noise((64, 48))], [("cat", tag)])[0]
    assert len(found) > 0 and set(found.labels) <= {"cat", tag}


def test_many_tags_take_several_passes(dino):
    tags = tuple(f"thing number {i}" for i in range(9))
    texts = dino._texts(tags)
    assert len(texts) > 1 and max(len(text.ids) for text in texts) <= dino.limit
    assert [owner for text in texts for owner in dict.fromkeys(text.owners) if owner >= 0] == list(range(9))
    found = dino([noise((64, 48))], [tags])[0]
    assert set(found.labels) <= set(tags)
    parts = [tuple(tags[i] for i in dict.fromkeys(text.owners) if i >= 0) for text in texts]
    single = [dino([noise((64, 48))], [part])[0] for part in parts]
    assert len(found) == sum(map(len, single))


@given(st.text(alphabet="ab ", max_size=60), st.integers(1, 12))
def test_split_text_loses_nothing(text, limit):
    parts = split_text(text, lambda part: len(part) <= limit)
    assert all(len(part) <= limit for part in parts)
    assert "".join(parts).replace(" ", "") == text.replace(" ", "")


numbers = st.floats(-50, 150, allow_nan=False)


@settings(max_examples=50)
@given(st.lists(st.tuples(numbers, numbers, numbers, numbers, st.floats(0, 1), st.sampled_from("ab")), max_size=8))
@example([(0, 0, 9, 9, 0.0, "a"), (0, 0, 9, 9, 8e-148, "a")])  # equal in float32
def test_tidy_boxes(rows):
    corners = np.array([row[:4] for row in rows]).reshape(-1, 4)
    boxes = np.concatenate([np.minimum(corners[:, :2], corners[:, 2:]), np.maximum(corners[:, :2], corners[:, 2:])], 1)
    record = BoxRecord(boxes, np.array([row[4] for row in rows]), tuple(row[5] for row in rows))
    tidy = tidy_boxes(record, (100, 60))
    assert (tidy.boxes >= 0).all() and (tidy.boxes <= [100, 60, 100, 60]).all()
    assert (tidy.boxes[:, 2:] > tidy.boxes[:, :2]).all()
    assert (np.diff(tidy.scores.astype(np.float32)) <= 0).all()  # ordered as float32, see box_filter
    overlaps = (np.clip(boxes, 0, [100, 60, 100, 60])[:, 2:] > np.clip(boxes, 0, [100, 60, 100, 60])[:, :2]).all(1)
    assert len(tidy) == overlaps.sum()
    best = tidy_boxes(record, (100, 60), BoxRules(0.2, 2, "per_image"))
    assert len(best) <= 2 and set(best.labels) <= set(tidy.labels)
    if len(set(tidy.labels)) == 2:
        assert set(tidy_boxes(record, (100, 60), BoxRules(0.2, None, "per_image")).labels) == {
            "a",
            "b",
        }  # labels do not suppress each other


def test_coco_boxes(tmp_path):
    content = {
        "images": [{"id": 7, "file_name": "a.jpg", "width": 40, "height": 30}, {"id": 8, "file_name": "b.jpg"}],
        "categories": [{"id": 3, "name": "dog"}],
        "annotations": [
            {"image_id": 7, "category_id": 3, "bbox": [1.5, 2, 10, 20]},
            {"image_id": 7, "category_id": 3, "bbox": [0, 0, 5, 5], "iscrowd": 1},
        ],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content))
    results = [{"image_id": 8, "category_id": 3, "bbox": [0, 0, 4, 4], "score": 0.4}]
    (tmp_path / "results.json").write_text(json.dumps(results))
    detector, image = CocoBoxes(tmp_path / "coco.json"), Image.new("RGB", (40, 30))
    names = [PictureName("x", "train/a.jpg"), PictureName("7", ""), PictureName("y", "b.jpg")]
    first, by_id, empty = detector([image] * 3, names=names)
    assert first.boxes.tolist() == by_id.boxes.tolist() == [[1.5, 2, 11.5, 22]] and first.labels == ("dog",)
    assert len(empty) == 0
    found = CocoBoxes(tmp_path / "coco.json", tmp_path / "results.json")([image], names=[names[2]])[0]
    assert found.scores.tolist() == [0.4]
    with pytest.raises(RecordError, match=r"has no boxes for 'c\.jpg'"):
        detector([image], names=[PictureName("", "c.jpg")])
    with pytest.raises(RecordError, match=r"annotated as \(40, 30\), the picture has \(30, 40\)"):
        detector([Image.new("RGB", (30, 40))], names=[names[0]])
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(RecordError, match="not in COCO's format"):
        CocoBoxes(tmp_path / "bad.json")


def test_yolo_boxes(tmp_path):
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.2 0.4\n1 0.25 0.5 0.5 1.0 0.7\n\n1 0 0 0.5 0 0.5 0.5\n")
    (tmp_path / "bad.txt").write_text("9 0.5 0.5 0.2 0.4\n")
    detector, image = YoloBoxes(tmp_path, ["dog", "cat"]), Image.new("RGB", (100, 50))
    found = detector([image], names=[PictureName("", "images/a.jpg")])[0]
    assert found.boxes.tolist() == [[40, 15, 60, 35], [0, 0, 50, 25], [0, 0, 50, 50]]
    assert found.labels == ("dog", "cat", "cat") and found.scores.tolist() == [1, 1, 0.7]
    assert len(detector([image], names=[PictureName("", "b.jpg")])[0]) == 0
    with pytest.raises(RecordError, match=r"bad.txt, line 1"):
        detector([image], names=[PictureName("", "bad.jpg")])
    with pytest.raises(FileNotFoundError, match="no YOLO text files"):
        YoloBoxes(tmp_path / "none", ["dog"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("-1 0.5 0.5 0.2 0.4", "class -1; a number from 0 to 1"),
        ("2 0.5 0.5 0.2 0.4", "class 2; a number from 0 to 1"),
        ("0.5 0.5 0.5 0.2 0.4", "class 0.5; a number from 0 to 1"),
        ("0 0.5 0.5 0.2 0.4 7", "score 7; scores lie in 0..1"),
        ("0 50 25 20 20", "divide pixels by its width and height"),
        ("0 10 10 40 10 40 30", "divide pixels by its width and height"),
        ("0 0.5 0.5 0.2", "4 numbers"),
    ],
)
def test_yolo_labels_out_of_their_range_are_named(tmp_path, line, message):
    """Read as they stand they would be boxes of another class, or none."""
    (tmp_path / "a.txt").write_text(f"1 0.5 0.5 0.2 0.4\n{line}\n")
    with pytest.raises(RecordError, match=rf"a\.txt, line 2: .*{message}"):
        YoloBoxes(tmp_path, ["dog", "cat"]).look_up(PictureName("", "a.jpg"), (100, 50))


def test_a_byte_order_mark_is_no_part_of_labels(tmp_path):
    for name, text in {"a.txt": "1 0.5 0.5 0.2 0.4\n", "classes.txt": "dog\ncat\n"}.items():
        (tmp_path / name).write_text(text, "utf-8-sig")
    assert YoloBoxes(tmp_path).look_up(PictureName("", "a.jpg"), (100, 50)).labels == ("cat",)
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.2 0.4\n")
    assert YoloBoxes(tmp_path).look_up(PictureName("", "a.jpg"), (100, 50)).labels == ("dog",)
    coco = write_coco(tmp_path / "coco.json", [{"id": 1, "file_name": "a.jpg"}])
    coco.write_text(coco.read_text(), "utf-8-sig")
    assert CocoBoxes(coco).look_up(PictureName("", "a.jpg"), (9, 9)).labels == ("cat",)


def test_box_file_and_proposals(tmp_path):
    (tmp_path / "boxes.json").write_text(
        json.dumps([{"id": 3, "boxes": [[-4, 0, 90, 10]], "scores": [0.5], "labels": ["a"]}])
    )
    image = Image.new("RGB", (50, 40))
    image.paste("white", (10, 10, 20, 25))
    found = BoxFile(tmp_path / "boxes.json")([image], names=[PictureName("3", "x.jpg")])[0]
    assert found.boxes.tolist() == [[0, 0, 50, 10]]  # clipped
    assert ProposalDetector()([image])[0].boxes.tolist() == [[10, 10, 20, 25]]


@pytest.fixture
def yolo(tmp_path):
    """Labels of the same names in train and val, one of train alone, and one at the top."""
    labels = tmp_path / "labels"
    for name, left in {"train/0": 0.2, "val/0": 0.8, "train/only": 0.4, "top": 0.6, "val/top": 0.7}.items():
        (labels / name).parent.mkdir(parents=True, exist_ok=True)
        (labels / f"{name}.txt").write_text(f"0 {left} 0.5 0.1 0.1\n")
    (labels / "classes.txt").write_text("thing\n")
    return labels


def left_of(detector, path):
    record = detector.look_up(PictureName(path, path), (100, 100))
    return None if record is None else round(float(record.boxes[0, 0] + 5))


@pytest.mark.parametrize(
    ("path", "left"),
    [
        ("train/0.jpg", 20),
        ("images/train/0.jpg", 20),
        ("/data/coco/images/val/0.png", 80),
        ("only.jpg", 40),
        ("elsewhere/only.jpg", 40),
        ("top.jpg", 60),
        ("val/top.jpg", 70),
        ("none.jpg", None),
        ("train/1.jpg", None),
    ],
)
def test_yolo_files_are_told_apart_by_their_folders(yolo, path, left):
    assert left_of(YoloBoxes(yolo), path) == left


@pytest.mark.parametrize("path", ["0.jpg", "test/0.jpg", "images/0.png"])
def test_ambiguous_names_are_refused_by_name(yolo, path):
    with pytest.raises(RecordError, match=r"2 entries that may be .*: (train/0, val/0|val/0, train/0); name pictures"):
        left_of(YoloBoxes(yolo), path)


def write_coco(path, images):
    content = {"categories": [{"id": 1, "name": "cat"}], "images": images, "annotations": []}
    content["annotations"] = [
        {"image_id": image["id"], "category_id": 1, "bbox": [number, 0, 5, 5]} for number, image in enumerate(images)
    ]
    path.write_text(json.dumps(content))
    return path


def test_coco_images_of_one_name(tmp_path):
    names = ["a.jpg", "a.jpg", "x/b.jpg", "y/b.jpg"]
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    coco = CocoBoxes(write_coco(tmp_path / "coco.json", images))
    assert coco.look_up(PictureName("", "data/y/b.jpg"), (50, 50)).boxes[0, 0] == 3
    for path in ("a.jpg", "x/a.jpg", "b.jpg"):
        with pytest.raises(RecordError, match=r"coco\.json has 2 entries that may be"):
            coco.look_up(PictureName("", path), (50, 50))
    with pytest.raises(RecordError, match="id 7 stands for several images"):
        CocoBoxes(write_coco(tmp_path / "twice.json", [{"id": 7, "file_name": f"{n}.jpg"} for n in range(2)]))


@pytest.mark.parametrize("key", ["image_id", "category_id"])
def test_coco_boxes_of_what_the_file_does_not_name(tmp_path, key):
    path = write_coco(tmp_path / "coco.json", [{"id": 1, "file_name": "a.jpg"}])
    results = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "score": 0.5}]
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert CocoBoxes(path, tmp_path / "results.json")
    (tmp_path / "results.json").write_text(json.dumps([*results, {**results[0], key: 99}]))
    with pytest.raises(RecordError, match=rf"results\.json has boxes of {key} 99, which .*coco\.json does not name"):
        CocoBoxes(path, tmp_path / "results.json")


def test_a_coco_category_of_two_names(tmp_path):
    path = write_coco(tmp_path / "coco.json", [{"id": 1, "file_name": "a.jpg"}])
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "categories": [{"id": 1, "name": "cat"}] * 2}))
    assert CocoBoxes(path)
    path.write_text(json.dumps({**content, "categories": [{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}]}))
    with pytest.raises(RecordError, match=r"coco\.json: category 1 has several names"):
        CocoBoxes(path)


def test_tags_that_contradict_each_other(tmp_path):
    rows = [{"id": 1, "tags": ["a"]}, {"id": "1", "tags": ["a"]}, {"id": 2, "tags": "a|b"}]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert TagFile(tmp_path / "t.jsonl")([None], [PictureName("1")]) == [("a",)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"id": 1, "tags": ["c"]}]))
    with pytest.raises(RecordError, match=r"t\.jsonl: id '1' comes again with other tags"):
        TagFile(tmp_path / "t.jsonl")
    (tmp_path / "t.json").write_text('{"1": ["a"], "2": ["b"], "1": ["c"]}')
    with pytest.raises(RecordError, match=r"t\.json: id '1' comes again with other tags"):
        TagFile(tmp_path / "t.json")


def test_a_systems_detector_finds_the_same_on_its_own(tmp_path):
    """Boxes of a picture in the middle of a square canvas, in its own pixels; the command names it by a folder."""
    from mg_llava.detection.pipeline import build_pipeline

    folder = str(toys.write_detr(tmp_path / "detr"))
    pipeline = build_pipeline(f"detr:{folder}", threshold=0.4, device="cpu")
    detector = pipeline.detector
    for size in ((100, 50), (30, 90)):
        image = noise(size)
        (record,) = detector([image])
        found = detector.encoder(detector.processor(image).pixels[None]).detected
        kept = found.scores[0] >= 0.4
        assert 0 < kept.sum() and set(record.labels) <= {"LABEL_0", "LABEL_1", "LABEL_2"}
        side, offset = max(size), [(max(size) - own) / 2 for own in size]
        centers, sides = found.boxes[0, kept].split(2, dim=1)
        corners = torch.cat([centers - sides / 2, centers + sides / 2], dim=1).numpy() * side - [*offset, *offset]
        wanted = np.clip(corners, 0, [*size, *size])
        seen = (wanted[:, 2:] > wanted[:, :2]).all(1)
        assert np.allclose(record.boxes, wanted[seen], atol=1e-3)
        assert np.allclose(record.scores, found.scores[0, kept].numpy()[seen])
    with pytest.raises(ValueError, match="give either path"):
        type(detector)()
