"""SEED-Bench from its own JSON, by LLaVA's rule: the reply has to be the letter and nothing else.

Metrics: ``total`` (also ``accuracy``), ``image`` and ``video`` by the type of data, and one for each type of question
by its name; ``*_rounded`` in percent with two decimals, as the script prints them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mg_llava.data.records.tables import id_key, plain_id
from mg_llava.evaluation.asking import LETTER_REQUEST, file_opener
from mg_llava.evaluation.benchmark import BENCHMARKS, Benchmark, Question
from mg_llava.evaluation.release import HUGGING_FACE, Release
from mg_llava.evaluation.scoring.files import find_file, read_json, take
from mg_llava.evaluation.scoring.joining import ScoreResult, join_predictions, make_result, share


@dataclass(frozen=True)
class SeedData:
    """Questions, the name of each type of question, and what is wrong with the file."""

    questions: Sequence[Mapping[str, Any]]
    type_names: Mapping[int, str]
    warnings: Sequence[str] = ()


def load_seed(paths: Sequence[Path]) -> SeedData:
    """Read ``SEED-Bench.json`` (or the folder with it).

    Raises:
        ValueError: If it is malformed; the message names file and question.
    """
    path = find_file(paths, "SEED-Bench file", "*.json")
    content = read_json(path)
    questions: dict[str, Mapping[str, Any]] = {}
    repeated = []
    for number, question in enumerate(take(content, "questions", str(path)), start=1):
        where = f"{path}: question {number}"
        for name in ("question_id", "question_type_id", "data_type"):
            take(question, name, where)
        key = id_key(question["question_id"])
        if questions.setdefault(key, question) is not question:
            repeated.append(key)
    names = {number: name for name, number in content.get("question_type", {}).items()}
    warnings = []
    if repeated:
        warnings.append(f"{path}: {len(repeated)} question ids repeat, such as {repeated[0]}; the first was kept")
    return SeedData(list(questions.values()), names, warnings)


def score_seed(data: SeedData, predictions: Sequence[Mapping[str, Any]], **options: Any) -> ScoreResult:
    """Score by the rule ``official`` (LLaVA's script): equality, without stripping anything.

    Where the script fails, on a type of question without a right reply, the figure is 0.
    """
    ids = [question["question_id"] for question in data.questions]
    joined = join_predictions(ids, predictions, ("question_id", "index", "id"), ("text", "prediction"))
    warnings = [*data.warnings]
    if not any(question.get("answer") for question in data.questions):
        warnings.append("the file has no answers: nothing is scored; SEED-Bench's server takes `submission`")
        lines = [{"question_id": key, "prediction": text} for key, text in zip(ids, joined.texts, strict=True)]
        return make_result(joined, {}, warnings, submission=lines)
    samples = []
    groups: dict[str, list[float]] = defaultdict(list)
    for question, text, line in zip(data.questions, joined.texts, joined.lines, strict=True):
        right = float(line is not None and text == question.get("answer"))
        kind = data.type_names.get(question["question_type_id"], f"type {question['question_type_id']}")
        samples.append(
            {
                "id": question["question_id"],
                "score": right,
                "parsed": text,
                "answer": question.get("answer"),
                "category": kind,
                "data_type": question["data_type"],
            }
        )
        groups[kind].append(right)
        groups[question["data_type"]].append(right)
        groups["total"].append(right)
    metrics = {name: share(sum(values), len(values)) for name, values in groups.items()}
    none_right = [name for name in groups if metrics[name] == 0]
    if none_right:
        warnings.append(f"no right reply to {', '.join(none_right)}; 0, where the script stops with a KeyError")
    metrics["accuracy"] = metrics.get("total", 0.0)
    metrics |= {f"{name}_rounded": round(100 * value, 2) for name, value in metrics.items()}
    return make_result(joined, {"official": {"metrics": metrics, "per_sample": samples}}, warnings)


@BENCHMARKS.register
class SEED(Benchmark):
    """SEED-Bench with the pictures in ``image_folder`` (``SEED-Bench-image``); arguments as of ``Benchmark``.

    Questions about videos are not asked, and count as missing in ``total``: quote ``image``.
    """

    scorer = "seed"
    form = 'SEED-Bench.json; lines {"question_id", "text"}'
    load = staticmethod(load_seed)
    rate = staticmethod(score_seed)
    releases = (
        Release(
            "seed",
            ("seed_bench/SEED-Bench.json",),
            "seed_bench/SEED-Bench-image",
            f"{HUGGING_FACE}AILab-CVC/SEED-Bench: SEED-Bench.json and SEED-Bench-image.zip",
            "SEED-I",
            "the picture questions only, quote image; videos need their middle frames as pictures",
        ),
    )
    id_field = "question_id"
    text_field = "text"
    headline = ("official", "image")

    def questions(self) -> Sequence[Question]:
        """The questions about pictures."""
        return [self._question(item) for item in load_seed(self.data).questions if item["data_type"] == "image"]

    def score(self, predictions: Sequence[Mapping[str, Any]], **options: Any) -> ScoreResult:
        """As of ``Benchmark``, with a warning for the videos."""
        result = super().score([dict(line) for line in predictions], **options)
        result["warnings"].append("questions about videos were not asked: quote 'image', not 'total'")
        return result

    def _question(self, item: Mapping[str, Any]) -> Question:
        options = [f"{letter}. {item[f'choice_{letter.lower()}']}" for letter in "ABCD"]
        text = "\n".join([item["question"], *options, LETTER_REQUEST])
        number = plain_id(str(item["question_id"]))
        name = str(item["data_id"])
        opener = file_opener(self.picture_file(name, "SEED-Bench-image"), f"question {number}")
        return Question(number, text, opener, name, number)
