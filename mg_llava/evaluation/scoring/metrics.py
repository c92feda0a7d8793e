"""Flat names of metrics: ``split/val``, ``split/val/n`` and ``accuracy_rounded`` instead of nested figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_MAIN = ("accuracy", "anls")
_ROUNDED = "rounded"


def flatten(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Flat metrics of nested ones.

    Args:
        metrics: Figures, and groups of them by name. A group's ``accuracy`` or ``anls`` gets the name of the group,
            its other figures one below. What is under ``rounded`` gets the name of the same figure with ``_rounded``
            behind it.
    """
    exact = {name: value for name, value in metrics.items() if name != _ROUNDED}
    rounded = dict(_walk(metrics.get(_ROUNDED, {})))
    return {**dict(_walk(exact)), **{f"{name}_{_ROUNDED}": value for name, value in rounded.items()}}


def _walk(metrics: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in metrics.items():
        place = path if path and name in _MAIN else f"{path}/{name}" if path else name
        if isinstance(value, Mapping):
            yield from _walk(value, place)
        else:
            yield place, value
