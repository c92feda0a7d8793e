"""ScienceQA from its own files, by LLaVA's rule.

Metrics: ``accuracy`` over all questions of the split; ``IMG-Accuracy`` over those whose prompt holds ``<image>``, as
the script has it, which leaves out questions without a prediction; ``image_accuracy`` over all questions with a
picture. ``*_rounded`` in percent with two decimals, as the script prints the first two; ``correct`` and ``count``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mg_llava.data.records.tables import id_key
from mg_llava.evaluation.asking import LETTER_REQUEST, file_opener
from mg_llava.evaluation.benchmark import BENCHMARKS, Benchmark, Question
from mg_llava.evaluation.release import EVAL_ZIP, Release
from mg_llava.evaluation.scoring.files import find_file, find_files, read_json, take
from mg_llava.evaluation.scoring.joining import ScoreResult, join_predictions, make_result, share
from mg_llava.tokens import IMAGE_PLACEHOLDER

OPTIONS = "ABCDE"
FAILED = "FAILED"
PROBLEMS, SPLITS, CONVERSATIONS = "problems.json", "pid_splits.json", "llava_*_CQM-A.json"
# The period after the letter is any character: a reply that ends with the letter does not match.
_ANSWER_IS = re.compile("The answer is ([A-Z]).")


@dataclass(frozen=True)
class ScienceProblem:
    """A question of the split.

    Attributes:
        id: Its id.
        answer: Number of the right choice.
        choices: Number of choices.
        has_picture: Whether it is asked about a picture.
    """

    id: str
    answer: int
    choices: int
    has_picture: bool


def load_scienceqa(paths: Sequence[Path]) -> dict[str, list[ScienceProblem]]:
    """Read the folder with ``problems.json``, ``pid_splits.json`` and, if it is there, ``llava_test_CQM-A.json``.

    Returns:
        The problems of each split.

    Raises:
        ValueError: If a file is missing or malformed; the message names it.
    """
    folder_files = {pattern: find_files(paths, pattern) for pattern in (PROBLEMS, SPLITS, CONVERSATIONS)}
    for name in (PROBLEMS, SPLITS):
        if not folder_files[name]:
            raise ValueError(f"{', '.join(map(str, paths))}: no {name} there")
    problems, splits = (read_json(folder_files[name][0]) for name in (PROBLEMS, SPLITS))
    asked = {
        id_key(take(item, "id", f"{path}: item {number}")): bool(item.get("image"))
        for path in folder_files[CONVERSATIONS]
        for number, item in enumerate(read_json(path), start=1)
    }
    loaded: dict[str, list[ScienceProblem]] = {}
    for split, ids in splits.items():
        loaded[split] = []
        for name in dict.fromkeys(ids):
            where = f"{folder_files[PROBLEMS][0]}: problem {name}"
            problem = take(problems, str(name), str(folder_files[PROBLEMS][0]))
            choices, answer = take(problem, "choices", where), problem.get("answer")
            picture = asked.get(id_key(name), bool(problem.get("image")))
            loaded[split].append(ScienceProblem(str(name), -1 if answer is None else answer, len(choices), picture))
    return loaded


def read_letter(reply: str) -> str:
    """LLaVA's reading: a bare letter A to E, a letter before ``. ``, or what ``The answer is`` names once."""
    if reply in tuple(OPTIONS):
        return reply
    if len(reply) >= 3 and reply[0] in OPTIONS and reply[1:3] == ". ":
        return reply[0]
    found = _ANSWER_IS.findall(reply)
    return found[0] if len(found) == 1 else FAILED


def score_scienceqa(
    splits: Mapping[str, Sequence[ScienceProblem]],
    predictions: Sequence[Mapping[str, Any]],
    split: str = "test",
    **options: Any,
) -> ScoreResult:
    """Score by the rule ``official`` (LLaVA's script).

    Args:
        splits: Of ``load_scienceqa``.
        predictions: Lines with ``question_id``, ``text`` and, as LLaVA writes it, ``prompt``; where no line has a
            prompt, the data tells which questions have a picture.
        split: Split to score.
        options: None.

    Raises:
        ValueError: If there is no such split.
    """
    if split not in splits:
        raise ValueError(f"scienceqa has no split {split!r}; it has {', '.join(splits)}")
    problems = splits[split]
    joined = join_predictions(
        [problem.id for problem in problems], predictions, ("question_id", "index", "id"), ("text", "prediction")
    )
    has_prompts = any(line is not None and "prompt" in line for line in joined.lines)
    samples: list[dict[str, Any]] = []
    for problem, text, line in zip(problems, joined.texts, joined.lines, strict=True):
        parsed = read_letter(text) if line is not None else FAILED
        chosen = OPTIONS.index(parsed) if parsed in tuple(OPTIONS[: problem.choices]) else -1
        prompted = (
            "<image>" in str(line.get("prompt", "")) if line is not None and has_prompts else problem.has_picture
        )
        samples.append(
            {
                "id": problem.id,
                "score": float(chosen >= 0 and chosen == problem.answer),
                "parsed": parsed,
                "answer": OPTIONS[problem.answer] if 0 <= problem.answer < len(OPTIONS) else None,
                "category": "image" if problem.has_picture else "text",
                "is_multimodal": line is not None and prompted,
            }
        )
    warnings = []
    if joined.n_missing:
        warnings.append("as in LLaVA's script, questions without a prediction are left out of IMG-Accuracy")
    if not any(sample["is_multimodal"] for sample in samples):
        warnings.append("no answered question has a picture: IMG-Accuracy is 0, where the script divides by zero")
    metrics = {
        "accuracy": _mean(samples),
        "IMG-Accuracy": _mean([sample for sample in samples if sample["is_multimodal"]]),
        "image_accuracy": _mean([sample for sample in samples if sample["category"] == "image"]),
    }
    metrics |= {f"{name}_rounded": round(100 * value, 2) for name, value in metrics.items()}
    metrics |= {"correct": sum(sample["score"] for sample in samples), "count": len(samples)}
    return make_result(joined, {"official": {"metrics": metrics, "per_sample": samples}}, warnings)


def _mean(samples: Sequence[Mapping[str, Any]]) -> float:
    return share(sum(sample["score"] for sample in samples), len(samples))


@BENCHMARKS.register
class ScienceQA(Benchmark):
    """The test split of ScienceQA as LLaVA asks it; pictures in ``image_folder`` (``images/test``)."""

    scorer = "scienceqa"
    form = 'folder with problems.json, pid_splits.json, llava_test_CQM-A.json; lines {"question_id", "text"}'
    load = staticmethod(load_scienceqa)
    rate = staticmethod(score_scienceqa)
    releases = (
        Release(
            "scienceqa",
            ("scienceqa",),
            "scienceqa/images/test",
            "problems.json, pid_splits.json and images of https://github.com/lupantech/ScienceQA; "
            f"llava_test_CQM-A.json of {EVAL_ZIP}",
            "SQA-I",
            "all 4241 questions; the paper's number is of the 2017 with a picture: quote IMG-Accuracy",
        ),
    )
    id_field = "question_id"
    text_field = "text"
    headline = ("official", "IMG-Accuracy")

    def questions(self) -> Sequence[Question]:
        """All questions of ``llava_test_CQM-A.json``."""
        return [self._question(item) for item in read_json(find_file(self.data, "list of questions", CONVERSATIONS))]

    def _question(self, item: Mapping[str, Any]) -> Question:
        name = str(item["id"])
        asked = item["conversations"][0]["value"].replace(IMAGE_PLACEHOLDER, "").strip()
        text = f"{asked}\n{LETTER_REQUEST}"
        if not item.get("image"):
            return Question(name, text, fields={"prompt": text})
        picture = self.picture_file(item["image"], "images/test")
        fields = {"prompt": f"{IMAGE_PLACEHOLDER}\n{text}"}  # by which LLaVA's script knows questions with a picture
        return Question(name, text, file_opener(picture, f"question {name}"), str(picture), name, fields)
