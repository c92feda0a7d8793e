"""GQA: balanced questions about scenes, exact match by type and length, and the distribution of answers."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from mg_llava.evaluation.asking import ask_shortly
from mg_llava.evaluation.benchmark import BENCHMARKS, Benchmark, Question
from mg_llava.evaluation.release import Release
from mg_llava.evaluation.scoring.answers import round_as_printed
from mg_llava.evaluation.scoring.figures import group_by, mean, mean_score
from mg_llava.evaluation.scoring.files import find_files, listing, read_json, read_json_lines, take
from mg_llava.evaluation.scoring.joining import Line, Lines, ScoreResult, join_predictions

_NO_ANSWERS = "the questions have no answers (a test split): submit the predictions to the GQA server"
_FREE_STEPS = ("exist", "query: name", "choose name")
_GROUPS = ("structural", "semantic", "steps", "words")
_COMMON_GROUPS = ("color", "material", "shape")


@dataclass(frozen=True)
class GQAAnnotations:
    """Questions by id, all of the file, and, if there is a choices file, valid and plausible answers by id."""

    questions: Mapping[str, Line]
    choices: Mapping[str, Line]


def load_gqa(paths: Sequence[Path]) -> GQAAnnotations:
    """Questions of a JSON file such as ``testdev_balanced_questions.json``, or of a folder of its chunks.

    A file whose name has ``choices`` in it adds validity and plausibility; none is released for testdev.
    """
    questions: dict[str, Line] = {}
    choices: dict[str, Line] = {}
    for path in find_files(paths, "*.json"):
        content = read_json(path)
        if not isinstance(content, dict):
            raise ValueError(f"{path}: expected an object with a question for each id, found {type(content).__name__}")
        (choices if "choices" in path.name else questions).update(content)
    for name, question in questions.items():
        take(question, "question", f"{listing(paths)}: question {name}")
    if not questions:
        raise ValueError(f"{listing(paths)}: no GQA questions there (looked for *.json)")
    return GQAAnnotations(questions, choices)


def score_gqa(annotations: GQAAnnotations, predictions: Lines, **options: Any) -> ScoreResult:
    """Figures of the official script for balanced questions; predictions for others are legal and of no use.

    A reply under ``text`` loses periods at its end and is lowercased, as LLaVA's converter does; one under
    ``questionId`` and ``prediction`` (the official form) is taken as it is.
    """
    balanced = {name: one for name, one in annotations.questions.items() if one.get("isBalanced", True)}
    others = annotations.questions.keys() - balanced.keys()
    known = [line for line in predictions if _id_of(line) not in others]
    joined = join_predictions(list(balanced), known, ("question_id", "questionId", "id"), ("text", "prediction"))
    if not any("answer" in question for question in balanced.values()):
        return joined.result({}, [_NO_ANSWERS])
    samples = []
    for (name, question), text, line in joined.beside(list(balanced.items())):
        is_official = line is not None and "questionId" in line and "text" not in line
        parsed, gold = text if is_official else text.rstrip(".").lower(), question.get("answer")
        reply = {"score": float(line is not None and parsed == gold), "parsed": parsed, "answer": gold}
        samples.append({"id": name, **reply, "answered": line is not None, **_kinds(question)})
    metrics = _metrics(samples, list(balanced.values()))
    if not annotations.choices:
        warnings = ["validity and plausibility are left out: they need the choices file of the split"]
        return joined.result({"official": (metrics, samples)}, warnings)
    for name, kind in (("validity", "valid"), ("plausibility", "plausible")):
        choices = {key: one.get(kind, ()) for key, one in annotations.choices.items()}
        metrics[name] = _share_among(samples, balanced, choices)
        metrics["rounded"][name] = round_as_printed(100 * metrics[name])
    return joined.result({"official": (metrics, samples)})


def _id_of(line: Line) -> str:
    return str(line.get("question_id", line.get("questionId", line.get("id"))))


def _kinds(question: Line) -> dict[str, Any]:
    """Groups of a question; steps of reasoning are counted without the final query."""
    types = question.get("types", {})
    steps = [f"{step['operation']}: {step['argument']}" for step in question.get("semantic", ())]
    return {
        "category": "open" if types.get("structural", "") == "query" else "binary",
        "structural": types.get("structural", ""),
        "semantic": types.get("semantic", ""),
        "steps": sum(not any(name in step for name in _FREE_STEPS) for step in steps),
        "words": len(question["question"].split()),
    }


def _metrics(samples: Lines, questions: Lines) -> dict[str, Any]:
    metrics: dict[str, Any] = {"accuracy": mean_score(samples)}
    for kind in ("binary", "open"):
        metrics[kind] = mean_score(sample for sample in samples if sample["category"] == kind)
    rounded: dict[str, Any] = {name: round_as_printed(value * 100) for name, value in metrics.items()}
    distribution = _distribution(samples, questions)
    if distribution is not None:
        metrics["distribution"], rounded["distribution"] = distribution, round_as_printed(distribution)
    for kind in _GROUPS:
        groups = sorted(group_by(samples, itemgetter(kind)).items())
        metrics[kind] = {str(key): {"accuracy": mean_score(some), "n": len(some)} for key, some in groups}
        rounded[kind] = {str(key): round_as_printed(mean_score(some) * 100) for key, some in groups}
    return {**metrics, "rounded": rounded}


def _distribution(samples: Lines, questions: Lines) -> float | None:
    """Chi-square statistic of predicted against true answers, averaged over groups; None without groups."""
    gold: dict[Any, Counter[str]] = defaultdict(Counter)
    predicted: dict[Any, Counter[str]] = defaultdict(Counter)
    for sample, question in zip(samples, questions, strict=True):
        group = (question.get("groups") or {}).get("global")
        if group is not None:
            gold[group][sample["answer"]] += 1
            predicted[group][sample["parsed"]] += sample["answered"]
    weighted, overall = 0.0, 0
    for group, counts in gold.items():
        score = sum((float(predicted[group][answer] - count) ** 2) / count for answer, count in counts.items())
        weighted += score * counts.total()
        overall += counts.total()
    return weighted / overall / 100 if overall else None


def _share_among(samples: Lines, questions: Mapping[str, Line], choices: Mapping[str, Any]) -> float:
    """Share of the replies that are among the choices of their question."""
    hits = []
    for sample in samples:
        is_common = "Common" in questions[sample["id"]].get("types", {}).get("detailed", "")
        group = _COMMON_GROUPS if is_common else choices.get(sample["id"], ())
        hits.append(float(sample["answered"] and sample["parsed"] in group))
    return mean(hits)


@BENCHMARKS.register
class GQA(Benchmark):
    """GQA from ``testdev_balanced_questions.json`` (and LLaVA's question jsonl, if given), pictures in a folder."""

    scorer = "gqa"
    form = 'testdev_balanced_questions.json; lines {"question_id", "text"}'
    load, rate = staticmethod(load_gqa), staticmethod(score_gqa)
    _get = "https://cs.stanford.edu/people/dorarad/gqa/download.html: questions 1.2 and images"
    releases = (Release("gqa", ("gqa/testdev_balanced_questions.json",), "gqa/images", _get),)
    id_field, text_field = "question_id", "text"
    headline = ("official", "accuracy")

    def questions(self) -> Sequence[Question]:
        """The questions of the jsonl, or else the balanced ones of the JSON."""
        for path in find_files(self.data, "*.jsonl"):
            lines = read_json_lines(path)
            return [self.ask(str(line["question_id"]), line["text"], line["image"], "images") for line in lines]
        return [
            self.ask(name, ask_shortly(one["question"]), f"{one['imageId']}.jpg", "images")
            for name, one in load_gqa(self.data).questions.items()
            if one.get("isBalanced", True)
        ]
