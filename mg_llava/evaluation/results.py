"""Scores of the replies in a folder, and the facts of the run; without a model, so that scoring again needs none."""

import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mg_llava.evaluation.benchmark import Benchmark, Question
from mg_llava.evaluation.identity import package_versions
from mg_llava.evaluation.replies import FINAL_FILE, Replies, ReplyLine
from mg_llava.evaluation.scoring.figures import mean_score
from mg_llava.evaluation.scoring.joining import ScoreResult, name_ids
from mg_llava.work.atomic import write_json

_logger = logging.getLogger(__name__)

RESULTS_FILE = "results.json"
SCORES_FILE = "scores.json"
_SHOWN = 20


@dataclass
class RunResult:
    """The result of a run of a benchmark.

    Attributes:
        benchmark: Name of the benchmark.
        prompt: Version of its prompt.
        score: The scorer's result, of the questions that were asked.
        headline: ``rule``, ``metric`` and ``value`` that tables quote; the value is None without annotations.
        counts: ``questions`` in the data, ``asked``, ``answered``, ``failed``, ``resumed`` (answered by an earlier
            run), ``truncated`` (ended by the limit of new tokens), ``empty``, ``pictures``.
        failures: ``id`` and ``error`` of questions that could not be answered, the first few.
        boxes: The box source, its ``counts``, and the numbers of questions about pictures ``with`` boxes as tokens and
            ``without``; over all runs and processes.
        identity: All that the replies depend on; under ``generation`` the arguments of ``generate``.
        seconds: Of this run's inference.
        folder: Where ``predictions.jsonl`` is.
        samples: The line of each answered question, see ``replies.line_of``.
    """

    benchmark: str
    prompt: str
    score: ScoreResult
    headline: dict[str, Any]
    counts: dict[str, int]
    failures: list[dict[str, Any]]
    boxes: dict[str, Any]
    identity: dict[str, Any]
    seconds: float
    folder: Path
    samples: list[ReplyLine] = field(repr=False, default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the facts of each question."""
        shown = ("benchmark", "prompt", "headline", "counts", "failures", "score", "boxes", "generation", "identity")
        rules = {
            name: {key: value for key, value in rule.items() if key != "per_sample"}
            for name, rule in self.score.get("rules", {}).items()
        }
        values = {
            **vars(self),
            "score": {**self.score, "rules": rules},
            "generation": self.identity.get("generation", {}),
        }
        return {
            **{name: values[name] for name in shown},
            "seconds": round(self.seconds, 2),
            "predictions": str(self.folder / FINAL_FILE),
            "packages": package_versions(),
        }


def score(
    benchmark: Benchmark, replies: Replies, limit: int | None = None, options: Mapping[str, Any] | None = None
) -> RunResult:
    """Score the replies in a folder, and write ``predictions.jsonl``, ``scores.json`` and ``results.json`` there.

    Questions without a reply count as missing; with a ``limit`` only the first so many are scored.

    Raises:
        ValueError: A data file is malformed, or the replies are to other questions.
    """
    questions = benchmark.questions()
    asked = questions[:limit]
    lines, failures = replies.read(asked)
    predictions = [benchmark.prediction(asked[n], line["text"]) for n, line in lines.items()]
    replies.finish(predictions)
    found = _restrict(benchmark.score(predictions, **(options or {})), asked, len(questions), len(lines))
    boxes = _describe_boxes({**replies.identity.get("boxes", {}), **replies.about.get("boxes", {})}, lines)
    found = {**found, "warnings": [*found.get("warnings", ()), *_box_warnings(boxes, asked)]}
    result = RunResult(
        benchmark=benchmark.name,
        prompt=benchmark.prompt,
        score=found,
        headline=_headline(benchmark, found),
        counts=_counts(questions, asked, lines, len(failures), replies.resumed),
        failures=[{"id": failure["id"], "error": failure["error"]} for failure in failures[:_SHOWN]],
        boxes=boxes,
        identity=replies.identity,
        seconds=replies.seconds,
        folder=replies.folder,
        samples=list(lines.values()),
    )
    if failures:
        first = f"{failures[0]['id']}: {failures[0]['error']}"
        message = "%s: %d of %d questions are counted as not answered; the first, %s"
        _logger.warning(message, benchmark.name, len(failures), len(asked), first)
    write_json(replies.folder / SCORES_FILE, result.score)
    write_json(replies.folder / RESULTS_FILE, result.to_dict())
    return result


def metric_of(rules: Mapping[str, Any], rule: str, metric: str) -> Any:
    """A metric of a rule, ``a.b`` where metrics are nested; None where there is none."""
    node: Any = rules.get(rule, {}).get("metrics", {})
    for name in [metric] if isinstance(node, Mapping) and metric in node else metric.split("."):
        node = node.get(name) if isinstance(node, Mapping) else None
    return node


def _restrict(found: ScoreResult, asked: Sequence[Question], total: int, answered: int) -> ScoreResult:
    """The score of a limited run: means over the questions that were asked, instead of metrics over all."""
    if len(asked) == total:
        return found
    rules = {}
    for name, rule in found.get("rules", {}).items():
        # A row with copies, which may not have been asked, has the score of its own.
        entries = _asked_entries(rule["per_sample"], asked, total)
        kept = [{**entry, "score": float(entry["vanilla" if "vanilla" in entry else "score"])} for entry in entries]
        rules[name] = {"metrics": {"mean_score": mean_score(kept) if kept else None}, "per_sample": kept}
    note = f"limited to the first {len(asked)} of {total} questions: mean score of these, not the benchmark's metrics"
    warnings = [warning for warning in found.get("warnings", []) if "have no prediction" not in warning]
    counts = {"n": len(asked), "n_missing": len(asked) - answered}
    return {**found, **counts, "warnings": [*warnings, note], "rules": rules}


def _asked_entries(entries: Sequence[ReplyLine], asked: Sequence[Question], total: int) -> Sequence[ReplyLine]:
    """Entries of the questions that were asked: by id, or by place where several questions have one id."""
    if len(entries) == total and len({str(entry["id"]) for entry in entries}) < total:
        return entries[: len(asked)]
    ids = {str(question.id) for question in asked}
    return [entry for entry in entries if str(entry["id"]) in ids]


def _headline(benchmark: Benchmark, found: ScoreResult) -> dict[str, Any]:
    rules = found.get("rules", {})
    rule, metric = benchmark.headline
    if rule not in rules:
        rule = next(iter(rules), rule)
    metrics = rules.get(rule, {}).get("metrics", {})
    if "mean_score" in metrics and metric not in metrics:
        metric = "mean_score"
    return {"rule": rule, "metric": metric, "value": metric_of(rules, rule, metric)}


def _counts(
    questions: Sequence[Question], asked: Sequence[Question], lines: Mapping[int, ReplyLine], failed: int, resumed: int
) -> dict[str, int]:
    return {
        "questions": len(questions),
        "asked": len(asked),
        "answered": len(lines),
        "failed": failed,
        "resumed": resumed,
        "truncated": sum(line["truncated"] for line in lines.values()),
        "empty": sum(not line["text"].strip() for line in lines.values()),
        "pictures": len({question.picture_key for question in asked if question.picture_key is not None}),
    }


def _describe_boxes(source: Mapping[str, Any], lines: Mapping[int, ReplyLine]) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    for line in lines.values():
        counts.update(line.get("source", {}))
    shown = [line["boxes"] for line in lines.values() if "boxes" in line]
    given = sum(number > 0 for number in shown)
    return {**source, "with": given, "without": len(shown) - given, "counts": dict(counts)}


def _box_warnings(boxes: Mapping[str, Any], asked: Sequence[Question]) -> list[str]:
    """Boxes that were looked up and not found at all, or that may be those of another picture."""
    if "file" not in boxes:
        return []
    pictures: dict[str, set[str | None]] = defaultdict(set)
    for question in asked:
        if question.picture is not None:
            key = question.id if question.box_key is None else question.box_key
            pictures[str(key)].add(question.picture_key)
    counts = boxes["counts"]
    several = [key for key, shown in pictures.items() if len(shown) > 1]
    warnings = name_ids(
        several, f"keys of boxes stand for several pictures each; {boxes['file']} may have the boxes of another one"
    )
    if counts.get("without") and not counts.get("with"):
        warnings += name_ids(pictures, f"keys of boxes were looked up and none of them is in {boxes['file']}")
    return warnings
