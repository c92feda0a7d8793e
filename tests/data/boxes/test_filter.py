"""Which boxes stay, in which order, and why the others do not."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mg_llava.data.boxes import filter as box_filter
from mg_llava.data.boxes.filter import BoxLimits, BoxRules, cap_boxes, filter_boxes, nms
from mg_llava.data.pictures.processor import PictureProcessor
from mg_llava.data.records.schema import NO_BOXES, make_box_record


def test_nms_is_class_aware_and_ordered_by_score():
    boxes = np.array([[0, 0, 10, 10], [1, 0, 10, 10], [0, 0, 10, 10], [50, 50, 60, 60.0]])
    assert nms(boxes, np.array([0.5, 0.6, 0.7, 0.9]), ["a", "a", "b", "a"], 0.2).tolist() == [3, 2, 1]
    assert nms(np.zeros((0, 4)), np.zeros(0), [], 0.2).tolist() == []


def test_nms_ignores_other_labels_at_negative_coordinates_too():
    boxes = np.array([[600, 600, 700, 700], [-100, -100, 0, 0.0]])
    assert nms(boxes, np.array([0.5, 0.9]), ["a", "b"], 0.0).tolist() == [1, 0]


@given(st.integers(0, 10**6), st.integers(1, 120), st.integers(1, 6), st.sampled_from([0.0, 0.2, 0.5]))
@settings(max_examples=60)
def test_nms_equals_batched_nms_on_whole_pixels(seed, count, labels, iou):
    from torchvision.ops import batched_nms

    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 300, (count, 2))
    boxes = np.hstack([corners, corners + rng.integers(0, 120, (count, 2))]).astype(np.float64)
    scores, ids = rng.permutation(count) / count, rng.integers(0, labels, count)
    expected = batched_nms(torch.tensor(boxes).float(), torch.tensor(scores).float(), torch.tensor(ids), iou)
    assert nms(boxes, scores, [str(i) for i in ids], iou).tolist() == expected.tolist()


@pytest.mark.parametrize("count", [3, 1500])
def test_equal_scores_stay_in_their_order(count):
    boxes = np.array([[20.0 * i, 0, 20 * i + 9, 9] for i in range(count)])
    labels = [f"l{i % 7}" for i in range(count)]
    for iou in (None, 0.2):
        assert filter_boxes(boxes, np.full(count, 0.5), labels, BoxRules(iou, None)).kept.tolist() == list(
            range(count)
        )
    twins = np.repeat(boxes[:2], 2, axis=0)
    assert nms(twins, np.full(4, 0.5), ["a"] * 4, 0.2).tolist() == [0, 2]


def test_few_boxes_all_stay():
    assert cap_boxes(["a"] * 100, 100).tolist() == list(range(100))
    assert cap_boxes(["a"] * 500, None).tolist() == list(range(500))


def test_many_boxes_are_capped_per_label_and_grouped():
    labels = ["a", "b"] * 60
    assert cap_boxes(labels, 100).tolist() == [*range(0, 40, 2), *range(1, 41, 2)]
    assert cap_boxes(labels, 40).tolist() == [0, 2, 4, 6, 8, 1, 3, 5, 7, 9]
    assert len(cap_boxes(labels, 50)) == 40
    assert len(cap_boxes([str(i % 12) for i in range(400)], 100)) == 240


def test_cap_per_image_and_long_texts():
    labels = ["a", "b"] * 60
    assert cap_boxes(labels, 100, "per_image").tolist() == list(range(100))
    assert cap_boxes(labels, 100, "per_image", text_is_long=True).tolist() == list(range(20))
    assert cap_boxes(labels, 100, "per_category", text_is_long=True).tolist() == [0, 1]
    assert cap_boxes(labels, None, "per_category", text_is_long=True).tolist() == [0, 1]
    with pytest.raises(ValueError, match="allowed: 'per_category', 'per_image'"):
        cap_boxes(labels, 100, "both")


@pytest.mark.parametrize("count", [99, 100, 101, 150, 400])
@pytest.mark.parametrize("make", [lambda n: None, lambda n: [""] * n], ids=["no labels", "empty labels"])
def test_boxes_without_labels_are_no_class(count, make):
    """One box more never costs 80 tokens, whoever leaves the labels out."""
    corners = np.array([[12 * (i % 25), 12 * (i // 25)] for i in range(count)], dtype=float)
    record = make_box_record(np.hstack([corners, corners + 9]), np.linspace(1, 0.1, count), make(count))
    processor = PictureProcessor(336)
    size = (336, 336)
    _, index = processor.place(record, processor.canvas_of(size))
    assert index.tolist() == list(range(min(count, 100)))
    _, index = processor.place(record, processor.canvas_of(size), BoxLimits(text_is_long=True))
    assert index.tolist() == list(range(20))


def test_boxes_without_labels_beside_others():
    labels = ["", "a", "b"] * 60
    assert cap_boxes(labels, 100).tolist() == [*range(0, 180, 3), *range(1, 61, 3), *range(2, 62, 3)]
    assert cap_boxes(labels, 10).tolist() == [*range(0, 30, 3), *range(1, 16, 3), *range(2, 17, 3)]
    assert cap_boxes(labels, None, text_is_long=True).tolist() == [*range(0, 60, 3), 1, 2]


def test_room_keeps_the_best_in_their_order():
    labels = ["a", "b", "b"] * 50
    boxes, scores = np.zeros((150, 4)), np.linspace(1, 0.1, 150)
    rules = BoxRules(None, 40)
    assert filter_boxes(boxes, scores, labels, rules).kept.tolist() == [0, 3, 6, 9, 12, 1, 2, 4, 5, 7]
    assert filter_boxes(boxes, scores, labels, rules, BoxLimits(room=5)).kept.tolist() == [0, 3, 1, 2, 4]
    assert filter_boxes(boxes, scores, labels, rules, BoxLimits(room=0)).kept.tolist() == []


@given(
    st.lists(
        st.tuples(st.sampled_from("abcde"), st.floats(0, 1), st.integers(0, 50), st.integers(0, 50)), max_size=80
    ),
    st.one_of(st.none(), st.integers(1, 120)),
    st.sampled_from(["per_category", "per_image"]),
    st.booleans(),
    st.sampled_from([None, 0.2]),
)
@settings(max_examples=150)
def test_filter_properties(items, max_boxes, cap, text_is_long, iou):
    labels = [item[0] for item in items]
    scores = np.array([item[1] for item in items])
    boxes = np.array([[x, y, x + 9, y + 9] for _, _, x, y in items], dtype=np.float64).reshape(-1, 4)
    keep = filter_boxes(boxes, scores, labels, BoxRules(iou, max_boxes, cap), BoxLimits(text_is_long)).kept
    assert len(set(keep.tolist())) == len(keep) <= len(items)
    assert (len(keep) > 0) == (len(items) > 0)
    if cap == "per_image" and max_boxes is not None:
        assert len(keep) <= max_boxes
        assert (np.diff(scores.astype(np.float32)[keep]) <= 0).all()
    if text_is_long and cap == "per_category":
        assert len(keep) == len(set(labels))
    again = filter_boxes(boxes, scores, labels, BoxRules(iou, max_boxes, cap), BoxLimits(text_is_long)).kept
    assert keep.tolist() == again.tolist()


def test_scores_are_compared_in_float32():
    boxes = np.array([[0, 0, 9, 9], [50, 50, 60, 60], [0, 0, 9, 9]], dtype=float)
    assert filter_boxes(boxes, np.array([0.5, 0.5 + 1e-9, 0.6]), ["a", "b", "b"]).kept.tolist() == [2, 0, 1]


TIES = [
    (0.0, 8e-148),
    (0.0, 5e-46),
    (-0.0, 0.0),
    (1.0, 1 + 1e-9),
    (0.3, 0.3 + 1e-9),
    (1 / 3, float(np.float32(1 / 3))),
]


@pytest.mark.parametrize("pair", TIES)
def test_scores_that_float32_cannot_tell_apart_stay_in_their_order(pair):
    boxes, labels = np.array([[0, 0, 9, 9]] * 4, dtype=float), ["a", "b", "a", "b"]
    for first, second in (pair, pair[::-1]):
        scores = np.array([first, second, first, second])
        assert filter_boxes(boxes, scores, labels, BoxRules(None, None)).kept.tolist() == [0, 1, 2, 3]
        assert filter_boxes(boxes, scores, labels, BoxRules(None, 2, "per_image")).kept.tolist() == [0, 1]
        assert nms(boxes, scores, labels, 0.5).tolist() == [0, 1]


def test_result_does_not_depend_on_the_hash_seed():
    code = (
        f"import runpy; filter = runpy.run_path({box_filter.__file__!r});"  # without the package
        "import numpy as np;"
        "r = np.random.default_rng(1); b = r.integers(0, 90, (60, 2)).astype(float); b = np.hstack([b, b + 20]);"
        "rules = filter['BoxRules'](max_boxes=10);"
        "print(filter['filter_boxes'](b, r.integers(1, 4, 60) / 4, list('abcdef' * 10), rules).kept.tolist())"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1


LABELS = ("a", "b", "c")
processors = st.builds(
    PictureProcessor,
    image_size=st.integers(8, 100),
    pad_to_square=st.booleans(),
    mode=st.sampled_from(["reference", "exact"]),
    nms_iou=st.sampled_from([None, 0.2]),
    max_boxes=st.one_of(st.none(), st.integers(1, 12)),
    cap=st.sampled_from(["per_category", "per_image"]),
    resize=st.sampled_from(["shortest_edge", "squash"]),
)


@st.composite
def pictures(draw):
    """A size and boxes in, across and outside a picture of that size; scores with ties."""
    size = draw(st.tuples(st.integers(1, 80), st.integers(1, 80)))
    corner = st.tuples(st.floats(-60, 90), st.floats(-60, 90))
    items = draw(st.lists(st.tuples(corner, corner, st.sampled_from([0.3, 0.6, 0.9]), st.sampled_from(LABELS))))
    boxes = [[min(a[0], b[0]), min(a[1], b[1]), max(a[0], b[0]), max(a[1], b[1])] for a, b, _, _ in items]
    return size, make_box_record(boxes, [item[2] for item in items], [item[3] for item in items])


def overlap(first, second):
    """Of boxes as the filter sees them, in float32."""
    first, second = (np.asarray(box, np.float32).astype(np.float64) for box in (first, second))
    sides = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    shared = np.prod(np.maximum(sides, 0))
    union = np.prod(first[2:] - first[:2]) + np.prod(second[2:] - second[:2]) - shared
    return shared / union if union > 0 else 0.0


@given(processors, pictures(), st.booleans(), st.one_of(st.none(), st.integers(0, 8)))
@settings(max_examples=150)
def test_fates_agree_with_the_tokens(processor, picture, text_is_long, room):
    size, record = picture
    canvas = processor.canvas_of(size)
    limits = BoxLimits(text_is_long, room)
    placed, index = processor.place(record, canvas, limits)
    fates = processor.explain(size, record, limits)
    seen = processor(Image.new("RGB", size), record, limits)

    tokens = sorted((fate for fate in fates if fate.kept), key=lambda fate: fate.token)
    assert [fate.token for fate in tokens] == list(range(len(index)))
    np.testing.assert_array_equal(np.array([fate.place for fate in tokens]).reshape(-1, 4), placed)
    if not seen.is_empty:
        assert [fate.label for fate in tokens] == seen.labels and [fate.score for fate in tokens] == seen.scores
    assert seen.is_empty == (not tokens)
    if room is not None:
        assert len(seen.boxes) <= room
    assert all((fate.token is None) == (fate.reason != "kept") for fate in fates)
    np.testing.assert_array_equal(np.array([fate.box for fate in fates]).reshape(-1, 4), record.boxes)


@given(processors, pictures())
@settings(max_examples=100)
def test_reasons_are_true(processor, picture):
    size, record = picture
    fates = processor.explain(size, record)
    frame = record.boxes if processor.mode == "reference" else np.array([fate.place for fate in fates])
    canvas = processor.canvas_of(size)
    shown = np.clip(canvas.to_canvas(np.clip(record.boxes, 0, [*size, *size])), 0, canvas.size)
    visible = np.prod(shown[:, 2:] - shown[:, :2], axis=1)
    for number, fate in enumerate(fates):
        better = [
            other
            for other, rival in enumerate(fates)
            if rival.reason != "nms"
            and rival.label == fate.label
            and (-rival.score, other) < (-fate.score, number)
            and (processor.mode == "reference" or rival.reason not in ("outside", "too small"))
            and overlap(frame[other], frame[number]) > 0.2 - 1e-5
        ]
        if fate.reason == "nms":
            assert processor.nms_iou is not None and better
        if fate.reason == "cap":
            assert processor.max_boxes is not None
        if fate.reason == "too small":
            assert processor.mode == "exact"
            assert visible[number] < processor.min_box_area + 1e-6
        if processor.mode == "exact":
            if fate.reason == "outside":
                assert visible[number] < 1e-6
            if fate.reason in ("kept", "nms", "cap"):
                assert visible[number] >= processor.min_box_area - 1e-6


def test_every_reason_has_its_case():
    boxes = [[0, 0, 50, 50], [1, 0, 50, 50], [60, 60, 90, 90], [200, 0, 220, 20], [10, 80, 10.1, 80.1]]
    record = make_box_record(boxes, [0.9, 0.8, 0.7, 0.6, 0.5], ["a", "a", "b", "a", "a"])
    exact = PictureProcessor(100, mode="exact", max_boxes=1, cap="per_image")
    reasons = [fate.reason for fate in exact.explain((100, 100), record)]
    assert reasons == ["kept", "nms", "cap", "outside", "too small"]
    reference = PictureProcessor(100).explain((100, 100), record)
    assert [fate.reason for fate in reference] == ["kept", "nms", "kept", "outside", "kept"]
    assert [fate.token for fate in reference] == [0, None, 1, None, 2]
    assert reference[3].place == (200, 0, 220, 20)
    traced = filter_boxes(record.boxes, record.scores, record.labels, BoxRules(max_boxes=None))
    assert traced.reasons()[:2] == ["kept", "nms"]
    assert PictureProcessor(100).explain((100, 100), NO_BOXES) == []
    assert len(PictureProcessor(100)(Image.new("RGB", (9, 9)), NO_BOXES, BoxLimits(room=0)).boxes) == 0
