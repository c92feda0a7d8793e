"""Coordinates: golden examples, equality with transformers, round trips, both modes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mg_llava.data.pictures.frames import Canvas
from mg_llava.data.pictures.geometry import PAD_COLOR, picture_to_canvas, place_boxes
from mg_llava.data.pictures.processor import PictureProcessor
from mg_llava.data.records.schema import NO_BOXES, make_box_record

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "geometry.json").read_text())
MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])
RNG = np.random.default_rng(0)

EXAMPLES = {
    "two_labels_in_one_place": (
        (1000, 600),
        [[10, 20, 110, 220], [15, 25, 115, 225], [900, 500, 1200, 700], [400, 300, 600, 500], [402, 298, 598, 505]],
        ["cat", "cat", "dog", "cat", "dog"],
        [0.9, 0.8, 0.7, 0.6, 0.65],
        [[8, 169, 84, 323], [691, 538, 768, 691], [309, 382, 459, 541], [307, 384, 461, 538]],
        ["cat", "dog", "dog", "cat"],
    ),
    "portrait": ((333, 500), [[0, 0, 333, 500]], ["x"], [0.5], [[127, 0, 639, 768]], ["x"]),
    "shift_by_one": (
        (591, 591),
        [[10, 10, 100, 100], [0, 0, 591, 591]],
        ["y", "z"],
        [0.5, 0.4],
        [[14, 14, 131, 131], [1, 1, 768, 768]],
        ["y", "z"],
    ),
    "no_boxes": ((640, 480), [], [], [], [[0, 0, 0, 0]], [""]),
    "reaches_into_padding": (
        (640, 480),
        [[-30, -20, 50, 60], [600, 400, 700, 520]],
        ["a", "b"],
        [0.3, 0.4],
        [[720, 576, 768, 720], [0, 72, 60, 168]],
        ["b", "a"],
    ),
    "outside": ((640, 480), [[700, 100, 800, 200]], ["a"], [0.3], [[0, 0, 0, 0]], [""]),
    "touches_the_edge": ((640, 480), [[640, 100, 800, 200]], ["a"], [0.3], [[768, 216, 768, 336]], ["a"]),
    "tiny_picture": ((7, 4), [[1, 1, 3, 3]], ["a"], [0.3], [[110, 219, 329, 439]], ["a"]),
}


def noise(width, height):
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", EXAMPLES)
def test_reference_mode_equals_examples(name):
    (width, height), boxes, labels, scores, expected, expected_labels = EXAMPLES[name]
    out = PictureProcessor(768)(Image.new("RGB", (width, height)), make_box_record(boxes, scores, labels))
    assert out.boxes.dtype == torch.float32
    assert out.boxes.tolist() == expected
    assert out.labels == expected_labels
    assert len(out.scores) == len(out.labels) == len(out.boxes)
    assert out.is_empty == (name in ("no_boxes", "outside"))


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['width']}x{case['height']}")
def test_reference_mode_equals_golden(case):
    processor = PictureProcessor(768, nms_iou=case["iou_threshold"])
    record = make_box_record(case["boxes"], case["scores"], case["labels"])
    out = processor(Image.new("RGB", (case["width"], case["height"])), record)
    assert out.boxes.tolist() == case["out_boxes"]
    if out.is_empty:
        assert case["out_labels"] == [] and out.labels == [""]
    else:
        assert out.labels == case["out_labels"]
        assert out.scores == pytest.approx(case["out_scores"])


@pytest.mark.parametrize("size", [32, 768])
@pytest.mark.parametrize("shape", [(64, 48), (37, 91), (50, 50), (7, 4), (301, 200)])
def test_pixels_equal_clip_processor(size, shape):
    from transformers import CLIPImageProcessor

    processor = CLIPImageProcessor(size={"shortest_edge": size}, crop_size=size, image_mean=MEAN, image_std=STD)
    image = noise(*shape)
    for pad in (True, False):
        picture = image
        if pad:
            side = max(shape)
            picture = Image.new("RGB", (side, side), tuple(int(255 * m) for m in MEAN))
            picture.paste(image, ((side - shape[0]) // 2, (side - shape[1]) // 2))
        expected = processor(picture, return_tensors="np")["pixel_values"][0]
        pixels = picture_to_canvas(image, Canvas(*shape, size, pad_to_square=pad)).transpose(1, 2, 0)
        assert pixels.dtype == np.uint8
        np.testing.assert_allclose((pixels / 255 - MEAN).transpose(2, 0, 1) / STD[:, None, None], expected, atol=1e-5)


def test_squash_equals_siglip_processor():
    from transformers import SiglipImageProcessor

    processor = SiglipImageProcessor(size={"height": 48, "width": 48})
    image = noise(70, 33)
    canvas = Canvas(70, 33, 48, pad_to_square=False, resize="squash")
    pixels = picture_to_canvas(image, canvas).transpose(1, 2, 0)
    expected = processor(image, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose((pixels / 255 - 0.5).transpose(2, 0, 1) / 0.5, expected, atol=1e-5)
    boxes, kept = place_boxes(np.array([[7.0, 3.3, 35.0, 33.0]]), Canvas(70, 33, 48, False, "squash"))
    np.testing.assert_allclose(boxes, [[4.8, 4.8, 24, 48]])
    assert kept.tolist() == [0]


def test_cropped_boxes_are_shifted_and_clipped():
    canvas = Canvas(200, 100, 50, pad_to_square=False)
    boxes = np.array([[50.0, 0, 150, 100], [0, 0, 20, 20], [90, 20, 190, 40]])
    for mode in ("reference", "exact"):
        placed, kept = place_boxes(boxes, canvas, mode)
        assert placed.tolist() == [[0, 0, 50, 50], [20, 10, 50, 20]]
        assert kept.tolist() == [0, 2]


@pytest.mark.parametrize("mode", ["reference", "exact"])
@pytest.mark.parametrize(("width", "height"), [(640, 360), (360, 640), (320, 240), (97, 211), (50, 50)])
def test_cropped_boxes_lie_on_what_they_are_about(width, height, mode):
    """A bright mark on a dark frame, cropped as the reference crops frames: its box is found in the pixels."""
    processor = PictureProcessor(96, pad_to_square=False, mode=mode, nms_iou=None)
    rng = np.random.default_rng(width)
    for _ in range(12):
        corners = np.sort(rng.integers(0, (width, height), (2, 2)), axis=0) + np.array([[0, 0], [9, 9]])
        box = np.minimum(corners, (width, height)).flatten().tolist()
        picture = Image.new("RGB", (width, height))
        picture.paste((255, 255, 255), tuple(box))
        out = processor(picture, make_box_record([box]))
        rows, columns = np.where(out.pixels[0].numpy() > 127)
        if not len(rows):
            assert out.is_empty or (out.boxes[0, 2:] - out.boxes[0, :2]).min() <= 2, "only what the crop cuts off"
            continue
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(out.boxes[0], seen, atol=1.5)


CROPPED = {
    "cut at the left": ((1280, 720), [100, 100, 500, 400], [0, 107, 235, 427]),
    "inside": ((1280, 720), [400, 90, 700, 633], [129, 96, 449, 675]),
    "cut at the right": ((640, 480), [500, 20, 640, 460], [672, 32, 768, 736]),
    "only its edge": ((1280, 720), [100, 0, 279, 720], [0, 0, 0, 768]),
    "cut off": ((1280, 720), [0, 0, 278, 720], None),
    "cut above": ((480, 640), [0, 0, 480, 100], [0, 0, 768, 32]),
}


@pytest.mark.parametrize("name", CROPPED)
def test_cropped_frames_have_the_boxes_of_the_reference(name):
    """By hand: times 768 over the shorter side, rounded half to even, minus half of what is over, clipped."""
    (width, height), box, expected = CROPPED[name]
    out = PictureProcessor(768, pad_to_square=False)(Image.new("RGB", (width, height)), make_box_record([box]))
    assert out.is_empty == (expected is None) and (out.is_empty or out.boxes[0].tolist() == expected)


def test_exact_mode_clips_to_the_picture_and_has_no_shift():
    processor = PictureProcessor(768, mode="exact", nms_iou=None)
    record = make_box_record(
        [[-30, -20, 50, 60], [640, 100, 800, 200], [10, 10, 10.2, 10.2], [0.5, 0, 640, 480]], [0.9, 0.8, 0.7, 0.6]
    )
    out = processor(Image.new("RGB", (640, 480)), record)
    np.testing.assert_allclose(out.boxes, [[0, 96, 60, 168], [0.6, 96, 768, 672]], atol=1e-4)
    assert out.scores == [0.9, 0.6]
    whole = processor(Image.new("RGB", (591, 591)), make_box_record([[0, 0, 591, 591]]))
    np.testing.assert_allclose(whole.boxes, [[0, 0, 768, 768]], atol=1e-4)


@pytest.mark.parametrize(
    ("policy", "expected"), [("corner", [[0, 0, 0, 0]]), ("none", []), ("picture", [[0, 96, 768, 672]])]
)
@pytest.mark.parametrize("record", [None, NO_BOXES, make_box_record([[700, 0, 800, 10]])])
def test_policies_for_no_box(policy, expected, record):
    out = PictureProcessor(768, empty_box=policy)(Image.new("RGB", (640, 480)), record)
    assert out.is_empty and out.boxes.shape == (len(expected), 4)
    assert out.boxes.tolist() == expected
    assert len(out.labels) == len(out.scores) == len(expected)


sides = st.integers(1, 3000)
canvases = st.builds(
    Canvas, sides, sides, st.integers(8, 1024), st.booleans(), st.sampled_from(["shortest_edge", "squash"])
)
coordinate = st.floats(-4000, 4000, allow_nan=False)


@given(canvases, st.lists(st.tuples(coordinate, coordinate, coordinate, coordinate), max_size=6))
@settings(max_examples=150)
def test_round_trip(canvas, boxes):
    boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    before = boxes.copy()
    np.testing.assert_allclose(canvas.to_original(canvas.to_canvas(boxes)), boxes, atol=1e-6)
    assert (boxes == before).all()


@given(canvases, st.lists(st.tuples(coordinate, coordinate, coordinate, coordinate), max_size=12), st.data())
@settings(max_examples=150)
def test_placed_boxes_lie_on_the_canvas(canvas, corners, data):
    boxes = np.array([[min(a, c), min(b, d), max(a, c), max(b, d)] for a, b, c, d in corners]).reshape(-1, 4)
    mode = data.draw(st.sampled_from(["reference", "exact"]))
    placed, kept = place_boxes(boxes, canvas, mode)
    assert len(placed) == len(kept) and (np.diff(kept) > 0).all()
    if mode == "exact":
        lower, upper = np.tile(canvas.picture_box[:2], 2), np.tile(canvas.picture_box[2:], 2)
        assert (placed >= lower - 1e-9).all() and (placed <= upper + 1e-9).all()
        assert ((placed[:, 2:] - placed[:, :2]).prod(axis=1) >= 1.0).all()
        assert ((placed[:, 2:] > placed[:, :2]).all(axis=1)).all()
    elif canvas.resize == "shortest_edge":
        assert (placed >= 0).all() and (placed <= canvas.size).all()
        assert (placed == np.round(placed)).all()


@given(st.integers(1, 400), st.integers(1, 400))
@settings(max_examples=25)
def test_a_marked_rectangle_is_where_its_box_says(width, height):
    image = Image.new("RGB", (width, height))
    box = [width // 4, height // 4, width // 4 + (width + 1) // 2, height // 4 + (height + 1) // 2]
    image.paste((255, 255, 255), tuple(box))
    out = PictureProcessor(64, mode="exact", min_box_area=0, pad_color=(0, 0, 0))(image, make_box_record([box]))
    rows, columns = np.where(out.pixels[0].numpy() > 127)
    if len(rows):
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(found, out.boxes[0].numpy(), atol=1.75)  # bicubic blur
    else:
        assert (out.boxes[0, 2:] - out.boxes[0, :2]).min() < 1.5


def test_wrong_arguments_are_named_together():
    for name, value in [
        ("image_size", 33.5),
        ("image_size", "336"),
        ("max_boxes", 0),
        ("max_boxes", 2.5),
        ("nms_iou", float("nan")),
        ("min_box_area", -1),
        ("min_box_area", float("nan")),
        ("pad_color", (300, 0, 0)),
        ("pad_color", (1, 2)),
    ]:
        with pytest.raises(ValueError, match=f"{name} is "):
            PictureProcessor(**{"image_size": 32, name: value})
    with pytest.raises(ValueError, match=r"mode is 'x'.*image_size is 0"):
        PictureProcessor(0, mode="x")
    with pytest.raises(ValueError, match="allowed: 'shortest_edge', 'squash'"):
        Canvas(4, 4, 4, resize="fit")
    with pytest.raises(ValueError, match="allowed: 'reference', 'exact'"):
        place_boxes(np.zeros((0, 4)), Canvas(4, 4, 4), "other")
    with pytest.raises(ValueError, match="mode RGB"):
        picture_to_canvas(Image.new("L", (4, 4)), Canvas(4, 4, 8))


def test_processor_changes_nothing():
    processor = PictureProcessor(32)
    image, record = noise(40, 20), make_box_record([[1, 2, 10, 12], [0, 0, 5, 5]], [0.1, 0.9], ["a", "b"])
    pixels, boxes, settings_before = np.array(image), record.boxes.copy(), processor.to_dict()
    first, second = processor(image, record), processor(image, record)
    assert torch.equal(first.pixels, second.pixels) and torch.equal(first.boxes, second.boxes)
    assert (np.array(image) == pixels).all() and (record.boxes == boxes).all()
    assert processor.to_dict() == settings_before and processor == PictureProcessor(**settings_before)
    with pytest.raises(AttributeError):
        processor.image_size = 64


def test_processor_builds_from_the_registry():
    from mmengine.registry import TRANSFORMS

    processor = TRANSFORMS.build(dict(type="mg_llava.PictureProcessor", image_size=9, pad_color=[1, 2, 3]))
    assert processor(Image.new("RGB", (9, 1))).pixels[:, 0, 0].tolist() == [1, 2, 3]


@given(st.integers(1, 260), st.integers(1, 260), st.sampled_from([1, 32, 96, 100, 333, 768]))
@settings(max_examples=120)
def test_the_band_of_the_picture_has_the_values_of_the_whole_square(width, height, size):
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    picture, canvas = Image.fromarray(pixels), Canvas(width, height, size)
    square = Image.new("RGB", canvas.padded_size, PAD_COLOR)
    square.paste(picture, canvas.pad_offset)
    expected = np.asarray(square.resize((size, size), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(picture_to_canvas(picture, canvas).transpose(1, 2, 0), expected)
