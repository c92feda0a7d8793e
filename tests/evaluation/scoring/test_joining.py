"""Predictions that meet no question, several or none are counted and named; none of them is a silent zero."""

from typing import Any

import pytest

from mg_llava.evaluation.scoring.joining import join_predictions

IDS = [1, "2", 3]


@pytest.mark.parametrize("nothing", ["", "  \n", None, float("nan")])
def test_empty_replies_are_named(nothing: Any) -> None:
    lines = [{"index": number, "prediction": nothing if number != 3 else "A"} for number in (1, 2, 3)]
    joined = join_predictions(IDS, lines)
    assert joined.warnings == ["2 predictions are empty (1, 2)"] and joined.n_missing == 0


@pytest.mark.parametrize("reply", ["A", "0", 0, False, 0.0])
def test_replies_that_look_like_nothing_are_replies(reply: Any) -> None:
    joined = join_predictions(IDS, [{"index": number, "prediction": reply} for number in (1, 2.0, "3")])
    assert joined.warnings == [] and joined.texts == [str(reply)] * 3


@pytest.mark.parametrize(
    ("ids", "warnings"),
    [
        ([1, 2], ["1 of 3 questions have no prediction (3)"]),
        ([1, 2, 3, 9, None], ["2 predictions are of no question in the data and were left out (9, None)"]),
        ([1, 2, 3, "3"], ["1 predictions were replaced by a later one of the same id (3)"]),
        ([], ["3 of 3 questions have no prediction (1, 2, 3)"]),
    ],
)
def test_what_does_not_meet_is_counted(ids: list[Any], warnings: list[str]) -> None:
    assert join_predictions(IDS, [{"index": one, "prediction": "A"} for one in ids]).warnings == warnings
