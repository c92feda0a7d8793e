"""Question answering with short free-form answers: TextVQA, DocVQA, InfographicVQA, OCR-VQA, ChartQA."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mg_llava.evaluation.scorers.answers import (
    anls,
    answer_list,
    normalize_evalai,
    relaxed_match,
    round_as_printed,
    soft_accuracy,
)
from mg_llava.evaluation.scorers.files import check_unique, find_file, find_files, read_json, read_json_lines, take
from mg_llava.evaluation.scorers.joining import Joined, ScoreResult, id_key, join_predictions, make_result, share
from mg_llava.evaluation.scorers.metrics import flatten
from mg_llava.evaluation.scorers.repeated import join_repeated

_ID_FIELDS = ("index", "questionId", "question_id", "id")
_TEXT_FIELDS = ("prediction", "text", "answer")
_ANNOTATORS = 10
NO_ANSWERS = "the data has no answers (a test split): nothing can be scored here, the predictions are to be submitted"


@dataclass(frozen=True)
class Answered:
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


# TextVQA


def textvqa_question(prompt: str) -> str | None:
    """The question in a TextVQA prompt, lowercased; None where the official script would stop with an error."""
    lines = prompt.split("\n")
    if prompt.startswith("OCR tokens: "):
        match = re.search(r"Question: (.*?) Short answer:", prompt, re.DOTALL)
        return match.group(1).lower() if match else None
    if "Reference OCR token: " in prompt and len(lines) == 3:
        return lines[1 if prompt.startswith("Reference OCR token:") else 0].lower()
    return lines[0].lower() if len(lines) == 2 else None


def load_textvqa(paths: Sequence[str | Path]) -> list[Answered]:
    """Questions of ``TextVQA_0.5.1_val.json`` (those of the question jsonl only, if there is one), or of a TSV."""
    if find_files(paths, "*.tsv", "*.csv"):
        return _load_table(find_file(paths, "TextVQA table", "*.tsv", "*.csv"))
    path = find_file(paths, "TextVQA annotation file", "*.json")
    records: dict[str, list[Answered]] = defaultdict(list)
    for number, record in enumerate(take(read_json(path), "data", str(path)), start=1):
        where = f"{path}: entry {number} of data"
        picture, question = take(record, "image_id", where), take(record, "question", where)
        key = _join_key(picture, str(question).lower())
        records[key].append(Answered(record.get("question_id", picture), record.get("answers") or (), key=key))
    questions = [textvqa_key(line) for file in find_files(paths, "*.jsonl") for line in read_json_lines(file)]
    unknown = [key for key in questions if key not in records]
    if unknown:
        raise ValueError(f"{path}: no question {unknown[0]!r}, which the question file has ({len(unknown)} such)")
    wanted = Counter(questions or (key for key, some in records.items() for _ in some))
    # Of questions that are there twice, the answers of the last one count for both, as in LLaVA's script.
    return [replace(one, answers=some[-1].answers) for key, some in records.items() for one in some[: wanted[key]]]


def score_textvqa(
    annotations: Sequence[Answered], predictions: Sequence[Mapping[str, Any]], **options: Any
) -> ScoreResult:
    """Soft accuracy after the EvalAI processor, joined by picture and question as LLaVA's script does.

    LLaVA's script averages over the predictions that are there; ``accuracy_over_all`` counts missing ones as wrong.
    """
    joined = _join_textvqa(annotations, predictions)
    if not any(record.answers for record in annotations):
        return make_result(joined, {}, [NO_ANSWERS])
    samples = []
    for record, text, line in zip(annotations, joined.texts, joined.lines, strict=True):
        answer = normalize_evalai(text)
        references = [normalize_evalai(str(reference)) for reference in record.answers]
        score = soft_accuracy(answer, references) if references and line is not None else 0.0
        samples.append({"id": record.id, "score": score, "parsed": answer, "answer": _most_common(references)})
    scores = [sample["score"] for sample, line in zip(samples, joined.lines, strict=True) if line is not None]
    accuracy = share(sum(scores), len(scores))
    metrics = {
        "accuracy": accuracy,
        "accuracy_over_all": share(sum(scores), joined.n),
        "n_scored": len(scores),
        "rounded": {"accuracy": round_as_printed(100.0 * accuracy)},
    }
    warnings = []
    if joined.n_missing:
        warnings.append("accuracy is over the questions with a prediction, as in the official script")
    odd = sum(len(record.answers) != _ANNOTATORS for record in annotations)
    if odd:
        warnings.append(f"{odd} questions have not {_ANNOTATORS} answers, which the official script would stop at")
    return make_result(joined, {"official": {"metrics": flatten(metrics), "per_sample": samples}}, warnings)


def _join_key(picture: Any, question: str) -> str:
    return f"{id_key(picture)}: {question}"


def textvqa_key(line: Mapping[str, Any]) -> str:
    """What a line of the question file, or a prediction with its prompt, is joined on: picture and question."""
    prompt = str(line.get("prompt") or line.get("text") or "")
    question = textvqa_question(prompt)
    return _join_key(line.get("question_id"), prompt.split("\n")[0].lower() if question is None else question)


def _join_textvqa(annotations: Sequence[Answered], predictions: Sequence[Mapping[str, Any]]) -> Joined:
    if annotations and not annotations[0].key:
        return join_predictions([record.id for record in annotations], predictions, _ID_FIELDS, _TEXT_FIELDS)
    aliases = {id_key(record.id): record.key for record in annotations}

    def key(line: Mapping[str, Any]) -> str:
        if line.get("prompt"):
            return textvqa_key(line)
        name = id_key(next((line[name] for name in _ID_FIELDS if name in line), None))
        return aliases.get(name, name)

    return join_repeated([record.key for record in annotations], predictions, key, ("text", "prediction"))


def _most_common(answers: Sequence[str]) -> str:
    return max(answers, key=answers.count) if answers else ""


# DocVQA, InfographicVQA, OCR-VQA, ChartQA


def load_docvqa(paths: Sequence[str | Path]) -> list[Answered]:
    """Questions of the official JSON (``val_v1.0.json``), or of a TSV with a column ``answer``."""
    path = find_file(paths, "question file (official JSON, or TSV)", "*.json", "*.tsv", "*.csv")
    if path.suffix != ".json":
        return _load_table(path)
    records = []
    for number, record in enumerate(take(read_json(path), "data", str(path)), start=1):
        types = record.get("question_types") or record.get("answer_type") or ()
        groups = {"question_types": [types] if isinstance(types, str) else list(types)}
        answers = [str(answer) for answer in record.get("answers") or ()]
        records.append(Answered(take(record, "questionId", f"{path}: entry {number} of data"), answers, groups))
    check_unique((record.id for record in records), path)
    return records


def score_docvqa(
    annotations: Sequence[Answered], predictions: Sequence[Mapping[str, Any]], **options: Any
) -> ScoreResult:
    """Average normalized Levenshtein similarity (ANLS) of the official script."""
    return _score(annotations, predictions, anls, "anls", str)


def load_ocrvqa(paths: Sequence[str | Path]) -> list[Answered]:
    """Questions of a TSV with columns ``index`` and ``answer``."""
    return _load_table(find_file(paths, "question table", "*.tsv", "*.csv"))


def score_ocrvqa(
    annotations: Sequence[Answered], predictions: Sequence[Mapping[str, Any]], **options: Any
) -> ScoreResult:
    """Equality with an answer, but for case and spaces at the ends."""

    def rule(text: str, answers: Sequence[str]) -> float:
        return float(any(text.strip().lower() == answer.strip().lower() for answer in answers))

    return _score(annotations, predictions, rule, "accuracy", lambda text: text.strip().lower())


def load_chartqa(paths: Sequence[str | Path]) -> list[Answered]:
    """Questions of a TSV, or of ``test_human.json`` and ``test_augmented.json`` with ids such as ``test_human/17``."""
    if find_files(paths, "*.tsv", "*.csv"):
        return _load_table(find_file(paths, "question table", "*.tsv", "*.csv"))
    records = []
    for path in find_files(paths, "*.json"):
        for number, record in enumerate(read_json(path)):
            label = take(record, "label", f"{path}: entry {number + 1}")
            answers = [str(answer) for answer in (label if isinstance(label, list) else [label])]
            records.append(Answered(f"{path.stem}/{number}", answers, {"split": [path.stem]}))
    if not records:
        raise ValueError(f"{', '.join(map(str, paths))}: no questions there (looked for *.tsv and *.json)")
    return records


def score_chartqa(
    annotations: Sequence[Answered], predictions: Sequence[Mapping[str, Any]], **options: Any
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


def _load_table(path: Path) -> list[Answered]:
    from mg_llava.data.records.tables import plain_id, read_table, require_columns

    rows = read_table(path)
    require_columns(path, rows, ["index"])
    check_unique((row["index"] for row in rows), path)
    answered = any(row.get("answer") for row in rows)
    return [
        Answered(
            plain_id(row["index"]),
            answer_list(row.get("answer") or "") if answered else (),
            {"split": [row["split"]]} if row.get("split") else {},
        )
        for row in rows
    ]


def _score(
    annotations: Sequence[Answered],
    predictions: Sequence[Mapping[str, Any]],
    rule: Rule,
    metric: str,
    parse: Callable[[str], str],
) -> ScoreResult:
    joined = join_predictions([record.id for record in annotations], predictions, _ID_FIELDS, _TEXT_FIELDS)
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


def _by_group(annotations: Sequence[Answered], scores: Iterable[float], metric: str) -> dict[str, Any]:
    groups: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record, score in zip(annotations, scores, strict=True):
        for kind, names in record.groups.items():
            for name in names:
                groups[kind][name].append(score)
    return {
        kind: {name: {metric: sum(some) / len(some), "n": len(some)} for name, some in sorted(members.items())}
        for kind, members in groups.items()
    }
