"""Runs a benchmark: questions to replies to scores, resumable, in one process or several.

Questions are grouped by picture, so that each picture is opened and encoded once. Every batch of replies is on disk
before the next one starts; processes share what is left, picture by picture.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from mmengine.logging import print_log
from PIL import Image

from mg_llava.data.records.schema import NO_BOXES, BoxRecord
from mg_llava.evaluation.benchmark import Benchmark, Question
from mg_llava.evaluation.identity import package_versions, run_identity
from mg_llava.evaluation.predictions import Line, Replies, write_json
from mg_llava.evaluation.scoring.joining import ScoreResult
from mg_llava.inference import Answer, Predictor, Request
from mg_llava.inference.answering import Answered
from mg_llava.inference.predictor import CACHE_MB
from mg_llava.work.processes import Processes

Progress = Callable[[int, int], None]
"""Called with the number of questions that this process has answered and of all that it has to."""

BadSamples = Literal["report", "raise"]

RESULTS_FILE = "results.json"
SCORES_FILE = "scores.json"
_SHOWN = 20


class BoxSource(Protocol):
    """Gives each question its boxes; see ``mg_llava.evaluation.boxes``."""

    def look_up(self, question: Question, image: Any = None) -> tuple[Any, dict[str, int]]:
        """Boxes of a picture, or None, and what that counts as; of a video's frames a list of boxes."""

    def describe(self) -> dict[str, Any]:
        """What the boxes depend on, and ``counts``."""


@dataclass
class RunResult:
    """What a run of a benchmark gave.

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
        generation: Arguments of ``generate``.
        identity: All that the replies depend on.
        seconds: Of this run's inference.
        folder: Where ``predictions.jsonl`` is.
        samples: For each answered question ``n``, ``id``, ``text``, ``truncated``, ``source`` (what its boxes count
            as), and of its box tokens their number ``boxes``, mean ``confidence`` and mean ``size`` (square root of
            the share of the picture).
    """

    benchmark: str
    prompt: str
    score: ScoreResult
    headline: dict[str, Any]
    counts: dict[str, int]
    failures: list[dict[str, Any]]
    boxes: dict[str, Any]
    generation: dict[str, Any]
    identity: dict[str, Any]
    seconds: float
    folder: Path
    samples: list[Line] = field(repr=False, default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without what is told of each question."""
        rules = {
            name: {key: value for key, value in rule.items() if key != "per_sample"}
            for name, rule in self.score.get("rules", {}).items()
        }
        return {
            "benchmark": self.benchmark,
            "prompt": self.prompt,
            "headline": self.headline,
            "counts": self.counts,
            "failures": self.failures,
            "score": {**self.score, "rules": rules},
            "boxes": self.boxes,
            "generation": self.generation,
            "identity": self.identity,
            "seconds": round(self.seconds, 2),
            "predictions": str(self.folder / "predictions.jsonl"),
            "packages": package_versions(),
        }


def run_benchmark(
    benchmark: Benchmark,
    predictor: Predictor,
    out_dir: str | Path,
    boxes: BoxSource | None = None,
    batch_size: int = 32,
    limit: int | None = None,
    *,
    model_identity: Mapping[str, Any] | None = None,
    bad_samples: BadSamples = "report",
    fresh: bool = False,
    workers: int = 2,
    cache_mb: int = CACHE_MB,
    progress: Progress | None = None,
    processes: Processes | None = None,
    score_options: Mapping[str, Any] | None = None,
    **generation: Any,
) -> RunResult | None:
    """Answer the questions of a benchmark and score the replies.

    Args:
        benchmark: The benchmark.
        predictor: The model with all it needs.
        out_dir: Folder of results; the benchmark's own folder in it has its name.
        boxes: Where boxes come from; None for no boxes.
        batch_size: Questions at a time.
        limit: Only the first so many questions; a later run may ask more.
        model_identity: What tells this model from others, such as hashes of config and checkpoint; a checksum of
            the weights by default.
        bad_samples: ``report`` counts questions whose picture cannot be read or that are too long, and leaves them
            without prediction; a later run tries them again. ``raise`` ends with the first of them.
        fresh: Throw away earlier replies in the folder.
        workers: Threads that decode pictures.
        cache_mb: Limit of the encoded pictures that are kept at a time.
        progress: Called after each batch.
        processes: The processes that share the work; those of ``torchrun`` by default.
        score_options: Options of the scorer.
        **generation: Overrides arguments of ``generate``; ``max_new_tokens`` is the benchmark's by default.

    Returns:
        The result, in the main process; None in the others.

    Raises:
        ResumeError: The folder holds replies of another model, prompt, generation, box source or data file.
        PictureError: A picture cannot be read, and ``bad_samples`` is ``raise``.
        ValueError: A data file is malformed.
    """
    processes = processes or Processes()
    generation = {"max_new_tokens": benchmark.max_new_tokens, **generation}
    questions = benchmark.questions()
    asked = questions[:limit]
    replies = Replies(Path(out_dir) / benchmark.name, processes.rank)
    identity: dict[str, Any] = {}
    if processes.is_main:
        identity = run_identity(benchmark, questions, predictor, boxes, generation, model_identity)
        replies.prepare(identity, fresh)
    processes.gather()
    known = _known(replies, asked)
    processes.gather()  # nobody writes before all have read
    begin = time.monotonic()
    share = _share(asked, known, processes)
    counts: dict[int, dict[str, int]] = {}
    requests = (_request(benchmark.name, n, asked[n], boxes, counts) for n in share)
    stream = predictor.stream(requests, batch_size, workers, cache_mb, **generation)
    failures = _write(stream, share, asked, counts, replies, bad_samples, progress)
    seconds = time.monotonic() - begin
    everyone = processes.gather(failures)
    if not processes.is_main:
        return None
    failures = sorted((failure for part in everyone for failure in part), key=lambda failure: failure["n"])
    lines = _known(replies, asked)
    _check_complete(asked, lines, failures, replies.folder)
    predictions = [benchmark.prediction(asked[n], lines[n]["text"]) for n in sorted(lines)]
    replies.finish(predictions)
    score = _restrict(benchmark.score(predictions, **(score_options or {})), asked, len(questions), len(lines))
    result = RunResult(
        benchmark=benchmark.name,
        prompt=benchmark.prompt,
        score=score,
        headline=_headline(benchmark, score),
        counts=_counts(questions, asked, lines, failures, len(known)),
        failures=[{"id": failure["id"], "error": failure["error"]} for failure in failures[:_SHOWN]],
        boxes=_describe_boxes(boxes, lines),
        generation=identity["generation"],
        identity=identity,
        seconds=seconds,
        folder=replies.folder,
        samples=[lines[n] for n in sorted(lines)],
    )
    _report(result, len(failures))
    return result


def _write(
    stream: Iterable[Answered],
    share: Sequence[int],
    asked: Sequence[Question],
    counts: dict[int, dict[str, int]],
    replies: Replies,
    bad_samples: BadSamples,
    progress: Progress | None,
) -> list[dict[str, Any]]:
    """Write each batch of answers before the next is asked for; returns ``n``, ``id`` and ``error`` of failures."""
    failures: list[dict[str, Any]] = []
    answered = 0
    try:
        for batch in stream:
            done = [(share[place], answer) for place, answer in batch]
            replies.append([_line(n, asked[n], answer, counts) for n, answer in done if isinstance(answer, Answer)])
            failed = [(n, answer) for n, answer in done if isinstance(answer, Exception)]
            if failed and bad_samples == "raise":
                raise failed[0][1]
            failures += [{"n": n, "id": asked[n].id, "error": str(error)} for n, error in failed]
            answered += len(batch)
            if progress is not None:
                progress(answered, len(share))
    finally:
        replies.close()
    return failures


def _report(result: RunResult, failures: int) -> None:
    """Log what could not be answered, and write the benchmark's own files."""
    if failures:
        print_log(
            f"{result.benchmark}: {failures} of {result.counts['asked']} questions could not be answered; the first: "
            f"{result.failures[0]['error']}",
            logger="current",
            level=logging.WARNING,
        )
    write_json(result.folder / SCORES_FILE, result.score)
    write_json(result.folder / RESULTS_FILE, result.to_dict())


# -- questions ---------------------------------------------------------------------------------------------------


def _known(replies: Replies, asked: Sequence[Question]) -> dict[int, Line]:
    """Replies to the questions that are asked."""
    lines = {n: line for n, line in replies.read().items() if n < len(asked)}
    for n, line in lines.items():
        if str(line["id"]) != str(asked[n].id):
            raise ValueError(
                f"{replies.folder}: reply {n} is to question {line['id']!r}, the data has {asked[n].id!r} there; "
                "use another folder (--out), or --fresh"
            )
    return lines


def _share(asked: Sequence[Question], known: Mapping[int, Line], processes: Processes) -> list[int]:
    """Numbers of the questions that this process answers: every so-manieth picture of what is left."""
    pictures: dict[Hashable, list[int]] = {}
    for n, question in enumerate(asked):
        if n not in known:
            key = n if question.picture_key is None else question.picture_key
            pictures.setdefault(key, []).append(n)
    return [n for group in list(pictures.values())[processes.rank :: processes.size] for n in group]


def _request(
    name: str, n: int, question: Question, source: BoxSource | None, counts: dict[int, dict[str, int]]
) -> Request:
    """A request of a question; what its boxes count as is put into ``counts`` when they are looked up."""

    def find(images: Sequence[Image.Image]) -> list[BoxRecord]:
        if source is None:
            return [NO_BOXES] * len(images)
        found, kinds = source.look_up(question, images[0] if question.frames is None else list(images))
        counts[n] = {kind: count for kind, count in kinds.items() if count}
        records = [found] if question.frames is None else found or [None] * len(images)
        return [NO_BOXES if record is None else record for record in records]

    return Request(
        question.text,
        question.picture,
        None if question.picture is None else find,
        id=f"{name} {question.id}",
        key=question.picture_key,
        pictures=question.frames or 1,
    )


def _line(n: int, question: Question, answer: Answer, counts: dict[int, dict[str, int]]) -> Line:
    """What is kept of an answer."""
    line: Line = {"n": n, "id": question.id, "text": answer.text, "truncated": answer.truncated}
    if n in counts:
        line["source"] = counts.pop(n)
    if not answer.pictures:
        return line
    boxes = answer.boxes
    line["boxes"] = len(boxes)
    if len(boxes):
        line["confidence"] = round(float(np.mean([score for seen in answer.pictures for score in seen.scores])), 4)
        line["size"] = round(float(np.concatenate([_sizes(seen) for seen in answer.pictures]).mean()), 4)
    return line


def _sizes(seen: Any) -> np.ndarray:
    """Square root of the share of the picture that each box covers."""
    sides = (seen.boxes[:, 2:] - seen.boxes[:, :2]).clip(min=0)
    return np.sqrt(sides[:, 0] * sides[:, 1] / (seen.canvas.width * seen.canvas.height))


# -- results -----------------------------------------------------------------------------------------------------


def _check_complete(
    asked: Sequence[Question], lines: Mapping[int, Line], failures: Sequence[Mapping[str, Any]], folder: Path
) -> None:
    missing = set(range(len(asked))) - set(lines) - {failure["n"] for failure in failures}
    if missing:
        raise RuntimeError(
            f"{len(missing)} replies of other processes are not in {folder}; all processes need to see the same folder"
        )


def _restrict(score: ScoreResult, asked: Sequence[Question], total: int, answered: int) -> ScoreResult:
    """The score of a limited run: means over the questions that were asked, instead of metrics over all."""
    if len(asked) == total:
        return score
    rules = {}
    for name, rule in score.get("rules", {}).items():
        kept = [_row_score(entry) for entry in _asked_entries(rule["per_sample"], asked, total)]
        mean = sum(entry["score"] for entry in kept) / len(kept) if kept else None
        rules[name] = {"metrics": {"mean_score": mean}, "per_sample": kept}
    note = f"limited to the first {len(asked)} of {total} questions: mean score of these, not the benchmark's metrics"
    warnings = [warning for warning in score.get("warnings", []) if "have no prediction" not in warning]
    return {
        **score,
        "n": len(asked),
        "n_missing": len(asked) - answered,
        "warnings": [*warnings, note],
        "rules": rules,
    }


def _asked_entries(entries: Sequence[Line], asked: Sequence[Question], total: int) -> list[Line]:
    """Entries of the questions that were asked: by id, or by place where several questions have one id."""
    if len(entries) == total and len({str(entry["id"]) for entry in entries}) < total:
        return list(entries[: len(asked)])
    ids = {str(question.id) for question in asked}
    return [entry for entry in entries if str(entry["id"]) in ids]


def _row_score(entry: Line) -> Line:
    """An entry with the score of its own row, where it has copies that may not have been asked."""
    return {**entry, "score": float(entry["vanilla"] if "vanilla" in entry else entry["score"])}


def _headline(benchmark: Benchmark, score: ScoreResult) -> dict[str, Any]:
    rules = score.get("rules", {})
    rule, metric = benchmark.headline
    if rule not in rules:
        rule = next(iter(rules), rule)
    metrics = rules.get(rule, {}).get("metrics", {})
    if "mean_score" in metrics and metric not in metrics:
        metric = "mean_score"
    value: Any = metrics
    for name in [metric] if isinstance(metrics, Mapping) and metric in metrics else metric.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return {"rule": rule, "metric": metric, "value": value}


def _counts(
    questions: Sequence[Question],
    asked: Sequence[Question],
    lines: Mapping[int, Line],
    failures: Sequence[Any],
    resumed: int,
) -> dict[str, int]:
    return {
        "questions": len(questions),
        "asked": len(asked),
        "answered": len(lines),
        "failed": len(failures),
        "resumed": resumed,
        "truncated": sum(line["truncated"] for line in lines.values()),
        "empty": sum(not line["text"].strip() for line in lines.values()),
        "pictures": len({question.picture_key for question in asked if question.picture_key is not None}),
    }


def _describe_boxes(source: BoxSource | None, lines: Mapping[int, Line]) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    for line in lines.values():
        counts.update(line.get("source", {}))
    shown = [line["boxes"] for line in lines.values() if "boxes" in line]
    given = sum(number > 0 for number in shown)
    described = source.describe() if source is not None else {"spec": "none"}
    return {**described, "with": given, "without": len(shown) - given, "counts": dict(counts)}
