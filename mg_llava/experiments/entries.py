"""Entries of a grid's runs: what their evaluations measured, stored as JSON."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mg_llava.experiments.grid import Grid
from mg_llava.experiments.steps import Run, Training
from mg_llava.work.json_text import load_object, parse_json

RunEntry = dict[str, Any]
"""``row``, ``seed``, ``fingerprint``, ``metrics`` (shares by title), ``seconds`` and ``losses`` (by kind of step)."""
_KEYS = {"row", "seed", "fingerprint", "metrics", "seconds"}


def read_runs(runs: Iterable[Run], grid: Grid) -> tuple[list[RunEntry], list[str]]:
    """The entries of finished runs, and messages about metrics that they lack, which are None in them."""
    entries: list[RunEntry] = []
    faults: list[str] = []
    for run in runs:
        if run.is_done:
            try:
                entries.append(_entry_of(run, grid, faults))
            except ValueError as error:
                faults.append(str(error))
    return entries, faults


def _entry_of(run: Run, grid: Grid, faults: list[str]) -> RunEntry:
    path = Path(run.steps[-1].done["product"])
    try:
        found = load_object(path).get("benchmarks")
        if not isinstance(found, Mapping):
            raise ValueError("it has no benchmarks")
    except ValueError as error:
        raise ValueError(f"{path} holds no results of an evaluation ({error}); remove it to evaluate again") from error
    metrics: dict[str, float | None] = {}
    for title, spec in (grid.metrics or {name: name for name in found}).items():
        try:
            metrics[title] = _metric(found, spec)
        except ValueError as error:
            metrics[title] = None
            faults.append(f"{path} has no metric {title} ({spec}): {error}")
    seconds = {step.kind: step.done["seconds"] for step in run.steps if step.done}  # others were cleared away
    losses = {step.kind: _finite(step.last_loss) for step in run.steps if isinstance(step, Training)}
    return {
        "row": run.row.name,
        "seed": run.seed,
        "fingerprint": run.fingerprint,
        "metrics": metrics,
        "seconds": seconds,
        "losses": losses,
    }


def _metric(found: Any, spec: str) -> float | None:
    name, _, path = spec.partition(":")
    rule, *keys = path.split("/")
    way = [name, "score", "rules", rule, "metrics", *keys] if path else [name, "headline", "value"]
    for depth, key in enumerate(way):
        if not isinstance(found, Mapping) or key not in found:
            there = ", ".join(map(str, found)) if isinstance(found, Mapping) else repr(found)
            raise ValueError(f"{'/'.join(way[:depth]) or 'benchmarks'} has no {key}, it has {there}")
        found = found[key]
    return _number(found)


def _number(value: Any) -> float | None:
    """A number; None where there is none, or one that is not finite."""
    if isinstance(value, Mapping):
        raise ValueError(f"it has the parts {', '.join(map(str, value))}; name one, as BENCHMARK:RULE/METRIC/PART")
    if value is not None and not isinstance(value, int | float):
        raise ValueError(f"it is {value!r}; a number is needed")
    return _finite(value)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def load_entries(path: Path) -> list[RunEntry]:
    """The entries of a results file; none where there is no file.

    Raises:
        ValueError: It holds something else.
    """
    if not path.is_file():
        return []
    try:
        found = parse_json(path.read_bytes())
        if not isinstance(found, list) or not all(isinstance(one, dict) and _KEYS <= one.keys() for one in found):
            raise ValueError("a list of entries is needed")
        return [_checked(entry) for entry in found]
    except ValueError as error:
        raise ValueError(f"{path} holds no results ({error}); mend it, or move it away to begin anew") from error


def _checked(entry: RunEntry) -> RunEntry:
    """An entry whose numbers are such that JSON has."""
    for key in ("metrics", "losses"):
        numbers = entry.get(key, {})
        if not isinstance(numbers, dict):
            raise ValueError(f"{key} of {entry['row']}, seed {entry['seed']}: numbers by name are needed")
        for name, value in numbers.items():
            try:
                numbers[name] = _number(value)
            except ValueError as error:
                raise ValueError(f"{name} of {entry['row']}, seed {entry['seed']}: {error}") from error
    return entry


def merge_entries(stored: Iterable[RunEntry], new: Iterable[RunEntry], grid: Grid) -> list[RunEntry]:
    """All entries in the order of the grid; a new one takes the place of a stored one of its row and seed."""
    order = [row.name for row in grid.rows]
    merged = {(entry["row"], entry["seed"]): entry for entry in (*stored, *new)}
    return sorted(merged.values(), key=lambda e: (order.index(e["row"]) if e["row"] in order else -1, e["seed"]))
