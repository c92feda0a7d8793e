"""Which boxes stay, and in which order."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mg_llava.data.box_filter import cap_boxes, filter_boxes, nms


def test_nms_is_class_aware_and_ordered_by_score():
    boxes = np.array([[0, 0, 10, 10], [1, 0, 10, 10], [0, 0, 10, 10], [50, 50, 60, 60.0]])
    assert nms(boxes, np.array([0.5, 0.6, 0.7, 0.9]), ["a", "a", "b", "a"], 0.2).tolist() == [3, 2, 1]
    assert nms(np.zeros((0, 4)), np.zeros(0), [], 0.2).tolist() == []


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


@given(
    st.lists(
        st.tuples(st.sampled_from("abcde"), st.floats(0, 1), st.integers(0, 50), st.integers(0, 50)), max_size=80
    ),
    st.one_of(st.none(), st.integers(1, 120)),
    st.sampled_from(["per_category", "per_image"]),
    st.booleans(),
    st.sampled_from([None, 0.2]),
)
@settings(max_examples=150, deadline=None)
def test_filter_properties(items, max_boxes, cap, text_is_long, iou):
    labels = [item[0] for item in items]
    scores = np.array([item[1] for item in items])
    boxes = np.array([[x, y, x + 9, y + 9] for _, _, x, y in items], dtype=np.float64).reshape(-1, 4)
    keep = filter_boxes(boxes, scores, labels, iou, max_boxes, cap, text_is_long)
    assert len(set(keep.tolist())) == len(keep) <= len(items)
    assert (len(keep) > 0) == (len(items) > 0)
    if cap == "per_image" and max_boxes is not None:
        assert len(keep) <= max_boxes
        assert (np.diff(scores[keep]) <= 1e-6).all()
    if text_is_long and cap == "per_category":
        assert len(keep) == len(set(labels))
    again = filter_boxes(boxes, scores, labels, iou, max_boxes, cap, text_is_long)
    assert keep.tolist() == again.tolist()


def test_result_does_not_depend_on_the_hash_seed():
    code = (
        "import numpy as np; from mg_llava.data.box_filter import filter_boxes;"
        "r = np.random.default_rng(1); b = r.integers(0, 90, (60, 2)).astype(float); b = np.hstack([b, b + 20]);"
        "print(filter_boxes(b, r.integers(1, 4, 60) / 4, list('abcdef' * 10), max_boxes=10).tolist())"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1
