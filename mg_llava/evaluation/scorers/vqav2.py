"""VQAv2: the official accuracy (where annotations are given) and the file for the test server."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mg_llava.evaluation.scorers.answers import normalize_evalai, normalize_vqa, one_line
from mg_llava.evaluation.scorers.files import check_unique, find_file, find_files, read_json, read_json_lines, take
from mg_llava.evaluation.scorers.joining import ScoreResult, join_predictions, make_result, share
from mg_llava.evaluation.scorers.metrics import flatten

_NO_ANSWERS = "the data has no annotations: nothing can be scored; write the test server's file with vqav2_submission"
_TEXT_FIELDS = ("text", "answer", "prediction")


def load_vqav2(paths: Sequence[str | Path]) -> list[dict[str, Any]]:
    """Annotations in the order of the annotation file; without one, the questions."""
    questions: list[dict[str, Any]] = []
    for path in find_files(paths, "*.json", "*.jsonl"):
        content = read_json_lines(path) if path.suffix == ".jsonl" else read_json(path)
        if isinstance(content, dict) and "annotations" in content:
            return _checked(content["annotations"], path)
        questions = _checked(content if isinstance(content, list) else take(content, "questions", str(path)), path)
    if not questions:
        raise ValueError(
            f"{', '.join(map(str, paths))}: neither VQAv2 questions nor annotations there (.json, .jsonl)"
        )
    return questions


def score_vqav2(
    annotations: Sequence[Mapping[str, Any]], predictions: Sequence[Mapping[str, Any]], **options: Any
) -> ScoreResult:
    """Accuracy of the official script: for the replies as they are, and as LLaVA submits them (EvalAI processor)."""
    ids = [record["question_id"] for record in annotations]
    joined = join_predictions(ids, predictions, "question_id", _TEXT_FIELDS)
    if not any("answers" in record for record in annotations):
        return make_result(joined, {}, [_NO_ANSWERS])
    answered = [line is not None for line in joined.lines]
    processed = [normalize_evalai(text) for text in joined.texts]
    rules = {
        "official": _rule(annotations, joined.texts, answered),
        "official_processed": _rule(annotations, processed, answered),
    }
    return make_result(joined, rules)


def load_vqav2_submission(paths: Sequence[str | Path]) -> list[dict[str, Any]]:
    """All questions of the test split, from ``llava_vqav2_mscoco_test2015.jsonl`` or the official question JSON."""
    path = find_file(paths, "file with all questions of the test split", "*.jsonl", "*.json")
    records = read_json_lines(path) if path.suffix == ".jsonl" else take(read_json(path), "questions", str(path))
    return _checked(records, path)


def score_vqav2_submission(
    annotations: Sequence[Mapping[str, Any]], predictions: Sequence[Mapping[str, Any]], **options: Any
) -> ScoreResult:
    """Nothing is scored; ``submission`` is the list that the test server wants, with ``""`` for open questions."""
    ids = [record["question_id"] for record in annotations]
    joined = join_predictions(ids, predictions, "question_id", _TEXT_FIELDS)
    submission = [
        {"question_id": record["question_id"], "answer": normalize_evalai(text)}
        for record, text in zip(annotations, joined.texts, strict=True)
    ]
    return make_result(joined, {}, ["upload the list `submission` to the test server"], submission=submission)


def _checked(records: Any, path: Path) -> list[dict[str, Any]]:
    for number, record in enumerate(records, start=1):
        take(record, "question_id", f"{path}: entry {number}")
    check_unique((record["question_id"] for record in records), path)
    return records


def _rule(annotations: Sequence[Mapping[str, Any]], texts: Sequence[str], answered: Sequence[bool]) -> dict[str, Any]:
    samples = []
    for record, text, there in zip(annotations, texts, answered, strict=True):
        parsed, accuracy = _accuracy(text, record.get("answers") or ())
        samples.append(
            {
                "id": record["question_id"],
                "score": accuracy if there else 0.0,
                "parsed": parsed,
                "answer": record.get("multiple_choice_answer", ""),
                "category": record.get("answer_type", ""),
                "question_type": record.get("question_type", ""),
            }
        )
    overall = [sample["score"] for sample in samples]
    groups = {"answer_type": _by(samples, "category"), "question_type": _by(samples, "question_type")}
    means = {
        kind: {name: share(sum(some), len(some)) for name, some in group.items()} for kind, group in groups.items()
    }
    rounded = {kind: {name: _percent(some) for name, some in group.items()} for kind, group in groups.items()}
    metrics = {
        "accuracy": share(sum(overall), len(overall)),
        **means,
        "rounded": {"accuracy": _percent(overall), **rounded},
    }
    return {"metrics": flatten(metrics), "per_sample": samples}


def _accuracy(text: str, annotators: Sequence[Any]) -> tuple[str, float]:
    """The reply as it is compared, and its accuracy; the script normalizes only where the annotators differ."""
    entries = [{**entry, "answer": one_line(str(entry["answer"]))} for entry in annotators]
    reply = one_line(text)
    if len({entry["answer"] for entry in entries}) > 1:
        entries = [{**entry, "answer": normalize_vqa(entry["answer"])} for entry in entries]
        reply = normalize_vqa(reply)
    matching = [entry for entry in entries if entry["answer"] == reply]
    scores = []
    for left_out in entries:
        # Entries equal to the one left out are left out with it, as in the script: only itself, where they have ids.
        equal = sum(entry == left_out for entry in matching) if left_out["answer"] == reply else 0
        scores.append(min(1, float(len(matching) - equal) / 3))
    return reply, share(float(sum(scores)), len(scores))


def _by(samples: Sequence[Mapping[str, Any]], name: str) -> dict[str, list[float]]:
    groups: dict[str, list[float]] = defaultdict(list)
    for sample in samples:
        groups[sample[name]].append(sample["score"])
    return dict(sorted(groups.items()))


def _percent(scores: Sequence[float]) -> float:
    return round(share(100 * float(sum(scores)), len(scores)), 2)
