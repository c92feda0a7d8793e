"""Augmentation of boxes: what it promises for any boxes and settings, and that its settings do what they say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mg_llava.data.boxes.augment import BoxAugmentation
from mg_llava.data.records.schema import NO_BOXES, make_box_record
from mg_llava.registry import TRANSFORMS

SIZE = (640, 480)

probability = st.floats(0, 1)
augmentations = st.builds(
    BoxAugmentation,
    drop_all=st.sampled_from([0.0, 0.3]),
    dropout=probability,
    cap_probability=probability,
    cap_range=st.tuples(st.integers(0, 5), st.integers(5, 40)),
    jitter=st.floats(0, 0.49),
    jitter_probability=probability,
)


@st.composite
def records(draw):
    """Boxes in, at, across and outside the edges of a picture of ``SIZE``, some without an area; each has a label."""
    corners = draw(st.lists(st.tuples(st.floats(-100, 700), st.floats(-100, 550)), max_size=12))
    sides = draw(st.lists(st.tuples(st.floats(0, 300), st.floats(0, 300)), min_size=12, max_size=12))
    scores = draw(st.lists(st.sampled_from([0.2, 0.5, 0.9]), min_size=12, max_size=12))
    boxes = [[x, y, x + width, y + height] for (x, y), (width, height) in zip(corners, sides, strict=False)]
    return make_box_record(boxes, scores[: len(boxes)], [str(number) for number in range(len(boxes))])


@given(records(), augmentations, st.integers(0, 1000))
@settings(max_examples=200)
def test_promises(record, augment, seed):
    before = record.boxes.copy()
    result = augment(record, SIZE, np.random.default_rng(seed))
    again = augment(record, SIZE, np.random.default_rng(seed))
    np.testing.assert_array_equal(result.boxes, again.boxes)
    np.testing.assert_array_equal(record.boxes, before)

    index = [int(label) for label in result.labels]
    assert index == sorted(set(index)) and len(result.boxes) == len(result.scores) == len(index)
    np.testing.assert_array_equal(result.scores, record.scores[index])
    assert np.isfinite(result.boxes).all() and (result.boxes[:, 2:] >= result.boxes[:, :2]).all()
    origin = record.boxes[index]
    changed = (result.boxes != origin).any(axis=1)
    moved = result.boxes[changed]
    assert (moved >= 0).all() and (moved <= [*SIZE, *SIZE]).all()
    assert (moved[:, 2:] > moved[:, :2]).all()
    inside = (origin >= 0).all(axis=1) & (origin <= [*SIZE, *SIZE]).all(axis=1)
    assert (result.boxes[inside] >= 0).all() and (result.boxes[inside] <= [*SIZE, *SIZE]).all()
    # No edge moves further than its share of the box, save to be clipped.
    reach = augment.jitter * np.tile(origin[:, 2:] - origin[:, :2], 2) + 1e-9
    clipped = np.clip(origin, 0, [*SIZE, *SIZE])
    near = (np.abs(result.boxes - origin) <= reach) | (np.abs(result.boxes - clipped) <= reach)
    assert near.all()


@given(records(), st.integers(0, 1000))
@settings(max_examples=50)
def test_zero_probabilities_change_nothing(record, seed):
    rng = np.random.default_rng(seed)
    assert BoxAugmentation()(record, SIZE, rng) is record
    assert BoxAugmentation(jitter=0.3, jitter_probability=0)(record, SIZE, rng) is record


def many(count=2000):
    rng = np.random.default_rng(0)
    corners = rng.uniform(100, 200, (count, 2))
    return make_box_record(np.hstack([corners, corners + 100]), rng.random(count), [str(i) for i in range(count)])


def test_settings_do_what_they_say():
    record, rng = many(), np.random.default_rng(1)
    assert BoxAugmentation(drop_all=1)(record, SIZE, rng) is NO_BOXES
    assert 900 < len(BoxAugmentation(dropout=0.5)(record, SIZE, rng)) < 1100
    share = np.mean([len(BoxAugmentation(drop_all=0.25)(many(1), SIZE, rng)) for _ in range(400)])
    assert 0.68 < share < 0.82
    moved = BoxAugmentation(jitter=0.2)(record, SIZE, rng).boxes - record.boxes
    assert 19 < np.abs(moved).max() <= 20 and abs(moved.mean()) < 1
    half = BoxAugmentation(jitter=0.2, jitter_probability=0.5)(record, SIZE, rng).boxes
    assert 900 < (half != record.boxes).any(axis=1).sum() < 1100


def test_cap_keeps_the_best():
    record, rng = many(50), np.random.default_rng(2)
    counts = set()
    for _ in range(60):
        left = BoxAugmentation(cap_probability=1, cap_range=(3, 6))(record, SIZE, rng)
        counts.add(len(left))
        assert sorted(left.scores, reverse=True) == sorted(record.scores, reverse=True)[: len(left)]
    assert counts == {3, 4, 5, 6}
    kept = [len(BoxAugmentation(cap_probability=0.5, cap_range=(3, 3))(record, SIZE, rng)) for _ in range(200)]
    assert set(kept) == {3, 50} and 70 < kept.count(3) < 130


def test_settings_do_not_disturb_each_other():
    record = many(40)
    plain = BoxAugmentation(dropout=0.5)(record, SIZE, np.random.default_rng(3))
    other = BoxAugmentation(dropout=0.5, jitter=0.1)(record, SIZE, np.random.default_rng(3))
    assert plain.labels == other.labels
    assert (plain.boxes != other.boxes).any()


def test_builds_from_a_config_and_names_all_wrong_arguments():
    built = TRANSFORMS.build(dict(type=BoxAugmentation, dropout=0.1, cap_range=[1, 5]))
    assert built == BoxAugmentation(dropout=0.1, cap_range=(1, 5))
    with pytest.raises(ValueError, match=r"dropout is 2.*jitter is 0.5.*cap_range is \(3, 1\)"):
        BoxAugmentation(dropout=2, jitter=0.5, cap_range=(3, 1))
