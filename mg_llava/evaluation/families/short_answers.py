"""Question answering with short free-form answers: DocVQA, InfographicVQA, OCR-VQA, ChartQA."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mg_llava.data.records.tables import plain_id, read_table, require_columns
from mg_llava.evaluation.asking import ask_shortly, file_opener, table_questions
from mg_llava.evaluation.benchmark import BENCHMARKS, Benchmark, Question
from mg_llava.evaluation.release import published_table
from mg_llava.evaluation.scoring.answers import anls, answer_list, relaxed_match
from mg_llava.evaluation.scoring.files import check_unique, find_file, find_files, read_json, take
from mg_llava.evaluation.scoring.joining import ScoreResult, join_predictions, make_result, share
from mg_llava.evaluation.scoring.metrics import flatten

ID_FIELDS = ("index", "questionId", "question_id", "id")
TEXT_FIELDS = ("prediction", "text", "answer")
NO_ANSWERS = "the data has no answers (a test split): nothing can be scored here, the predictions are to be submitted"


@dataclass(frozen=True)
class AnsweredQuestion:
    """A question with its reference answers.

    Attributes:
        id: As the data file has it.
        answers: Reference answers; empty in a test split.
        groups: Named groups that metrics are also given for, such as ``{"split": ["val"]}``.
        key: What predictions are joined on, where that is not the id.
    """

    id: Any
    answers: Sequence[str]
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    key: str = ""


Rule = Callable[[str, Sequence[str]], float]


def load_docvqa(paths: Sequence[str | Path]) -> list[AnsweredQuestion]:
    """Questions of the official JSON (``val_v1.0.json``), or of a TSV with a column ``answer``."""
    path = find_file(paths, "question file (official JSON, or TSV)", "*.json", "*.tsv", "*.csv")
    if path.suffix != ".json":
        return load_table(path)
    records = []
    for number, record in enumerate(take(read_json(path), "data", str(path)), start=1):
        types = record.get("question_types") or record.get("answer_type") or ()
        groups = {"question_types": [types] if isinstance(types, str) else list(types)}
        answers = [str(answer) for answer in record.get("answers") or ()]
        records.append(
            AnsweredQuestion(take(record, "questionId", f"{path}: entry {number} of data"), answers, groups)
        )
    check_unique((record.id for record in records), path)
    return records


def score_docvqa(
    annotations: Sequence[AnsweredQuestion], predictions: Sequence[Mapping[str, Any]], **options: Any
) -> ScoreResult:
    """Average normalized Levenshtein similarity (ANLS) of the official script."""
    return _score(annotations, predictions, anls, "anls", str)


def load_ocrvqa(paths: Sequence[str | Path]) -> list[AnsweredQuestion]:
    """Questions of a TSV with columns ``index`` and ``answer``."""
    return load_table(find_file(paths, "question table", "*.tsv", "*.csv"))


def score_ocrvqa(
    annotations: Sequence[AnsweredQuestion], predictions: Sequence[Mapping[str, Any]], **options: Any
) -> ScoreResult:
    """Equality with an answer, but for case and spaces at the ends."""

    def rule(text: str, answers: Sequence[str]) -> float:
        return float(any(text.strip().lower() == answer.strip().lower() for answer in answers))

    return _score(annotations, predictions, rule, "accuracy", lambda text: text.strip().lower())


def load_chartqa(paths: Sequence[str | Path]) -> list[AnsweredQuestion]:
    """Questions of a TSV, or of ``test_human.json`` and ``test_augmented.json`` with ids such as ``test_human/17``."""
    if find_files(paths, "*.tsv", "*.csv"):
        return load_table(find_file(paths, "question table", "*.tsv", "*.csv"))
    records = []
    for path in find_files(paths, "*.json"):
        for number, record in enumerate(read_json(path)):
            label = take(record, "label", f"{path}: entry {number + 1}")
            answers = [str(answer) for answer in (label if isinstance(label, list) else [label])]
            records.append(AnsweredQuestion(f"{path.stem}/{number}", answers, {"split": [path.stem]}))
    if not records:
        raise ValueError(f"{', '.join(map(str, paths))}: no questions there (looked for *.tsv and *.json)")
    return records


def score_chartqa(
    annotations: Sequence[AnsweredQuestion], predictions: Sequence[Mapping[str, Any]], **options: Any
) -> ScoreResult:
    """Relaxed accuracy: 5 % for numbers, equality for texts; ``mean_of_splits`` is what papers call overall."""

    def rule(text: str, answers: Sequence[str]) -> float:
        return float(any(relaxed_match(text.strip(), answer) for answer in answers))

    result = _score(annotations, predictions, rule, "accuracy", str.strip)
    for outcome in result["rules"].values():
        splits = [value for name, value in outcome["metrics"].items() if re.fullmatch("split/[^/]+", name)]
        if splits:
            outcome["metrics"]["mean_of_splits"] = sum(splits) / len(splits)
    return result


def load_table(path: Path) -> list[AnsweredQuestion]:
    """Questions of a TSV with columns ``index`` and, unless it is a test split, ``answer``."""
    rows = read_table(path)
    require_columns(path, rows, ["index"])
    check_unique((row["index"] for row in rows), path)
    answered = any(row.get("answer") for row in rows)
    return [
        AnsweredQuestion(
            plain_id(row["index"]),
            answer_list(row.get("answer") or "") if answered else (),
            {"split": [row["split"]]} if row.get("split") else {},
        )
        for row in rows
    ]


def _score(
    annotations: Sequence[AnsweredQuestion],
    predictions: Sequence[Mapping[str, Any]],
    rule: Rule,
    metric: str,
    parse: Callable[[str], str],
) -> ScoreResult:
    joined = join_predictions([record.id for record in annotations], predictions, ID_FIELDS, TEXT_FIELDS)
    if not any(record.answers for record in annotations):
        return make_result(joined, {}, [NO_ANSWERS])
    samples = []
    for record, text, line in zip(annotations, joined.texts, joined.lines, strict=True):
        score = rule(text, record.answers) if record.answers and line is not None else 0.0
        samples.append({"id": record.id, "score": score, "parsed": parse(text), "answer": list(record.answers)})
    scores = [sample["score"] for sample in samples]
    without = sum(not record.answers for record in annotations)
    warnings = [f"{without} questions have no reference answer and count as wrong"] if without else []
    metrics: dict[str, Any] = {metric: share(sum(scores), len(scores)), **_by_group(annotations, scores, metric)}
    return make_result(joined, {"official": {"metrics": flatten(metrics), "per_sample": samples}}, warnings)


def _by_group(annotations: Sequence[AnsweredQuestion], scores: Iterable[float], metric: str) -> dict[str, Any]:
    groups: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record, score in zip(annotations, scores, strict=True):
        for kind, names in record.groups.items():
            for name in names:
                groups[kind][name].append(score)
    return {
        kind: {name: {metric: sum(some) / len(some), "n": len(some)} for name, some in sorted(members.items())}
        for kind, members in groups.items()
    }


@BENCHMARKS.register
class DocVQA(Benchmark):
    """DocVQA from the official JSON with its pictures in ``image_folder``, or from a TSV."""

    scorer = "docvqa"
    form = 'val_v1.0.json, or the TSV; lines {"index", "prediction"}'
    load = staticmethod(load_docvqa)
    rate = staticmethod(score_docvqa)
    releases = (published_table("docvqa", "DocVQA_VAL", "DocVQA", "ANLS on the validation split"),)
    headline = ("official", "anls")

    def questions(self) -> Sequence[Question]:
        """All questions."""
        path = find_file(self.data, "question file (official JSON, or TSV)", "*.json", "*.tsv", "*.csv")
        if path.suffix != ".json":
            return table_questions(path, self.image_folder)
        return [self._question(record, path) for record in take(read_json(path), "data", str(path))]

    def _question(self, record: Mapping[str, Any], path: Path) -> Question:
        name = str(record.get("image") or record["image_local_name"])
        number = record["questionId"]
        opener = file_opener((self.image_folder or path.parent) / name, f"question {number}")
        return Question(number, ask_shortly(record["question"]), opener, name, number)


@BENCHMARKS.register
class InfoVQA(DocVQA):
    """InfographicVQA, in the forms of DocVQA."""

    scorer = "infovqa"
    form = 'JSON or TSV as for docvqa; lines {"index", "prediction"}'
    releases = (published_table("infovqa", "InfoVQA_VAL", caution="ANLS on the validation split"),)


@BENCHMARKS.register
class OCRVQA(Benchmark):
    """OCR-VQA from a TSV."""

    scorer = "ocrvqa"
    form = 'TSV; lines {"index", "prediction"}'
    load = staticmethod(load_ocrvqa)
    rate = staticmethod(score_ocrvqa)
    releases = (published_table("ocrvqa", "OCRVQA_TESTCORE"),)
    headline = ("official", "accuracy")

    def questions(self) -> Sequence[Question]:
        """All rows."""
        return table_questions(find_file(self.data, "question table", "*.tsv", "*.csv"), self.image_folder)


@BENCHMARKS.register
class ChartQA(Benchmark):
    """ChartQA from a TSV, or from ``test_human.json`` and ``test_augmented.json`` with a folder of pictures."""

    scorer = "chartqa"
    form = 'TSV; lines {"index", "prediction"}'
    load = staticmethod(load_chartqa)
    rate = staticmethod(score_chartqa)
    releases = (published_table("chartqa", "ChartQA_TEST"),)
    headline = ("official", "mean_of_splits")

    def questions(self) -> Sequence[Question]:
        """All questions; ids are ``test_human/0``, ... where the files have none."""
        if find_files(self.data, "*.tsv", "*.csv"):
            return table_questions(find_file(self.data, "question table", "*.tsv", "*.csv"), self.image_folder)
        questions = []
        for path in find_files(self.data, "*.json"):
            for number, record in enumerate(read_json(path)):
                name, number_there = str(record["imgname"]), f"{path.stem}/{number}"
                opener = file_opener((self.image_folder or path.parent) / name, f"question {number_there}")
                questions.append(Question(number_there, ask_shortly(record["query"]), opener, name, number_there))
        return questions
