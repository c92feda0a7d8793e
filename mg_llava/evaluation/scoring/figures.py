"""Means and groups of scores."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

_Item = TypeVar("_Item")


def share(right: float, count: float) -> float:
    """``right / count``; 0 where there is nothing to count, which the caller warns of."""
    return right / count if count else 0.0


def mean(values: Iterable[float]) -> float:
    """Mean; 0 of nothing."""
    numbers = list(values)
    return share(sum(numbers), len(numbers))


def mean_score(samples: Iterable[Mapping[str, Any]]) -> float:
    """Mean score of samples; 0 of nothing."""
    return mean(sample["score"] for sample in samples)


def group_by(items: Iterable[_Item], key: Callable[[_Item], Any]) -> dict[Any, list[_Item]]:
    """Items by their key, in the order of the first ones."""
    groups: dict[Any, list[_Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups
