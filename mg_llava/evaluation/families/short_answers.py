"""Question answering with short free-form answers: DocVQA, InfographicVQA, OCR-VQA, ChartQA."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mg_llava.data.records.tables import plain_id, read_table, require_columns
from mg_llava.evaluation.asking import ask_shortly, table_questions
from mg_llava.evaluation.benchmark import BENCHMARKS, Benchmark, Question
from mg_llava.evaluation.release import published_table
from mg_llava.evaluation.scoring.answers import anls, answer_list, relaxed_match
from mg_llava.evaluation.scoring.figures import group_by, mean, mean_score
from mg_llava.evaluation.scoring.files import TABLES, check_unique, find_file, find_files, listing, read_json, take
from mg_llava.evaluation.scoring.joining import Line, Lines, ScoreResult, join_predictions

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


def load_answer_table(path: Path) -> list[AnsweredQuestion]:
    """Questions of a TSV with columns ``index`` and, unless it is a test split, ``answer``."""
    rows = require_columns(path, read_table(path), ["index"])
    check_unique((row["index"] for row in rows), path)
    answered = any(row.get("answer") for row in rows)
    questions = []
    for row in rows:
        groups = {"split": [row["split"]]} if row.get("split") else {}
        answers = answer_list(row.get("answer") or "") if answered else ()
        questions.append(AnsweredQuestion(plain_id(row["index"]), answers, groups))
    return questions


class ShortAnswers(Benchmark):
    """Short questions of a table (TSV) with its pictures, or of JSON files with pictures in ``image_folder``."""

    form = 'TSV; lines {"index", "prediction"}'
    headline = ("official", "accuracy")

    def questions(self) -> Sequence[Question]:
        """All questions."""
        if not find_files(self.data, *TABLES):
            return self.questions_of_json()
        path = find_file(self.data, "question table", *TABLES)
        rows = require_columns(path, read_table(path), ["index", "question"])
        return table_questions(rows, path, self.image_folder, lambda row: ask_shortly(row["question"]))

    def questions_of_json(self) -> Sequence[Question]:
        """The questions of data without a table, where that is allowed."""
        find_file(self.data, "question table", *TABLES)
        return []


def load_ocrvqa(paths: Sequence[Path]) -> list[AnsweredQuestion]:
    """Questions of a TSV with columns ``index`` and ``answer``."""
    return load_answer_table(find_file(paths, "question table", *TABLES))


def load_docvqa(paths: Sequence[Path]) -> list[AnsweredQuestion]:
    """Questions of the official JSON (``val_v1.0.json``), or of a TSV with a column ``answer``."""
    path = find_file(paths, "question file (official JSON, or TSV)", "*.json", *TABLES)
    if path.suffix != ".json":
        return load_answer_table(path)
    records = []
    for number, record in enumerate(take(read_json(path), "data", str(path)), start=1):
        types = record.get("question_types") or record.get("answer_type") or ()
        groups = {"question_types": [types] if isinstance(types, str) else list(types)}
        answers = [str(answer) for answer in record.get("answers") or ()]
        name = take(record, "questionId", f"{path}: entry {number} of data")
        records.append(AnsweredQuestion(name, answers, groups))
    check_unique((record.id for record in records), path)
    return records


def load_chartqa(paths: Sequence[Path]) -> list[AnsweredQuestion]:
    """Questions of a TSV, or of ``test_human.json`` and ``test_augmented.json`` with ids such as ``test_human/17``."""
    if find_files(paths, *TABLES):
        return load_ocrvqa(paths)
    records = []
    for path in find_files(paths, "*.json"):
        for number, record in enumerate(read_json(path)):
            label = take(record, "label", f"{path}: entry {number + 1}")
            answers = [str(answer) for answer in (label if isinstance(label, list) else [label])]
            records.append(AnsweredQuestion(f"{path.stem}/{number}", answers, {"split": [path.stem]}))
    if not records:
        raise ValueError(f"{listing(paths)}: no questions there (looked for *.tsv and *.json)")
    return records


def score_docvqa(annotations: Sequence[AnsweredQuestion], predictions: Lines, **options: Any) -> ScoreResult:
    """Average normalized Levenshtein similarity (ANLS) of the official script."""
    return _score(annotations, predictions, anls, "anls", str)


def score_ocrvqa(annotations: Sequence[AnsweredQuestion], predictions: Lines, **options: Any) -> ScoreResult:
    """Equality with an answer, but for case and spaces at the ends."""

    def bare(text: str) -> str:
        return text.strip().lower()

    return _score(annotations, predictions, lambda text, answers: bare(text) in map(bare, answers), "accuracy", bare)


def score_chartqa(annotations: Sequence[AnsweredQuestion], predictions: Lines, **options: Any) -> ScoreResult:
    """Relaxed accuracy: 5 % for numbers, equality for texts; ``mean_of_splits`` is what papers call overall."""

    def is_right(text: str, answers: Sequence[str]) -> bool:
        return any(relaxed_match(text.strip(), answer) for answer in answers)

    result = _score(annotations, predictions, is_right, "accuracy", str.strip)
    for outcome in result["rules"].values():
        splits = [value for name, value in outcome["metrics"].items() if re.fullmatch("split/[^/]+", name)]
        if splits:
            outcome["metrics"]["mean_of_splits"] = mean(splits)
    return result


def _score(
    annotations: Sequence[AnsweredQuestion],
    predictions: Lines,
    rule: Callable[[str, Sequence[str]], float],
    metric: str,
    parse: Callable[[str], str],
) -> ScoreResult:
    joined = join_predictions([record.id for record in annotations], predictions, ID_FIELDS, TEXT_FIELDS)
    without = sum(not record.answers for record in annotations)
    if without == len(annotations):
        return joined.result({}, [NO_ANSWERS])
    samples = []
    for record, text, line in joined.beside(annotations):
        score = float(rule(text, record.answers)) if record.answers and line is not None else 0.0
        samples.append({"id": record.id, "score": score, "parsed": parse(text), "answer": list(record.answers)})
    warnings = [f"{without} questions have no reference answer and count as wrong"] if without else []
    metrics = {metric: mean_score(samples), **_by_group(annotations, samples, metric)}
    return joined.result({"official": (metrics, samples)}, warnings)


def _by_group(annotations: Sequence[AnsweredQuestion], samples: Iterable[Line], metric: str) -> dict[str, Any]:
    members = [
        (kind, name, sample)
        for record, sample in zip(annotations, samples, strict=True)
        for kind, some in record.groups.items()
        for name in some
    ]
    groups: dict[str, dict[str, Any]] = {kind: {} for kind, _, _ in members}
    for (kind, name), some in sorted(group_by(members, lambda member: member[:2]).items()):
        groups[kind][name] = {metric: mean_score(sample for *_, sample in some), "n": len(some)}
    return groups


@BENCHMARKS.register
class DocVQA(ShortAnswers):
    """DocVQA from the official JSON with its pictures in ``image_folder``, or from a TSV."""

    scorer = "docvqa"
    form = 'val_v1.0.json, or the TSV; lines {"index", "prediction"}'
    load, rate = staticmethod(load_docvqa), staticmethod(score_docvqa)
    releases = (published_table("docvqa", "DocVQA_VAL", "DocVQA", "ANLS on the validation split"),)
    headline = ("official", "anls")

    def questions_of_json(self) -> Sequence[Question]:
        """All questions of the official JSON."""
        path = find_file(self.data, "question file (official JSON, or TSV)", "*.json", *TABLES)
        records = take(read_json(path), "data", str(path))
        return [
            self.ask(one["questionId"], ask_shortly(one["question"]), str(one.get("image") or one["image_local_name"]))
            for one in records
        ]


@BENCHMARKS.register
class InfoVQA(DocVQA):
    """InfographicVQA, in the forms of DocVQA."""

    scorer = "infovqa"
    form = 'JSON or TSV as for docvqa; lines {"index", "prediction"}'
    releases = (published_table("infovqa", "InfoVQA_VAL", caution="ANLS on the validation split"),)


@BENCHMARKS.register
class OCRVQA(ShortAnswers):
    """OCR-VQA from a TSV."""

    scorer = "ocrvqa"
    load, rate = staticmethod(load_ocrvqa), staticmethod(score_ocrvqa)
    releases = (published_table("ocrvqa", "OCRVQA_TESTCORE"),)


@BENCHMARKS.register
class ChartQA(ShortAnswers):
    """ChartQA from a TSV, or from ``test_human.json`` and ``test_augmented.json`` with a folder of pictures."""

    scorer = "chartqa"
    load, rate = staticmethod(load_chartqa), staticmethod(score_chartqa)
    releases = (published_table("chartqa", "ChartQA_TEST"),)
    headline = ("official", "mean_of_splits")

    def questions_of_json(self) -> Sequence[Question]:
        """All questions; ids are ``test_human/0``, ... where the files have none."""
        return [
            self.ask(f"{path.stem}/{number}", ask_shortly(record["query"]), str(record["imgname"]))
            for path in find_files(self.data, "*.json")
            for number, record in enumerate(read_json(path))
        ]
