"""What a grid has found: entries of its runs as a Markdown table, and as a plot."""

import functools
import platform
import statistics
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mg_llava.experiments.entries import RunEntry
from mg_llava.experiments.grid import Grid, GridRow
from mg_llava.experiments.sizes import SIZE_HEADS, LeafSizes, leaf_sizes
from mg_llava.experiments.steps import Run
from mg_llava.work.atomic import write_between_marks

MANY = 20
"""Metrics that fit beside each other."""
_PERCENT = 100.0


class GridReport:
    """Entries of a grid's rows, and which of them are of the present config, data and weights.

    Args:
        grid: The grid, whole.
        entries: Entries, stored ones too; those of rows that the grid no longer has are left out.
        runs: Its runs with their present fingerprints.
        command: How to measure anew.
    """

    def __init__(self, grid: Grid, entries: Iterable[RunEntry], runs: Iterable[Run], command: str) -> None:
        self.grid, self.command = grid, command
        self.entries = [entry for entry in entries if entry["row"] in {row.name for row in grid.rows}]
        self._present = {run.fingerprint for run in runs}
        self.rows = [row for row in grid.rows if self.of(row)]
        found = dict.fromkeys(title for entry in self.entries for title in entry["metrics"])
        self.titles = [title for title in (grid.metrics or found) if title in found]

    def of(self, row: GridRow) -> list[RunEntry]:
        """The entries of a row."""
        return [entry for entry in self.entries if entry["row"] == row.name]

    def is_old(self, entry: RunEntry) -> bool:
        """Tell whether an entry was measured with another config, data or weights than there are now."""
        return entry["fingerprint"] not in self._present

    def values(self, row: GridRow, title: str) -> list[float]:
        """A metric of a row, seed by seed."""
        found = (entry["metrics"].get(title) for entry in self.of(row))
        return [value for value in found if value is not None]

    def factor(self, title: str) -> float:
        """100 for a metric of shares, which are shown in percent; 1 where numbers are larger, as sums are."""
        found = [value for row in self.grid.rows for value in self.values(row, title)]
        found += [known[title] for known in self.grid.reference.values() if title in known]
        return 1.0 if max(map(abs, found), default=0.0) > 1 else _PERCENT

    @functools.cached_property
    def _sizes(self) -> dict[str, LeafSizes | None]:
        return {row.name: leaf_sizes(row.leaves[-1], row.options) for row in self.rows}

    @property
    def _last(self) -> str:
        """The metric that sums up, the last one."""
        return self.titles[-1] if self.titles else ""

    def _by_seed(self, row: GridRow) -> dict[int, float]:
        """It by the seed; runs without it are left out."""
        found = {entry["seed"]: entry["metrics"].get(self._last) for entry in self.of(row)}
        return {seed: value for seed, value in found.items() if value is not None}

    def markdown(self) -> str:
        """Mean and spread of each row, group by group, differences to the first one, and each run."""
        if not self.entries:
            return "Nothing is measured yet."
        seeds = sorted({entry["seed"] for entry in self.entries})
        caption = f"{self.grid.caption}: " if self.grid.caption else ""
        lines = [f"{caption}mean ± sample standard deviation over the seeds {', '.join(map(str, seeds))}.", ""]
        for rows in self._groups():
            lines += [f"### {rows[0].group}", ""] if rows[0].group else []
            lines += [*self._table(rows, seeds), ""]
        lines += [*self._differences(), "", *self._plateau(), *self._runs(), "", *self._old()]
        return "\n".join([*lines, f"Measure with `{self.command}`; this table was written on {_machine()}."])

    def _groups(self) -> list[list[GridRow]]:
        """The measured rows of each group."""
        names = dict.fromkeys(row.group for row in self.rows)
        return [[row for row in self.rows if row.group == name] for name in names]

    def _table(self, rows: Sequence[GridRow], seeds: Sequence[int]) -> list[str]:
        """Rows with their published numbers, their own, and what they cost; with many metrics, a line for each."""
        published = list(dict.fromkeys(title for row in rows for title in row.published))
        costs = [*SIZE_HEADS, "seconds"] if any(self._sizes[row.name] for row in rows) else []
        factors = {title: self.factor(title) for title in self.titles}
        heads = [*published, *self.titles, *costs]
        table = [("", *heads)]
        for name, known in self.grid.reference.items():
            cells = {title: format_spread([known[title]], factors[title]) for title in self.titles if title in known}
            table.append((name, *(cells.get(head, "-") for head in heads)))
        for row in rows:
            own = [entry["seed"] for entry in self.of(row)]
            title = row.title if own == seeds else f"{row.title} (seed {', '.join(map(str, own))})"
            cells = {name: f"{value:.1f}" for name, value in row.published.items()}
            cells |= {metric: format_spread(self.values(row, metric), factors[metric]) for metric in self.titles}
            seconds = statistics.fmean(sum(entry["seconds"].values()) for entry in self.of(row))
            cells |= {"seconds": f"{seconds:.0f}"} if costs else {}
            if (size := self._sizes[row.name]) is not None:
                cells |= dict(zip(SIZE_HEADS, size.cells(), strict=True))
            table.append((title, *(cells.get(head, "-") for head in heads)))
        if len(heads) > MANY:
            table = list(zip(*table, strict=True))
        lines = [_line(head, cells) for head, *cells in table]
        return [lines[0], "|" + "---|" * len(table[0]), *lines[1:]]

    def _differences(self) -> list[str]:
        """How much more than the first row, or the first on its axis, each of the others has, seed by seed."""
        lines: list[str] = []
        factor = self.factor(self._last)
        unit = " points" if factor == _PERCENT else ""
        for rows in self._groups():
            base = rows[0] if _is_line(rows) else self.rows[0]
            known = self._by_seed(base)
            for row in rows:
                gains = [value - known[seed] for seed, value in self._by_seed(row).items() if seed in known]
                if gains and row is not base:
                    each = ", ".join(f"{factor * gain:+.1f}" for gain in gains)
                    lines.append(f"- {row.title} minus {base.title}, {self._last}, seed by seed: {each}{unit}")
        return lines

    def _plateau(self) -> list[str]:
        """How many runs stayed on the plateau of their first stage, by its last loss."""
        losses = [loss for entry in self.entries if (loss := _first_loss(entry)) is not None]
        if self.grid.plateau is None or not losses:
            return []
        stayed = sum(loss > self.grid.plateau for loss in losses)
        return [
            f"A run whose loss at the end of stage 1 is above {self.grid.plateau} stayed on the plateau: {stayed} of "
            f"{len(losses)} runs; it is in bold below.",
            "",
        ]

    def _runs(self) -> list[str]:
        kinds = list(dict.fromkeys(kind for entry in self.entries for kind in entry["seconds"]))
        limit, factor = self.grid.plateau, self.factor(self._last)
        last = [] if limit is None else ["last loss of stage 1"]
        heads = ["run", self._last, *(f"{kind}, s" for kind in kinds), *last, "config"]
        lines = [_line(heads[0], heads[1:]), "|" + "---|" * len(heads)]
        for row in self.rows:
            for entry in self.of(row):
                seconds = [f"{entry['seconds'].get(kind, 0):.0f}" for kind in kinds]
                state = "stored, older config" if self.is_old(entry) else "present"
                losses = [] if limit is None else [_mark(_first_loss(entry), limit)]
                value = entry["metrics"].get(self._last)
                cells = [format_spread([] if value is None else [value], factor), *seconds, *losses, state]
                lines.append(_line(f"{row.title}, seed {entry['seed']}", cells))
        return lines

    def _old(self) -> list[str]:
        old = [entry for entry in self.entries if self.is_old(entry)]
        if not old:
            return []
        return [
            f"Stored, older config: {len(old)} of {len(self.entries)} runs were measured with a config, data or "
            "weights that have changed since; the command below measures them anew.",
            "",
        ]

    def write(self, folder: Path) -> list[Path]:
        """Write the table, where the grid says, and the plot beside it.

        Returns:
            The files.
        """
        page = Path(self.grid.report) if self.grid.report else folder / "table.md"
        write_between_marks(page, self.markdown(), self.grid.name)
        plot = page.with_suffix(".png") if self.grid.report else folder / "plot.png"
        if self.entries:
            self.plot(plot)
        return [page, plot] if self.entries else [page]

    def plot(self, path: Path) -> None:
        """Draw the last metric: a bar for the mean of each row, a dot for each run.

        A group whose rows all have a place on its axis (``x``) is a panel with a line instead.
        """
        from matplotlib.figure import Figure

        groups = self._groups()
        lines = [rows for rows in groups if _is_line(rows)]
        bars = [row for rows in groups if rows not in lines for row in rows]
        heights = [*([0.8 + 0.5 * len(bars)] if bars else []), *([3.0] * -(-len(lines) // 2))]
        figure = Figure(figsize=(7, sum(heights)), layout="constrained")
        cells = figure.add_gridspec(len(heights), 2, height_ratios=heights)
        if bars:
            self._plot_bars(figure.add_subplot(cells[0, :]), bars)
        for number, rows in enumerate(lines):
            self._plot_line(figure.add_subplot(cells[bool(bars) + number // 2, number % 2]), rows)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120, metadata={"Software": None})

    def _plot_bars(self, axes: Any, rows: Sequence[GridRow]) -> None:
        title, factor = self._last, self.factor(self._last)
        for place, row in enumerate(rows):
            values = [factor * value for value in self.values(row, title)]
            axes.barh(place, statistics.fmean(values) if values else 0, color="#9ecae1")
            axes.plot(values, [place] * len(values), "o", color="#08519c", markersize=5)
        for name, known in self.grid.reference.items():
            if title in known:
                axes.axvline(factor * known[title], color="#888888", linestyle="--", label=name)
                axes.legend(frameon=False)
        axes.set_yticks(range(len(rows)), [row.title for row in rows])
        axes.invert_yaxis()
        axes.set_xlabel(_axis(title, factor))

    def _plot_line(self, axes: Any, rows: Sequence[GridRow]) -> None:
        title, factor = self._last, self.factor(self._last)
        measured = [row for row in rows if self.values(row, title)]
        for row in measured:
            values = [factor * value for value in self.values(row, title)]
            axes.plot([row.x] * len(values), values, "o", color="#08519c", markersize=5)
        means = [factor * statistics.fmean(self.values(row, title)) for row in measured]
        axes.plot([row.x for row in measured], means, color="#9ecae1", zorder=0)
        axes.set_xlabel(rows[0].group)
        axes.set_ylabel(_axis(title, factor))


def format_spread(values: Sequence[float], factor: float) -> str:
    """Mean and spread of numbers, by the factor of their metric."""
    if not values:
        return "-"
    mean = f"{factor * statistics.fmean(values):.1f}"
    return f"{mean} ± {factor * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def _axis(title: str, factor: float) -> str:
    return f"{title}, %" if factor == _PERCENT else title


def _is_line(rows: Iterable[GridRow]) -> bool:
    """Whether each row of a group has a place on its axis."""
    return all(row.x is not None for row in rows)


def _first_loss(entry: RunEntry) -> float | None:
    """Last loss of the first stage; None where none was stored."""
    return next(iter(entry.get("losses", {}).values()), None)


def _mark(loss: float | None, limit: float) -> str:
    if loss is None:
        return "-"
    return f"**{loss:.3f}**" if loss > limit else f"{loss:.3f}"


def _line(head: str, cells: Iterable[str]) -> str:
    return " ".join(["|", *([head, "|"] if head else ["|"]), " | ".join(cells), "|"])


def _machine() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "xtuner"))
    return f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, {packages}"
