"""Bootstrap intervals cover what they should; accuracy by boxes puts each question into its bucket."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mg_llava.evaluation.statistics import bootstrap_mean, break_down, facts_of, paired_bootstrap, scores_of

SCORES = st.lists(st.sampled_from([0.0, 0.3, 1.0]), min_size=1, max_size=40)


@given(values=SCORES)
def test_interval_holds_the_mean_and_stays_between_the_values(values: list[float]) -> None:
    found = bootstrap_mean(values, samples=200)
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9
    assert found.mean == pytest.approx(np.mean(values)) and found.n == len(values)


def test_interval_has_the_textbook_width() -> None:
    values = [1.0] * 300 + [0.0] * 100
    found = bootstrap_mean(values, samples=4000)
    half = 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert found.low == pytest.approx(0.75 - half, abs=0.005) and found.high == pytest.approx(0.75 + half, abs=0.005)
    assert bootstrap_mean(values, samples=4000) == found
    # four questions a picture, answered alike: as if there were a quarter of the questions
    grouped = bootstrap_mean(values, groups=[i // 4 for i in range(400)], samples=4000)
    assert (grouped.high - grouped.low) / (found.high - found.low) == pytest.approx(2, rel=0.1)


def test_groups_of_unequal_size_keep_the_mean_of_questions() -> None:
    found = bootstrap_mean([1.0, 1.0, 1.0, 0.0], groups=["a", "a", "a", "b"], samples=2000)
    assert found.mean == 0.75 and (found.low, found.high) == (0.0, 1.0)


def test_pairing_sees_what_single_intervals_do_not() -> None:
    baseline = {str(i): float(i % 2) for i in range(400)}
    better = {name: 1.0 if int(name) < 20 else score for name, score in baseline.items()}
    found = paired_bootstrap(better, baseline)
    assert found.mean == pytest.approx(10 / 400) and found.excludes_zero
    assert bootstrap_mean(list(better.values())).low < 0.5  # alone it could be the baseline
    assert paired_bootstrap(baseline, baseline).to_dict() == {"mean": 0, "low": 0, "high": 0, "n": 400}


def test_different_questions_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="'b'"):
        paired_bootstrap({"a": 1.0, "b": 0.0}, {"a": 1.0})
    with pytest.raises(ValueError, match="no scores"):
        paired_bootstrap({}, {})


def test_accuracy_by_boxes() -> None:
    samples = [
        {"id": 1, "boxes": 0},
        {"id": 2, "boxes": 10, "confidence": 0.25, "size": 0.05},
        {"id": 3, "boxes": 11, "confidence": 0.3, "size": 0.06},
        {"id": 4, "boxes": 400, "confidence": 0.9, "size": 0.5},
        {"id": 5},  # without a picture
    ]
    scores = scores_of([{"id": i, "score": i in (2, 4)} for i in range(1, 6)])
    tables = break_down(scores, facts_of(samples, {"2": 0.01, "3": 0.9}))
    shares = {title: {row["name"]: (row["n"], row["mean"]) for row in rows} for title, rows in tables.items()}
    assert shares["boxes per picture"] == {"0": (1, 0), "1-10": (1, 1), "11-20": (1, 0), "> 50": (1, 1)}
    assert shares["detector confidence"] == {"< 0.3": (1, 1), "0.3-0.5": (1, 0), ">= 0.5": (1, 1)}
    assert [n for n, _ in shares["mean size of the boxes"].values()] == [1, 1, 1]
    assert [mean for _, mean in shares["size of the annotated object"].values()] == [1, 0]
    assert break_down(scores, {}) == {}
