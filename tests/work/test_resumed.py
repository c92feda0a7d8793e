"""Work in batches that is stopped and goes on."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from mg_llava.work.resumed import run_resumed

calls: list[list[int]] = []


def double(factor: int, batch: Sequence[int]) -> list[int]:
    calls.append(list(batch))
    if 7 in batch and factor == 0:
        raise ValueError("seven")
    return [factor * item for item in batch]


def test_work_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    journal, items = tmp_path / "work.journal", list(range(10))
    told: list[tuple[int, int]] = []
    calls.clear()
    some = run_resumed(double, 2, items, 3, 1, journal, ["about", 1], lambda *done: told.append(done))
    assert [next(some), next(some)] == [[0, 2, 4], [6, 8, 10]]
    some.close()
    assert list(run_resumed(double, 2, items, 3, 1, journal, ["about", 1])) == [
        [0, 2, 4],
        [6, 8, 10],
        [12, 14, 16],
        [18],
    ]
    assert calls == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert told == [(3, 10)]
    assert list(run_resumed(double, 3, items, 3, 2, journal, ["about", 2]))[-1] == [27]  # of another kind: all anew
    assert len(calls) == 4  # in other processes
    assert [value for batch in run_resumed(double, 3, items, 3, 1, journal, ["about", 2]) for value in batch] == [
        3 * item for item in items
    ]
    assert len(calls) == 4


def test_what_failed_is_done_again_and_nothing_else(tmp_path: Path) -> None:
    journal, items = tmp_path / "work.journal", list(range(10))
    with pytest.raises(ValueError, match="seven"):
        list(run_resumed(double, 0, items, 2, 1, journal, "x"))
    calls.clear()
    assert sum(len(batch) for batch in run_resumed(double, 1, items, 2, 1, journal, "x")) == 10
    assert calls == [[6, 7], [8, 9]]
