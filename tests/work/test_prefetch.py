"""Loading ahead: order, a bound, errors, an early end."""

import threading

import pytest

from mg_llava.work.prefetch import prefetched


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_groups_in_their_order(workers, ahead):
    groups = [range(n) for n in (3, 0, 2, 5, 1)]
    found = list(prefetched(groups, list, lambda item: item * 10, workers, ahead))
    assert found == [(group, [item * 10 for item in group]) for group in groups]


def test_no_more_than_announced_is_loaded_ahead():
    asked = []

    def groups():
        for number in range(100):
            asked.append(number)
            yield number

    stream = prefetched(groups(), lambda number: [number], lambda item: item, 2, ahead=3)
    for number in range(10):
        assert next(stream) == (number, [number])
        assert len(asked) == number + 4
    stream.close()
    assert len(asked) == 13


def test_loading_goes_on_while_a_group_is_worked_on():
    second = threading.Event()

    def load(item):
        if item == 1:
            second.set()
        return item

    stream = prefetched(range(3), lambda number: [number], load, 1, ahead=1)
    next(stream)
    assert second.wait(30)
    stream.close()


def test_errors_come_with_their_group():
    stream = prefetched([[1], [0], [2]], list, lambda item: 1 // item, 2)
    assert next(stream)[1] == [1]
    with pytest.raises(ZeroDivisionError):
        next(stream)
