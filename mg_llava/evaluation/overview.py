"""Results of several benchmarks: one JSON file, a table for the terminal, an HTML page beside the paper's numbers."""

import html
import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.logging import print_log

from mg_llava.evaluation.benchmark import BENCHMARKS
from mg_llava.evaluation.release import BASELINES, MG_LLAVA, PAPER_MODEL
from mg_llava.evaluation.results import RunResult
from mg_llava.evaluation.statistics import break_down, facts_of, scores_of
from mg_llava.work.atomic import write_json, write_text

Reported = dict[str, Any]
"""What is reported of one benchmark: a run's ``to_dict``, with ``breakdowns`` and ``paper``."""
Overview = dict[str, Any]
"""``benchmarks``: entries by name; ``ablation``: ``baseline`` and ``differences``, where one was made."""

RESULTS_FILE = "results.json"
PAGE_FILE = "report.html"
_MAX_METRICS = 60


def make_entry(run: RunResult) -> Reported:
    """What is reported of a run."""
    entry = run.to_dict()
    samples = run.score.get("rules", {}).get(run.headline["rule"], {}).get("per_sample", ())
    facts = facts_of(run.samples, _answer_sizes(samples))
    entry["breakdowns"] = break_down(scores_of(samples), facts) if samples else {}
    _, release = BENCHMARKS.releases.get(run.benchmark, (None, None))
    entry["paper"] = {} if release is None else {"numbers": release.paper, "caution": release.caution}
    return entry


def merge_results(out: str | Path, entries: Iterable[Reported], ablation: Mapping[str, Any] | None = None) -> Overview:
    """Add entries to ``<out>/results.json``; those of other benchmarks stay, if they are of the same model.

    Args:
        out: Folder of results.
        entries: New entries; one of a benchmark that is there replaces it.
        ablation: ``baseline`` and ``differences`` of an ablation; None keeps what is there.

    Returns:
        All results.
    """
    path = Path(out) / RESULTS_FILE
    new = {entry["benchmark"]: entry for entry in entries}
    results: Overview = {"benchmarks": {}, "ablation": None}
    if path.is_file():
        try:
            results |= json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            print_log(f"{path} is damaged ({error}); it is written anew", logger="current", level=logging.WARNING)
    models = [_model_of(entry) for entry in new.values()]
    kept = {name: old for name, old in results["benchmarks"].items() if not models or _model_of(old) == models[0]}
    if len(kept) < len(results["benchmarks"]):
        gone = ", ".join(sorted(set(results["benchmarks"]) - set(kept)))
        message = f"{path}: results of another model are dropped: {gone}"
        print_log(message, logger="current", level=logging.WARNING)
        results["ablation"] = None
    results["benchmarks"] = {**kept, **new}
    if ablation is not None:
        results["ablation"] = dict(ablation)
    write_json(path, results)
    return results


def format_table(results: Overview, paper_model: str = PAPER_MODEL) -> str:
    """The headline of each benchmark, with its rule, its counts and the paper's number, for the terminal."""
    rows = [_title("result", ["paper"]), *_headlines(results, [paper_model])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [_line(row, widths) for row in rows]
    notes = [f"paper: {paper_model}; percent except for sums such as MME's"]
    notes += [f"{name}: {text}" for name, entry in results["benchmarks"].items() for text in notes_of(entry)]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], *notes])


def _title(ours: str, models: Sequence[str]) -> list[str]:
    """Names of the columns of :func:`_headlines`."""
    return ["benchmark", ours, *models, "rule, metric", "questions", "no answer", "with boxes", "without"]


def _headlines(results: Overview, models: Sequence[str]) -> list[list[str]]:
    """For each benchmark its headline, the paper's numbers of models, and its counts."""
    rows = []
    for name, entry in results["benchmarks"].items():
        head, counts, boxes = entry["headline"], entry["counts"], entry["boxes"]
        paper = entry.get("paper", {}).get("numbers", {})
        numbers = [f"{paper[model]:.1f}" if model in paper else "" for model in models]
        rule = f"{head['rule']}, {head['metric']}"
        unanswered = counts["asked"] - counts["answered"]
        asked = [str(counts["asked"]), str(unanswered) if unanswered else ""]
        shown = [str(boxes.get(key, "")) for key in ("with", "without")]
        rows.append([name, show(head["value"]), *numbers, rule, *asked, *shown])
    return rows


def notes_of(entry: Reported) -> list[str]:
    """What to know before a result is quoted: limits, failures, warnings of the scorer."""
    counts = entry["counts"]
    notes = list(entry["score"].get("warnings", ()))
    if counts.get("failed"):
        first = (entry.get("failures") or [{"error": ""}])[0]["error"]
        notes.append(f"{counts['failed']} questions could not be answered, the first: {first}")
    if counts.get("truncated"):
        notes.append(f"{counts['truncated']} replies were ended by the limit of new tokens")
    return notes


def show(value: Any) -> str:
    """A metric as tables have it: fractions in percent, sums as they are, a dash for none."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "-" if value is None else str(value)
    return f"{100 * value:.1f}" if abs(value) <= 1 else f"{value:.1f}"


def write_page(results: Overview, path: str | Path, title: str = "Evaluation", paper_model: str = PAPER_MODEL) -> Path:
    """Write the report as one HTML file that needs nothing else.

    Returns:
        The file.
    """
    body = [f"<h1>{_text(title)}</h1>", _headline_table(results, paper_model)]
    if results.get("ablation"):
        body.append(_ablation(results["ablation"]))
    body += [_details(name, entry) for name, entry in results["benchmarks"].items()]
    page = _PAGE.format(title=_text(title), style=_STYLE, body="\n".join(body))
    write_text(path, page)
    return Path(path)


# -- the page ----------------------------------------------------------------------------------------------------

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --bar: #3b82c4; --soft: #8881; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child, td.text { text-align: left; }
thead th { border-bottom: 2px solid var(--line); vertical-align: bottom; }
td.ours { font-weight: 600; background: var(--soft); }
.scroll { overflow-x: auto; }
.note { color: #888; font-size: .9em; }
summary { cursor: pointer; font-weight: 600; padding: .3rem 0; }
svg { vertical-align: middle; }
pre { white-space: pre-wrap; background: var(--soft); padding: .7rem; }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def _headline_table(results: Overview, paper_model: str) -> str:
    models = [paper_model, *(model for model in (*MG_LLAVA, *BASELINES) if model != paper_model)]
    note = (
        "Percent, except for sums such as MME's. Columns of models quote the MG-LLaVA paper (arXiv 2406.17770, tables "
        "1 to 3; MM-Vet, LLaVA-W and MMVP the reference's README)."
    )
    table = _table(_title("here", models), _headlines(results, models), ours=1)
    return f'{table}<p class="note">{_text(note)}</p>'


def _ablation(ablation: Mapping[str, Any]) -> str:
    rows, spread = [], 0.0
    for row in ablation["differences"]:
        spread = max(spread, abs(row["interval"]["low"]), abs(row["interval"]["high"]))
    for row in ablation["differences"]:
        interval = row["interval"]
        ends = f"{100 * interval['low']:+.1f} to {100 * interval['high']:+.1f}"
        cells = [row["benchmark"], row["setting"], show(row["score"]), show(row["baseline"])]
        rows.append([*cells, f"{100 * interval['mean']:+.1f}", ends, _Markup(_interval(interval, spread))])
    title = ["benchmark", "setting", "score", "baseline", "difference", "95 % interval", ""]
    baseline = _text(ablation["baseline"])
    note = "Mean scores of single questions in percent, differences in points; paired bootstrap over questions."
    return f'<h2>Differences to {baseline}</h2>{_table(title, rows)}<p class="note">{_text(note)}</p>'


def _interval(interval: Mapping[str, float], spread: float) -> str:
    """A line from low to high with the mean as a dot, around a rule at zero."""
    low, mean, high = (90 + 85 * interval[key] / (spread or 1) for key in ("low", "mean", "high"))
    return (
        '<svg width="180" height="14" role="img" aria-label="interval"><line x1="90" x2="90" y1="0" y2="14" '
        f'stroke="#888"/><line x1="{low:.1f}" x2="{high:.1f}" y1="7" y2="7" stroke="var(--bar)" stroke-width="3"/>'
        f'<circle cx="{mean:.1f}" cy="7" r="4" fill="var(--bar)"/></svg>'
    )


def _details(name: str, entry: Reported) -> str:
    parts = [f"<h2>{_text(name)}</h2>"]
    caution = entry.get("paper", {}).get("caution")
    notes = [*([f"Beside the paper: {caution}"] if caution else []), *notes_of(entry)]
    parts += [f'<p class="note">{_text(note)}</p>' for note in notes]
    for rule, scored in entry["score"].get("rules", {}).items():
        metrics = list(flat_metrics(scored["metrics"]))
        rows = [[key, show(value)] for key, value in metrics[:_MAX_METRICS]]
        more = f" (the first {_MAX_METRICS} of {len(metrics)})" if len(metrics) > _MAX_METRICS else ""
        table = _table(["metric", rule], rows)
        parts.append(f"<details><summary>rule {_text(rule)}{more}</summary>{table}</details>")
    for title, buckets in entry.get("breakdowns", {}).items():
        rows = [
            [row["name"], row["n"], show(row["mean"]), f"{show(row['low'])} to {show(row['high'])}", _bar(row["mean"])]
            for row in buckets
        ]
        parts.append(f"<h3>By {_text(title)}</h3>{_table(['', 'questions', 'score', '95 % interval', ''], rows)}")
    settings = {key: entry.get(key) for key in ("prompt", "counts", "boxes", "generation", "identity", "packages")}
    text = _text(json.dumps(settings, indent=1, ensure_ascii=False))
    parts.append(f"<details><summary>settings and counts</summary><pre>{text}</pre></details>")
    return "\n".join(parts)


def _bar(value: float) -> "_Markup":
    width = 120 * min(max(value, 0.0), 1.0)
    return _Markup(
        f'<svg width="120" height="10" role="img" aria-label="{show(value)} %"><rect width="{width:.1f}" height="10" '
        'fill="var(--bar)"/></svg>'
    )


class _Markup(str):
    """Markup of ours, which is not escaped."""


def _table(title: Sequence[str], rows: Sequence[Sequence[Any]], ours: int | None = None) -> str:
    head = "".join(f"<th>{_text(cell)}</th>" for cell in title)
    lines = []
    for row in rows:
        marks = [' class="ours"' if i == ours else "" for i in range(len(row))]
        cells = [cell if isinstance(cell, _Markup) else _text(cell) for cell in row]
        line = "".join(f"<td{mark}>{cell}</td>" for mark, cell in zip(marks, cells, strict=True))
        lines.append(f"<tr>{line}</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def flat_metrics(metrics: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, float]]:
    """All numbers of nested metrics, with their names, ``a/b``."""
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from flat_metrics(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", float(value)


def _text(value: Any) -> str:
    return html.escape(str(value), quote=True)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    """Names to the left, numbers to the right."""
    cells = [
        cell.ljust(width) if i in (0, 3) else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()


def _answer_sizes(per_sample: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Sizes of objects where the answer is a box, in fractions or percent of the picture, as a side relative to it."""
    sizes = {}
    for sample in per_sample:
        box = sample.get("answer")
        if "iou" in sample and isinstance(box, list | tuple) and len(box) == 4:
            x1, y1, x2, y2 = (value / (100 if max(box) > 1 else 1) for value in box)
            sizes[str(sample["id"])] = math.sqrt(max(x2 - x1, 0) * max(y2 - y1, 0))
    return sizes


def _model_of(entry: Reported) -> Any:
    return entry.get("identity", {}).get("model")
