"""GQA: balanced questions about scenes, exact match by type and length, and the distribution of answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mg_llava.evaluation.asking import ask_shortly, file_opener
from mg_llava.evaluation.benchmark import BENCHMARKS, Benchmark, Question
from mg_llava.evaluation.release import Release
from mg_llava.evaluation.scoring.answers import round_as_printed
from mg_llava.evaluation.scoring.files import find_files, read_json, read_json_lines, take
from mg_llava.evaluation.scoring.joining import ScoreResult, join_predictions, make_result, share
from mg_llava.evaluation.scoring.metrics import flatten

_NO_ANSWERS = "the questions have no answers (a test split): submit the predictions to the GQA server"
_FREE_STEPS = ("exist", "query: name", "choose name")
_GROUPS = ("structural", "semantic", "steps", "words")
_COMMON_GROUPS = ("color", "material", "shape")


@dataclass(frozen=True)
class GQAAnnotations:
    """Questions by id, all of the file, and, if there is a choices file, valid and plausible answers by id."""

    questions: Mapping[str, Mapping[str, Any]]
    choices: Mapping[str, Mapping[str, Any]] | None = None


def load_gqa(paths: Sequence[str | Path]) -> GQAAnnotations:
    """Questions of a JSON file such as ``testdev_balanced_questions.json``, or of a folder of its chunks.

    A file whose name has ``choices`` in it adds validity and plausibility; none is released for testdev.
    """
    questions: dict[str, Mapping[str, Any]] = {}
    choices: dict[str, Mapping[str, Any]] = {}
    for path in find_files(paths, "*.json"):
        content = read_json(path)
        if not isinstance(content, dict):
            raise ValueError(f"{path}: expected an object with a question for each id, found {type(content).__name__}")
        (choices if "choices" in path.name else questions).update(content)
    for name, question in questions.items():
        take(question, "question", f"{', '.join(map(str, paths))}: question {name}")
    if not questions:
        raise ValueError(f"{', '.join(map(str, paths))}: no GQA questions there (looked for *.json)")
    return GQAAnnotations(questions, choices or None)


def score_gqa(annotations: GQAAnnotations, predictions: Sequence[Mapping[str, Any]], **options: Any) -> ScoreResult:
    """Figures of the official script for balanced questions.

    A reply under ``text`` loses periods at its end and is lowercased, as LLaVA's converter does; one under
    ``questionId`` and ``prediction`` (the official form) is taken as it is.
    """
    balanced = {name: one for name, one in annotations.questions.items() if one.get("isBalanced", True)}
    known = [line for line in predictions if _is_of(annotations.questions, balanced, line)]
    joined = join_predictions(list(balanced), known, ("question_id", "questionId", "id"), ("text", "prediction"))
    if not any("answer" in question for question in balanced.values()):
        return make_result(joined, {}, [_NO_ANSWERS])
    samples = []
    for (name, question), line, text in zip(balanced.items(), joined.lines, joined.texts, strict=True):
        predicted = None if line is None else _prediction(line, text)
        gold = question.get("answer")
        samples.append(
            {
                "id": name,
                "score": float(predicted is not None and predicted == gold),
                "parsed": predicted or "",
                "answer": gold,
                "answered": line is not None,
                **_kinds(question),
            }
        )
    metrics = _metrics(samples, list(balanced.values()))
    warnings = []
    if annotations.choices is not None:
        metrics.update(_choice_metrics(samples, balanced, annotations.choices))
        metrics["rounded"].update(
            {name: round_as_printed(100 * metrics[name]) for name in ("validity", "plausibility")}
        )
    else:
        warnings.append("validity and plausibility are left out: they need the choices file of the split")
    return make_result(joined, {"official": {"metrics": flatten(metrics), "per_sample": samples}}, warnings)


def _is_of(questions: Mapping[str, Any], balanced: Mapping[str, Any], line: Mapping[str, Any]) -> bool:
    """Whether a line is to be joined: predictions for questions that are not balanced are legal and of no use."""
    name = str(line.get("question_id", line.get("questionId", line.get("id"))))
    return name in balanced or name not in questions


def _prediction(line: Mapping[str, Any], text: str) -> str:
    return text if "questionId" in line and "text" not in line else text.rstrip(".").lower()


def _kinds(question: Mapping[str, Any]) -> dict[str, Any]:
    types = question.get("types", {})
    structural = types.get("structural", "")
    return {
        "category": "open" if structural == "query" else "binary",
        "structural": structural,
        "semantic": types.get("semantic", ""),
        "steps": sum(not _is_free(step) for step in question.get("semantic", ())),
        "words": len(question["question"].split()),
    }


def _is_free(step: Mapping[str, Any]) -> bool:
    """Whether a step of reasoning is a final query, which does not count."""
    text = f"{step['operation']}: {step['argument']}"
    return any(name in text for name in _FREE_STEPS)


def _metrics(samples: Sequence[Mapping[str, Any]], questions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    metrics: dict[str, Any] = {"accuracy": _mean(sample["score"] for sample in samples)}
    for kind in ("binary", "open"):
        metrics[kind] = _mean(sample["score"] for sample in samples if sample["category"] == kind)
    distribution = _distribution(samples, questions)
    if distribution is not None:
        metrics["distribution"] = distribution
    rounded: dict[str, Any] = {
        name: round_as_printed(value * (1 if name == "distribution" else 100)) for name, value in metrics.items()
    }
    for kind in _GROUPS:
        groups: dict[Any, list[float]] = defaultdict(list)
        for sample in samples:
            groups[sample[kind]].append(sample["score"])
        ordered = sorted(groups.items())
        metrics[kind] = {str(key): {"accuracy": _mean(some), "n": len(some)} for key, some in ordered}
        rounded[kind] = {str(key): round_as_printed(_mean(some) * 100) for key, some in ordered}
    return {**metrics, "rounded": rounded}


def _distribution(samples: Sequence[Mapping[str, Any]], questions: Sequence[Mapping[str, Any]]) -> float | None:
    """Chi-square statistic of predicted against true answers, averaged over groups; None without groups."""
    gold: dict[Any, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    predicted: dict[Any, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for sample, question in zip(samples, questions, strict=True):
        group = (question.get("groups") or {}).get("global")
        if group is not None:
            gold[group][sample["answer"]] += 1
            if sample["answered"]:
                predicted[group][sample["parsed"]] += 1
    weighted, overall = 0.0, 0
    for group, counts in gold.items():
        score = sum((float(predicted[group].get(answer, 0) - count) ** 2) / count for answer, count in counts.items())
        size = sum(counts.values())
        weighted += score * size
        overall += size
    return weighted / overall / 100 if overall else None


def _choice_metrics(
    samples: Sequence[Mapping[str, Any]],
    questions: Mapping[str, Mapping[str, Any]],
    choices: Mapping[str, Mapping[str, Any]],
) -> dict[str, float]:
    metrics = {}
    for name, kind in (("validity", "valid"), ("plausibility", "plausible")):
        hits = []
        for sample in samples:
            common = "Common" in questions[sample["id"]].get("types", {}).get("detailed", "")
            group = _COMMON_GROUPS if common else choices.get(sample["id"], {}).get(kind, ())
            hits.append(float(sample["answered"] and sample["parsed"] in group))
        metrics[name] = _mean(hits)
    return metrics


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return share(float(sum(values)), len(values))


@BENCHMARKS.register
class GQA(Benchmark):
    """GQA from ``testdev_balanced_questions.json`` (and LLaVA's question jsonl, if given), pictures in a folder."""

    scorer = "gqa"
    form = 'testdev_balanced_questions.json; lines {"question_id", "text"}'
    load = staticmethod(load_gqa)
    rate = staticmethod(score_gqa)
    releases = (
        Release(
            "gqa",
            ("gqa/testdev_balanced_questions.json",),
            "gqa/images",
            "https://cs.stanford.edu/people/dorarad/gqa/download.html: questions 1.2 and images",
        ),
    )
    id_field = "question_id"
    text_field = "text"
    headline = ("official", "accuracy")

    def questions(self) -> Sequence[Question]:
        """The questions of the jsonl, or else the balanced ones of the JSON."""
        for path in find_files(self.data, "*.jsonl"):
            lines = read_json_lines(path)
            return [self._question(str(line["question_id"]), line["text"], line["image"]) for line in lines]
        return [
            self._question(name, ask_shortly(one["question"]), f"{one['imageId']}.jpg")
            for name, one in load_gqa(self.data).questions.items()
            if one.get("isBalanced", True)
        ]

    def _question(self, name: str, text: str, image: str) -> Question:
        opener = file_opener(self.picture_file(image, "images"), f"question {name}")
        return Question(name, text, opener, image, name)
