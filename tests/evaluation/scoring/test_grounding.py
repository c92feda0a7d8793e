"""The rule for boxes in replies: gold and shifted text, an oracle in plain numpy, and replies without a box."""

from typing import Any, get_args

import numpy as np
import pytest

from mg_llava.data.text.coordinates import BoxText, Style
from mg_llava.evaluation.scoring.grounding import compare_boxes, grounding_rule, read_reply


def random_case(rng: np.random.Generator) -> tuple[tuple[int, int], np.ndarray]:
    """Size of a picture, and a box in it that is large enough for the coarsest style."""
    size = int(rng.integers(400, 900)), int(rng.integers(400, 900))
    low = rng.uniform(0, 0.5, 2)
    return size, np.concatenate([low, low + rng.uniform(0.35, 0.48, 2)]) * np.tile(size, 2)


def oracle(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union by counting on the grid of all edges."""
    xs, ys = np.unique([*first[::2], *second[::2]]), np.unique([*first[1::2], *second[1::2]])
    areas = np.diff(ys)[:, None] * np.diff(xs)[None]
    middles = (ys[:-1] + ys[1:]) / 2, (xs[:-1] + xs[1:]) / 2
    inside = [
        ((box[1] < middles[0]) & (middles[0] < box[3]))[:, None] & ((box[0] < middles[1]) & (middles[1] < box[2]))
        for box in (first, second)
    ]
    return float(areas[inside[0] & inside[1]].sum() / areas[inside[0] | inside[1]].sum())


@pytest.mark.parametrize("frame", ["original", "padded"])
@pytest.mark.parametrize("style", get_args(Style))
def test_gold_text_is_right_and_shifted_text_is_wrong(style: Style, frame: Any) -> None:
    rng, writer = np.random.default_rng(0), BoxText(style, frame)
    samples: dict[str, list[dict[str, Any]]] = {"gold": [], "shifted": []}
    for _ in range(200):
        size, box = random_case(rng)
        target = (box / np.tile(size, 2))[None]
        side = box[2:] - box[:2]
        shift = np.where(box[:2] > side, -side, side)
        shifted = np.clip(box + np.tile(shift, 2), 0, np.tile(size, 2))
        for name, told in (("gold", box), ("shifted", shifted)):
            reply = read_reply(f"It is {writer.write(told[None], size)}.", size, writer)
            samples[name].append(compare_boxes(reply, target))
    gold, _ = grounding_rule(samples["gold"], range(200))
    shifted, _ = grounding_rule(samples["shifted"], range(200))
    assert gold["accuracy"] == gold["ACC@0.25"] == 1.0 and gold["IoU"] > 0.85 and gold["no_box"] == 0.0
    assert shifted["accuracy"] == shifted["ACC@0.25"] == 0.0 and shifted["no_box"] == 0.0


def test_overlaps_and_metrics_are_the_oracles() -> None:
    rng, writer = np.random.default_rng(1), BoxText("unit3", "padded")
    samples, expected, pictures = [], [], []
    for number in range(300):
        size, box = random_case(rng)
        told = np.sort((box + rng.normal(0, 0.1, 4) * np.tile(size, 2)).reshape(2, 2), axis=0).ravel()
        text = writer.write(told[None], size) if number % 10 else "no idea"
        reply = read_reply(text, size, writer)
        samples.append(compare_boxes(reply, (box / np.tile(size, 2))[None]))
        read = np.clip(writer.read(text, size).boxes, 0, np.tile(size, 2))
        expected.append(oracle(read[0], box) if len(read) else 0.0)
        pictures.append(number // 3)
    metrics, entries = grounding_rule(samples, pictures)
    ious = np.array(expected)
    np.testing.assert_allclose([entry["iou"] for entry in entries], ious, atol=1e-9)
    assert 0.2 < metrics["accuracy"] < 0.8
    for least in (0.25, 0.5, 0.75):
        assert metrics[f"ACC@{least}"] == pytest.approx((ious >= least).mean())
    assert metrics["IoU"] == pytest.approx(ious.mean()) and metrics["no_box"] == 0.1
    by_picture = (ious >= 0.5).reshape(100, 3).mean(axis=1)
    means = [rng.choice(by_picture, 100).mean() for _ in range(2000)]
    assert metrics["low"] == pytest.approx(np.quantile(means, 0.025), abs=0.015)
    assert metrics["high"] == pytest.approx(np.quantile(means, 0.975), abs=0.015)
    assert metrics["n_pictures"] == 100


def test_the_first_of_several_boxes_counts_and_what_is_none_is_wrong() -> None:
    target = np.array([[0.1, 0.1, 0.3, 0.3], [0.6, 0.6, 0.8, 0.8]])
    both = read_reply("[0.6, 0.6, 0.8, 0.8] or [0.1, 0.1, 0.3, 0.3]", None, BoxText("unit3", "original"))
    any_box = compare_boxes(both, target, "any_box")
    assert (any_box["score"], any_box["iou"], any_box["n_boxes"]) == (1.0, pytest.approx(1), 2)
    assert any_box["answer"] == [0.6, 0.6, 0.8, 0.8]
    merged = compare_boxes(both, target, "merged_boxes")
    assert merged["answer"] == [0.1, 0.1, 0.8, 0.8] and merged["score"] == 0.0
    assert merged["iou"] == pytest.approx(0.04 / 0.49)
    nothing = compare_boxes(read_reply("[0.1, 0.2, 0.3]", (9, 9), BoxText()), target)
    assert (nothing["score"], nothing["parsed"], nothing["n_failures"]) == (0, None, 1)
    assert nothing["center_inside"] is False
    metrics, _ = grounding_rule([any_box, nothing], ["a", "a"])
    assert metrics["accuracy"] == metrics["low"] == metrics["high"] == 0.5  # one picture: nothing to draw
    assert (metrics["several_boxes"], metrics["no_box"], metrics["n_malformed"]) == (0.5, 0.5, 1)
    flat = compare_boxes(read_reply("[0.1, 0.1, 0.1, 0.3]", None, BoxText("unit3", "original")), target)
    assert flat["iou"] == 0.0 and flat["parsed"] is not None
