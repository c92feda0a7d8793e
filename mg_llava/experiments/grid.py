"""A grid of experiments: rows of leaves (one for each stage), seeds, and how to evaluate.

A grid is a JSON file, or a Python file that sets ``grid``, with the keys of :class:`Grid`. Its paths are relative to
the folder in which the command runs.
"""

import argparse
import json
import math
import os
import runpy
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mmengine.config import DictAction

from mg_llava.data.choices import wrong_count
from mg_llava.data.config import load_config

_KINDS: dict[Any, str] = {str: "texts", float: "numbers", Mapping: "metrics"}


@dataclass(frozen=True)
class GridRow:
    """One line of the table.

    Attributes:
        name: For the command line and files.
        leaves: Configs of the stages in order; each starts from the checkpoint of the one before.
        title: For the table; the name by default.
        options: Changes of all leaves, as ``xtuner train --cfg-options`` takes them; ``{seed}`` is that of the run.
        group: Rows of a group have a table of their own, under this title.
        seeds: Those of this row; the grid's by default.
        published: Numbers that others have published for it, by title, shown beside its own.
        evaluate: Its command of evaluation; the grid's by default.
        x: Its place on the axis of its group: rows of a group that all have one are drawn as a line over it.
    """

    name: str
    leaves: tuple[str, ...]
    title: str = ""
    options: tuple[str, ...] = ()
    group: str = ""
    seeds: tuple[int, ...] = ()
    published: Mapping[str, float] = field(default_factory=dict)
    evaluate: tuple[str, ...] = ()
    x: float | None = None


@dataclass(frozen=True)
class Grid:
    """What is to be trained and evaluated.

    Attributes:
        name: Folder of the runs in ``work_dirs/experiments``.
        rows: The first one is what the others are compared with.
        evaluate: Command with ``{config}``, ``{checkpoint}`` and ``{out}``, a folder for the ``results.json`` that
            ``tools/evaluate.py`` writes.
        metrics: What to show: ``BENCHMARK`` for its headline, or ``BENCHMARK:RULE/METRIC``, by title; the headlines of
            all benchmarks by default. The last one is plotted and compared.
        seeds: Each row is run with each, unless it has its own.
        plateau: A run whose first stage ends with a larger loss has stayed on its plateau; None for no such limit.
        prepare: Command that makes the data, or sees that it is there; ``{seeds}`` are those of the runs.
        train: Command that takes a leaf, ``--work-dir``, ``--seed``, ``--resume`` and ``--cfg-options``.
        caption: What the numbers are, above the table.
        reference: Further lines of the table: metrics by title.
        results: JSON file of results that stay; in the work directory by default.
        report: Markdown file whose part between two marks becomes the table; in the work directory by default.
        quick: Changes for ``--quick``; ``options`` there are added to those of all rows, ``rows`` are names of some.
    """

    name: str
    rows: tuple[GridRow, ...]
    evaluate: tuple[str, ...]
    metrics: Mapping[str, str] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2)
    plateau: float | None = None
    prepare: tuple[str, ...] = ()
    train: tuple[str, ...] = (sys.executable, "-m", "mg_llava", "train")
    caption: str = ""
    reference: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    results: str | None = None
    report: str | None = None
    quick: Mapping[str, Any] = field(default_factory=dict)

    def with_options(self, options: Sequence[str]) -> "Grid":
        """The grid with further changes of all leaves."""
        return replace(self, rows=tuple(replace(row, options=(*row.options, *options)) for row in self.rows))

    def as_quick(self) -> "Grid":
        """The grid of ``--quick``, which leaves results and report of the whole one alone.

        Raises:
            ValueError: The grid does not say what is quick.
        """
        if not self.quick:
            raise ValueError(f"grid {self.name} has no key 'quick'; give it smaller seeds, options or an evaluation")
        changes = dict(self.quick)
        grid = self.with_options(_list(changes.pop("options", ())))
        known = {item.name: getattr(grid, item.name) for item in fields(grid)}
        kept = {**known, "name": f"{self.name}-quick", "results": None, "report": None, "quick": {}}
        names = _list(changes.pop("rows", ()))
        return make_grid({**kept, **changes}).only(names, _list(changes.get("seeds", ())))

    def only(self, names: Sequence[str], seeds: Sequence[int]) -> "Grid":
        """The grid with some of its rows, and other seeds for all of them; empty ones keep all.

        Raises:
            ValueError: A row is unknown.
        """
        known = [row.name for row in self.rows]
        unknown = sorted(set(names) - set(known))
        if unknown:
            raise ValueError(f"rows {', '.join(unknown)} are unknown; the grid has {', '.join(known)}")
        rows = tuple(row for row in self.rows if row.name in (names or known))
        if seeds:
            rows = tuple(replace(row, seeds=()) for row in rows)
        return replace(self, rows=rows, seeds=tuple(seeds) or self.seeds)

    def runs(self) -> Iterator[tuple[GridRow, int]]:
        """Each row with each of its seeds, seed by seed."""
        every = dict.fromkeys(seed for row in self.rows for seed in (row.seeds or self.seeds))
        return ((row, seed) for seed in every for row in self.rows if seed in (row.seeds or self.seeds))


def read_grid(path: str | Path) -> Grid:
    """Read a grid's file.

    Raises:
        FileNotFoundError: It, or a leaf, does not exist.
        ValueError: It is malformed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"grid {path} does not exist; give a .json or .py file, such as data/nano/grid.py")
    try:
        found = runpy.run_path(str(path))["grid"] if path.suffix == ".py" else json.loads(path.read_text())
        grid = make_grid({"name": path.stem, **found})
    except Exception as error:  # whatever the code of a grid raises
        fault = error if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} is no grid: {fault}") from error
    missing = sorted({leaf for row in grid.rows for leaf in row.leaves if not Path(leaf).is_file()})
    if missing:
        raise FileNotFoundError(f"{path} names leaves that do not exist here: {', '.join(missing)}")
    return grid


def make_grid(keys: Mapping[str, Any]) -> Grid:
    """A grid of plain values; commands may be strings.

    Raises:
        ValueError: A key is unknown or missing, two rows have one name, a row has no leaf, a value is of another kind
            than its key needs, a seed is none, or an evaluation is not told where its results are to be.
    """
    _check_keys("grid", keys, Grid)
    values = dict(keys)
    for name in ("prepare", "train", "evaluate"):
        if name in values:
            values[name] = _words(values[name])
    rows = []
    for row in values["rows"]:
        if not isinstance(row, GridRow):
            _check_keys("row", row, GridRow)
            lists = {name: _list(row[name]) for name in ("leaves", "options", "seeds") if name in row}
            lists["evaluate"] = _words(row.get("evaluate", ()))
            row = GridRow(**{"title": row["name"], **row, **lists})
        rows.append(row)
    names = [row.name for row in rows]
    if not rows or len(set(names)) < len(names):
        raise ValueError(f"rows need one name each, and there must be some; found {names}")
    grid = Grid(**{**values, "rows": tuple(rows), "seeds": _list(values.get("seeds", (0, 1, 2)))})
    if wrong := [*_wrong_values(grid)]:
        raise ValueError("; ".join(wrong))
    for command in filter(None, (grid.evaluate, *(row.evaluate for row in grid.rows))):
        if not any("{out}" in word for word in command):
            raise ValueError(f"evaluate needs {{out}} for the folder of its results; found {shlex.join(command)}")
    for fault in (fault for _, seed in grid.runs() for fault in wrong_count("seed", seed, least=0)):
        raise ValueError(fault)
    return grid


def _wrong_values(grid: Grid) -> Iterator[str]:
    """A sentence for each value of another kind than its key needs."""
    texts: dict[str, Any] = {"name": grid.name, "caption": grid.caption}
    numbers: dict[str, Any] = {"plateau": grid.plateau}
    tables: dict[str, tuple[Any, Any]] = {"metrics": (grid.metrics, str), "reference": (grid.reference, Mapping)}
    lists = {"prepare": grid.prepare, "train": grid.train, "evaluate": grid.evaluate}
    for row in grid.rows:
        owner = f"row {row.name!r}"
        texts |= {f"{key} of {owner}": getattr(row, key) for key in ("name", "title", "group")}
        lists |= {f"{key} of {owner}": getattr(row, key) for key in ("leaves", "options", "evaluate")}
        tables[f"published of {owner}"] = (row.published, float)
        numbers[f"x of {owner}"] = row.x
        if not row.leaves:
            yield f"{owner} has no leaves; give the config of each stage"
    if isinstance(grid.reference, Mapping):
        tables |= {f"reference {name!r}": (known, float) for name, known in grid.reference.items()}
    for name, value in texts.items():
        if not isinstance(value, str):
            yield f"{name} is {value!r}; a text is needed"
    for name, words in lists.items():
        if not all(isinstance(word, str) for word in words):
            yield f"{name} is {list(words)!r}; texts are needed"
    for name, value in numbers.items():
        if value is not None and not _is_of(value, float):
            yield f"{name} is {value!r}; a number is needed"
    for name, (table, kind) in tables.items():
        if not isinstance(table, Mapping) or not all(
            isinstance(key, str) and _is_of(value, kind) for key, value in table.items()
        ):
            yield f"{name} is {table!r}; {_KINDS[kind]} by title are needed"


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a value is of a kind; whole numbers are numbers, those that are not finite are none."""
    if kind is float:
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, kind)


def _list(values: Any) -> tuple[Any, ...]:
    """Several values, or one."""
    return (values,) if isinstance(values, str | int) else tuple(values)


def _words(command: str | Sequence[str]) -> tuple[str, ...]:
    return tuple(shlex.split(command) if isinstance(command, str) else command)


def _check_keys(what: str, keys: Mapping[str, Any], kind: type) -> None:
    known = [item.name for item in fields(kind)]
    needed = {"grid": ("rows", "evaluate"), "row": ("name", "leaves")}[what]
    unknown, absent = sorted(set(keys) - set(known)), sorted(set(needed) - set(keys))
    if unknown or absent:
        raise ValueError(f"{what}: unknown keys {unknown}, missing keys {absent}; known are {', '.join(known)}")


def read_leaf(leaf: str, options: Sequence[str]) -> Any:
    """A leaf with changes, as ``xtuner train --cfg-options`` takes them; nothing that it names is imported."""
    try:
        changes = _parse(options)
    except ValueError as error:
        raise ValueError(f"{leaf} cannot be changed by {' '.join(options)}; KEY=VALUE is needed") from error
    return load_config(leaf, changes)


def _parse(options: Sequence[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    parser.add_argument("--options", nargs="+", action=DictAction, default={})
    return parser.parse_args(["--options", *options]).options if options else {}


def option_path(path: Path) -> str:
    """A path in a form that can be the value of an option.

    Raises:
        ValueError: It has none; mmengine leaves spaces out of values, and commas make a list of them.
    """
    for text in (str(path), os.path.relpath(path)):
        if _parse([f"path={text}"])["path"] == text:
            return text
    raise ValueError(f"{path} has a space or a comma, which options cannot have; use another --work-dir")
