"""SEED-Bench from its own JSON, by LLaVA's rule: the reply has to be the letter and nothing else.

Metrics: ``total`` (also ``accuracy``), ``image`` and ``video`` by the type of data, and one for each type of question
by its name; ``*_rounded`` in percent with two decimals, as the script prints them.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mg_llava.data.records.tables import id_key, plain_id
from mg_llava.evaluation.asking import LETTER_REQUEST
from mg_llava.evaluation.benchmark import BENCHMARKS, Benchmark, Question
from mg_llava.evaluation.release import HUGGING_FACE, Release
from mg_llava.evaluation.scoring.figures import mean
from mg_llava.evaluation.scoring.files import find_file, read_json, take
from mg_llava.evaluation.scoring.joining import Line, Lines, ScoreResult, join_predictions


@dataclass(frozen=True)
class SeedData:
    """Questions, each with the name of its type as ``kind``, and what is wrong with the file."""

    questions: Lines
    warnings: Sequence[str]


def load_seed(paths: Sequence[Path]) -> SeedData:
    """Read ``SEED-Bench.json`` (or the folder with it); raises ``ValueError`` that names file and question."""
    path = find_file(paths, "SEED-Bench file", "*.json")
    content = read_json(path)
    kinds = {number: name for name, number in content.get("question_type", {}).items()}
    questions: dict[str, Line] = {}
    repeated = []
    for number, question in enumerate(take(content, "questions", str(path)), start=1):
        key, kind, _ = (
            take(question, name, f"{path}: question {number}")
            for name in ("question_id", "question_type_id", "data_type")
        )
        if id_key(key) in questions:
            repeated.append(id_key(key))
        questions.setdefault(id_key(key), {**question, "kind": kinds.get(kind, f"type {kind}")})
    text = (
        f"{path}: {len(repeated)} question ids repeat, such as {repeated[0]}; the first was kept" if repeated else ""
    )
    return SeedData(list(questions.values()), [text] if text else [])


def score_seed(data: SeedData, predictions: Lines, **options: Any) -> ScoreResult:
    """Score by the rule ``official`` (LLaVA's script): equality, without stripping anything.

    Where the script fails, on a type of question without a right reply, the figure is 0.
    """
    ids = [question["question_id"] for question in data.questions]
    joined = join_predictions(ids, predictions, ("question_id", "index", "id"), ("text", "prediction"))
    warnings = [*data.warnings]
    if not any(question.get("answer") for question in data.questions):
        warnings.append("the file has no answers: nothing is scored; SEED-Bench's server takes `submission`")
        lines = [{"question_id": key, "prediction": text} for key, text in zip(ids, joined.texts, strict=True)]
        return joined.result({}, warnings, submission=lines)
    samples = []
    groups: dict[str, list[float]] = defaultdict(list)
    for question, text, line in joined.beside(data.questions):
        answer, kind, data_type = question.get("answer"), question["kind"], question["data_type"]
        right = float(line is not None and text == answer)
        reply = {"score": right, "parsed": text, "answer": answer}
        samples.append({"id": question["question_id"], **reply, "category": kind, "data_type": data_type})
        for group in (kind, data_type, "total"):
            groups[group].append(right)
    metrics = {name: mean(values) for name, values in groups.items()}
    none_right = [name for name in groups if metrics[name] == 0]
    if none_right:
        warnings.append(f"no right reply to {', '.join(none_right)}; 0, where the script stops with a KeyError")
    metrics["accuracy"] = metrics.get("total", 0.0)
    metrics |= {f"{name}_rounded": round(100 * value, 2) for name, value in metrics.items()}
    return joined.result({"official": (metrics, samples)}, warnings)


@BENCHMARKS.register
class SEED(Benchmark):
    """SEED-Bench with the pictures in ``image_folder`` (``SEED-Bench-image``); arguments as of ``Benchmark``.

    Questions about videos are not asked, and count as missing in ``total``: quote ``image``.
    """

    scorer = "seed"
    form = 'SEED-Bench.json; lines {"question_id", "text"}'
    load, rate = staticmethod(load_seed), staticmethod(score_seed)
    _get = f"{HUGGING_FACE}AILab-CVC/SEED-Bench: SEED-Bench.json and SEED-Bench-image.zip"
    _note = "the picture questions only, quote image; videos need their middle frames as pictures"
    _files = ("seed_bench/SEED-Bench.json",), "seed_bench/SEED-Bench-image"
    releases = (Release("seed", *_files, _get, "SEED-I", _note),)
    id_field, text_field = "question_id", "text"
    headline = ("official", "image")

    def questions(self) -> Sequence[Question]:
        """The questions about pictures."""
        return [self._question(item) for item in load_seed(self.data).questions if item["data_type"] == "image"]

    def score(self, predictions: Lines, **options: Any) -> ScoreResult:
        """As of ``Benchmark``, with a warning for the videos."""
        result = super().score(predictions, **options)
        result["warnings"].append("questions about videos were not asked: quote 'image', not 'total'")
        return result

    def _question(self, item: Line) -> Question:
        options = [f"{letter}. {item[f'choice_{letter.lower()}']}" for letter in "ABCD"]
        text = "\n".join([item["question"], *options, LETTER_REQUEST])
        return self.ask(plain_id(str(item["question_id"])), text, str(item["data_id"]), "SEED-Bench-image")
