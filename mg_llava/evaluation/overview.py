"""Results of several benchmarks: one JSON file, a table for the terminal, an HTML page beside the paper's numbers."""

import json
import logging
import math
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from mmengine.logging import print_log

from mg_llava.evaluation.benchmark import BENCHMARKS
from mg_llava.evaluation.release import BASELINES, GROUNDING, GROUNDING_COLUMNS, MG_LLAVA, PAPER_MODEL
from mg_llava.evaluation.results import RESULTS_FILE, RunResult
from mg_llava.evaluation.statistics import break_down, facts_of, scores_of
from mg_llava.work.atomic import write_json, write_text
from mg_llava.work.json_text import load_object

Reported = dict[str, Any]
"""What is reported of one benchmark: a run's ``to_dict``, with ``breakdowns`` and ``paper``."""
Overview = dict[str, Any]
"""``benchmarks``: entries by name; ``ablation``: ``baseline`` and ``differences``, where one was made."""

PAGE_FILE = "report.html"
_MAX_METRICS = 60
_SETTINGS = ("prompt", "counts", "boxes", "generation", "identity", "packages")


def make_entry(run: RunResult) -> Reported:
    """What is reported of a run."""
    samples = run.score.get("rules", {}).get(run.headline["rule"], {}).get("per_sample", ())
    facts = facts_of(run.samples, _answer_sizes(samples))
    _, release = BENCHMARKS.releases.get(run.benchmark, (None, None))
    paper = {} if release is None else {"numbers": release.paper, "caution": release.caution}
    return {**run.to_dict(), "breakdowns": break_down(scores_of(samples), facts) if samples else {}, "paper": paper}


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
            results |= load_object(path)
        except ValueError as error:
            print_log(f"{path} is damaged ({error}); it is written anew", logger="current", level=logging.WARNING)
    models = [_model_of(entry) for entry in new.values()]
    kept = {name: old for name, old in results["benchmarks"].items() if not models or _model_of(old) == models[0]}
    if gone := sorted(set(results["benchmarks"]) - set(kept)):
        message = f"{path}: results of another model are dropped: {', '.join(gone)}"
        print_log(message, logger="current", level=logging.WARNING)
        results["ablation"] = None
    results["benchmarks"] = {**kept, **new}
    if ablation is not None:
        results["ablation"] = dict(ablation)
    write_json(path, results)
    return results


def format_table(results: Overview, paper_model: str = PAPER_MODEL) -> str:
    """The headline of each benchmark, with its rule, its counts and the paper's number, for the terminal."""
    notes = [f"paper: {paper_model}; percent except for sums such as MME's", *_mean_of_refcoco(results)]
    notes += [f"{name}: {text}" for name, entry in results["benchmarks"].items() for text in notes_of(entry)]
    others = neighbours(results)
    rows = [_headings("result", ["paper", *others]), *_headlines(results, [paper_model, *others])]
    return "\n".join([text_table(rows, left=(0, 3)), *notes])


def neighbours(results: Overview) -> list[str]:
    """Models outside of the paper that have a number for some benchmark."""
    entries = results["benchmarks"].values()
    models = dict.fromkeys(model for entry in entries for model in entry.get("paper", {}).get("numbers", {}))
    return [model for model in models if model in GROUNDING]


def _mean_of_refcoco(results: Overview) -> list[str]:
    """The mean of the eight splits beside that of the neighbours, where all of them were evaluated."""
    values = [results["benchmarks"].get(name, {}).get("headline", {}).get("value") for name in GROUNDING_COLUMNS]
    if any(value is None for value in values):
        return []
    others = ", ".join(f"{model} {sum(row) / len(row):.2f}" for model, row in GROUNDING.items())
    return [f"mean of the eight RefCOCO splits: {show(sum(values) / len(values))} ({others})"]


def text_table(rows: Sequence[Sequence[str]], left: Container[int]) -> str:
    """A table for the terminal, its first row over a rule; ``left`` are the columns of names, others are numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = enumerate(zip(row, widths, strict=True))
        shown = [cell.ljust(width) if i in left else cell.rjust(width) for i, (cell, width) in cells]
        lines.append("  ".join(shown).rstrip())
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _headings(ours: str, models: Sequence[str]) -> list[str]:
    """Names of the columns of :func:`_headlines`."""
    return ["benchmark", ours, *models, "rule, metric", "questions", "no answer", "with boxes", "without"]


def _headlines(results: Overview, models: Sequence[str]) -> list[list[str]]:
    """For each benchmark its headline, the paper's numbers of models, and its counts."""
    rows = []
    for name, entry in results["benchmarks"].items():
        head, counts, boxes = entry["headline"], entry["counts"], entry["boxes"]
        paper = entry.get("paper", {}).get("numbers", {})
        numbers = [f"{paper[model]:.1f}" if model in paper else "" for model in models]
        asked = [str(counts["asked"]), str(counts["asked"] - counts["answered"] or "")]
        shown = [str(boxes.get(key, "")) for key in ("with", "without")]
        rows.append([name, show(head["value"]), *numbers, f"{head['rule']}, {head['metric']}", *asked, *shown])
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


def points(share: float) -> str:
    """A difference of shares in points, with its sign."""
    return f"{100 * share:+.1f}"


def flat_metrics(metrics: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, float]]:
    """All numbers of nested metrics, with their names, ``a/b``."""
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from flat_metrics(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", float(value)


def write_page(results: Overview, path: str | Path, title: str = "Evaluation", paper_model: str = PAPER_MODEL) -> Path:
    """Write the report as one HTML file that needs nothing else; returns the file."""
    models = [paper_model, *(model for model in (*MG_LLAVA, *BASELINES) if model != paper_model), *neighbours(results)]
    intervals = [row["interval"] for row in (results.get("ablation") or {}).get("differences", ())]
    environment = Environment(loader=PackageLoader("mg_llava.evaluation", "."), autoescape=True)
    page = environment.get_template("report.html.jinja").render(
        title=title,
        headings=_headings("here", models),
        headlines=_headlines(results, models),
        spread=max((abs(ends[end]) for ends in intervals for end in ("low", "high")), default=0.0),
        most=_MAX_METRICS,
        settings_of=lambda entry: json.dumps({key: entry.get(key) for key in _SETTINGS}, indent=1, ensure_ascii=False),
        **{function.__name__: function for function in (show, points, flat_metrics, notes_of)},
        **results,
    )
    write_text(path, page)
    return Path(path)


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
