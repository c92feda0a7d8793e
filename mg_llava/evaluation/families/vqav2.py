"""VQAv2: the official accuracy (where annotations are given) and the file for the test server."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mg_llava.evaluation.asking import ask_shortly, file_opener
from mg_llava.evaluation.benchmark import BENCHMARKS, Benchmark, Question
from mg_llava.evaluation.release import COCO, COCO_VAL, EVAL_ZIP, Release
from mg_llava.evaluation.scoring.answers import normalize_evalai, normalize_vqa, one_line
from mg_llava.evaluation.scoring.files import check_unique, find_file, find_files, read_json, read_json_lines, take
from mg_llava.evaluation.scoring.joining import ScoreResult, join_predictions, make_result, share
from mg_llava.evaluation.scoring.metrics import flatten

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


def load_submission(paths: Sequence[str | Path]) -> list[dict[str, Any]]:
    """All questions of the test split, from ``llava_vqav2_mscoco_test2015.jsonl`` or the official question JSON."""
    path = find_file(paths, "file with all questions of the test split", "*.jsonl", "*.json")
    records = read_json_lines(path) if path.suffix == ".jsonl" else take(read_json(path), "questions", str(path))
    return _checked(records, path)


def score_submission(
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


@BENCHMARKS.register
class VQAv2(Benchmark):
    """VQAv2 from the official question JSON (with annotations, to be scored) or from LLaVA's jsonl.

    Args:
        submission: All questions of the test split (``llava_vqav2_mscoco_test2015.jsonl``): ``score`` then writes the
            test server's list instead of an accuracy.
        **arguments: As of ``Benchmark``.
    """

    scorer = "vqav2"
    form = 'question and annotation JSON; lines {"question_id", "text"}'
    load = staticmethod(load_vqav2)
    rate = staticmethod(score_vqav2)
    releases = (
        Release(
            "vqav2_val",
            ("vqav2/v2_OpenEnded_mscoco_val2014_questions.json", "vqav2/v2_mscoco_val2014_annotations.json"),
            "coco/val2014",
            f"questions and annotations of https://visualqa.org/download.html; {COCO_VAL}",
            None,
            "not the paper's split (test-dev)",
        ),
        Release(
            "vqav2_test_dev",
            ("vqav2/llava_vqav2_mscoco_test-dev2015.jsonl",),
            "vqav2/test2015",
            f"the jsonl is in {EVAL_ZIP}; pictures {COCO}test2015.zip",
            "VQAv2",
            "no answers: tools/score.py vqav2_submission writes the file for the test server",
        ),
    )
    id_field = "question_id"
    text_field = "text"
    headline = ("official_processed", "accuracy")

    def __init__(self, *args: Any, submission: str | Path | None = None, **arguments: Any) -> None:
        super().__init__(*args, **arguments)
        self.submission = None if submission is None else Path(submission)

    def questions(self) -> Sequence[Question]:
        """All questions of the jsonl, or else of the question JSON."""
        for path in find_files(self.data, "*.jsonl"):
            return [self._question(line["question_id"], line["text"], line["image"]) for line in read_json_lines(path)]
        for path in find_files(self.data, "*.json"):
            content = read_json(path)
            if isinstance(content, dict) and "questions" in content:
                split = content.get("data_subtype", "val2014")
                return [
                    self._question(
                        one["question_id"],
                        ask_shortly(one["question"]),
                        f"COCO_{split}_{int(one['image_id']):012d}.jpg",
                    )
                    for one in content["questions"]
                ]
        raise ValueError(f"{self.name}: no questions among {', '.join(map(str, self.data))}")

    def score(self, predictions: Sequence[Mapping[str, Any]], **options: Any) -> ScoreResult:
        """As of ``Benchmark``; the list for the test server where ``submission`` is given."""
        if self.submission is None:
            return super().score(list(map(dict, predictions)), **options)
        return {"benchmark": self.scorer, **score_submission(load_submission([self.submission]), predictions)}

    def _question(self, number: int, text: str, name: str) -> Question:
        return Question(number, text, file_opener(self.picture_file(name), f"question {number}"), name, number)


@BENCHMARKS.register
class VQAv2Submission(VQAv2):
    """The upload for VQAv2's test server: nothing is scored."""

    scorer = "vqav2_submission"
    form = 'all questions as jsonl; lines {"question_id", "text"}'
    load = staticmethod(load_submission)
    rate = staticmethod(score_submission)
