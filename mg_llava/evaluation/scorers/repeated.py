"""Ids that several questions of a data file share: the k-th prediction of an id belongs to its k-th question."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mg_llava.evaluation.scorers.joining import Joined, join_predictions

_NAME = "joined on"


def number_repeated(keys: Iterable[str]) -> list[str]:
    """Unique names: the first of a key is the key, the next ones are ``key #2``, ``key #3``, ..."""
    seen: Counter[str] = Counter()
    names = []
    for key in keys:
        seen[key] += 1
        names.append(key if seen[key] == 1 else f"{key} #{seen[key]}")
    return names


def join_repeated(
    keys: Sequence[str],
    predictions: Sequence[Mapping[str, Any]],
    key: Callable[[Mapping[str, Any]], str],
    text_field: str | Sequence[str],
) -> Joined:
    """Join as ``join_predictions`` does, where several questions may have one key.

    Where a key has more lines than questions, the last lines count and the surplus is counted as duplicates.

    Args:
        keys: Keys of the questions.
        predictions: Prediction lines.
        key: Key of a line.
        text_field: As in ``join_predictions``.
    """
    found = [key(line) for line in predictions]
    surplus = Counter(found)
    surplus.subtract(keys)
    seen: Counter[str] = Counter()
    lines = []
    for line, name in zip(predictions, found, strict=True):
        place = max(1, seen[name] + 1 - max(0, surplus[name]))
        seen[name] += 1
        lines.append({**line, _NAME: name if place == 1 else f"{name} #{place}"})
    return join_predictions(number_repeated(keys), lines, _NAME, text_field)
