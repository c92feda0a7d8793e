"""VQAv2: the official accuracy (where annotations are given) and the file for the test server."""

from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from mg_llava.evaluation.asking import ask_shortly
from mg_llava.evaluation.benchmark import BENCHMARKS, Benchmark, Question
from mg_llava.evaluation.release import COCO, COCO_VAL, EVAL_ZIP, Release
from mg_llava.evaluation.scoring import files
from mg_llava.evaluation.scoring.answers import normalize_evalai, normalize_vqa, one_line
from mg_llava.evaluation.scoring.figures import group_by, mean, mean_score, share
from mg_llava.evaluation.scoring.joining import Joined, Line, Lines, Rule, ScoreResult, join_predictions

_NO_ANSWERS = "the data has no annotations: nothing can be scored; write the test server's file with vqav2_submission"


def load_vqav2(paths: Sequence[Path]) -> files.Records:
    """Annotations in the order of the annotation file; without one, the questions."""
    questions: files.Records = []
    for path in files.find_files(paths, "*.json", "*.jsonl"):
        content = files.read_records(path)
        if isinstance(content, dict) and "annotations" in content:
            return _checked(content["annotations"], path)
        questions = _checked(
            content if isinstance(content, list) else files.take(content, "questions", str(path)), path
        )
    if not questions:
        raise ValueError(f"{files.listing(paths)}: neither VQAv2 questions nor annotations there (.json, .jsonl)")
    return questions


def score_vqav2(annotations: Lines, predictions: Lines, **options: Any) -> ScoreResult:
    """Accuracy of the official script: for the replies as they are, and as LLaVA submits them (EvalAI processor)."""
    joined = _join(annotations, predictions)
    if not any("answers" in record for record in annotations):
        return joined.result({}, [_NO_ANSWERS])
    processed = [normalize_evalai(text) for text in joined.texts]
    rules = {"official": joined.texts, "official_processed": processed}
    return joined.result({name: _rule(annotations, texts, joined.lines) for name, texts in rules.items()})


def load_submission(paths: Sequence[Path]) -> files.Records:
    """All questions of the test split, from ``llava_vqav2_mscoco_test2015.jsonl`` or the official question JSON."""
    path = files.find_file(paths, "file with all questions of the test split", "*.jsonl", "*.json")
    content = files.read_records(path)
    return _checked(content if path.suffix == ".jsonl" else files.take(content, "questions", str(path)), path)


def score_submission(annotations: Lines, predictions: Lines, **options: Any) -> ScoreResult:
    """Nothing is scored; ``submission`` is the list that the test server wants, with ``""`` for open questions."""
    joined = _join(annotations, predictions)
    answers = [
        {"question_id": record["question_id"], "answer": normalize_evalai(text)}
        for record, text, _ in joined.beside(annotations)
    ]
    return joined.result({}, ["upload the list `submission` to the test server"], submission=answers)


def _join(annotations: Lines, predictions: Lines) -> Joined:
    ids = [record["question_id"] for record in annotations]
    return join_predictions(ids, predictions, "question_id", ("text", "answer", "prediction"))


def _checked(records: Any, path: Path) -> files.Records:
    files.check_unique(
        (files.take(one, "question_id", f"{path}: entry {n}") for n, one in enumerate(records, start=1)), path
    )
    return records


def _rule(annotations: Lines, texts: Sequence[str], lines: Sequence[Line | None]) -> Rule:
    samples: list[dict[str, Any]] = []
    for record, text, line in zip(annotations, texts, lines, strict=True):
        parsed, accuracy = _accuracy(text, record.get("answers") or ())
        answer, kind = record.get("multiple_choice_answer", ""), record.get("answer_type", "")
        reply = {"score": accuracy if line is not None else 0.0, "parsed": parsed, "answer": answer}
        groups = {"category": kind, "question_type": record.get("question_type", "")}
        samples.append({"id": record["question_id"], **reply, **groups})
    metrics: dict[str, Any] = {"accuracy": mean_score(samples)}
    rounded: dict[str, Any] = {"accuracy": _percent(samples)}
    for name, key in (("answer_type", "category"), ("question_type", "question_type")):
        groups = dict(sorted(group_by(samples, itemgetter(key)).items()))
        metrics[name] = {group: mean_score(some) for group, some in groups.items()}
        rounded[name] = {group: _percent(some) for group, some in groups.items()}
    return {**metrics, "rounded": rounded}, samples


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
    return reply, mean(scores)


def _percent(samples: Lines) -> float:
    return round(share(100 * float(sum(sample["score"] for sample in samples)), len(samples)), 2)


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
    load, rate = staticmethod(load_vqav2), staticmethod(score_vqav2)
    _val = ("vqav2/v2_OpenEnded_mscoco_val2014_questions.json", "vqav2/v2_mscoco_val2014_annotations.json")
    _get_val = f"questions and annotations of https://visualqa.org/download.html; {COCO_VAL}"
    _test = ("vqav2/llava_vqav2_mscoco_test-dev2015.jsonl",)
    _get_test = f"the jsonl is in {EVAL_ZIP}; pictures {COCO}test2015.zip"
    _note = "no answers: tools/score.py vqav2_submission writes the file for the test server"
    releases = (
        Release("vqav2_val", _val, "coco/val2014", _get_val, None, "not the paper's split (test-dev)"),
        Release("vqav2_test_dev", _test, "vqav2/test2015", _get_test, "VQAv2", _note),
    )
    id_field, text_field = "question_id", "text"
    headline = ("official_processed", "accuracy")

    def __init__(self, *args: Any, submission: str | Path | None = None, **arguments: Any) -> None:
        super().__init__(*args, **arguments)
        self.submission = None if submission is None else Path(submission)

    def questions(self) -> Sequence[Question]:
        """All questions of the jsonl, or else of the question JSON."""
        for path in files.find_files(self.data, "*.jsonl"):
            return [self.ask(line["question_id"], line["text"], line["image"]) for line in files.read_json_lines(path)]
        for path in files.find_files(self.data, "*.json"):
            content = files.read_json(path)
            if isinstance(content, dict) and "questions" in content:
                picture = f"COCO_{content.get('data_subtype', 'val2014')}_{{:012d}}.jpg"
                return [
                    self.ask(one["question_id"], ask_shortly(one["question"]), picture.format(int(one["image_id"])))
                    for one in content["questions"]
                ]
        raise ValueError(f"{self.name}: no questions among {files.listing(self.data)}")

    def score(self, predictions: Lines, **options: Any) -> ScoreResult:
        """As of ``Benchmark``; the list for the test server where ``submission`` is given."""
        if self.submission is None:
            return super().score(predictions, **options)
        return {"benchmark": self.scorer, **score_submission(load_submission([self.submission]), predictions)}


@BENCHMARKS.register
class VQAv2Submission(VQAv2):
    """The upload for VQAv2's test server: nothing is scored."""

    scorer = "vqav2_submission"
    form = 'all questions as jsonl; lines {"question_id", "text"}'
    load, rate = staticmethod(load_submission), staticmethod(score_submission)
