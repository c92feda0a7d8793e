"""ScienceQA from its own files, by LLaVA's rule.

Metrics: ``accuracy`` over all questions of the split; ``IMG-Accuracy`` over those whose prompt holds ``<image>``, as
the script has it, which leaves out questions without a prediction; ``image_accuracy`` over all questions with a
picture. ``*_rounded`` in percent with two decimals, as the script prints the first two; ``correct`` and ``count``.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mg_llava.data.records.tables import id_key
from mg_llava.evaluation.asking import LETTER_REQUEST
from mg_llava.evaluation.benchmark import BENCHMARKS, Benchmark, Question
from mg_llava.evaluation.release import EVAL_ZIP, Release
from mg_llava.evaluation.scoring.figures import mean_score
from mg_llava.evaluation.scoring.files import find_file, find_files, listing, read_json, take
from mg_llava.evaluation.scoring.joining import Line, Lines, ScoreResult, join_predictions
from mg_llava.tokens import IMAGE_PLACEHOLDER

OPTIONS = "ABCDE"
FAILED = "FAILED"
PROBLEMS, SPLITS, CONVERSATIONS = "problems.json", "pid_splits.json", "llava_*_CQM-A.json"
# The period after the letter is any character: a reply that ends with the letter does not match.
_ANSWER_IS = re.compile("The answer is ([A-Z]).")


@dataclass(frozen=True)
class ScienceProblem:
    """A question of the split: the number of its right choice, how many it has, and whether it has a picture."""

    id: str
    answer: int
    choices: int
    has_picture: bool


def load_scienceqa(paths: Sequence[Path]) -> dict[str, list[ScienceProblem]]:
    """The problems of each split of ``problems.json`` and ``pid_splits.json``; LLaVA's question file may be there too.

    Raises:
        ValueError: If a file is missing or malformed; the message names it.
    """
    for name in (PROBLEMS, SPLITS):
        if not find_files(paths, name):
            raise ValueError(f"{listing(paths)}: no {name} there")
    path = find_files(paths, PROBLEMS)[0]
    problems, splits = read_json(path), read_json(find_files(paths, SPLITS)[0])
    asked = {
        id_key(take(item, "id", f"{file}: item {number}")): bool(item.get("image"))
        for file in find_files(paths, CONVERSATIONS)
        for number, item in enumerate(read_json(file), start=1)
    }
    loaded: dict[str, list[ScienceProblem]] = {}
    for split, ids in splits.items():
        loaded[split] = []
        for name in map(str, dict.fromkeys(ids)):
            problem = take(problems, name, str(path))
            choices, answer = take(problem, "choices", f"{path}: problem {name}"), problem.get("answer")
            picture = asked.get(id_key(name), bool(problem.get("image")))
            loaded[split].append(ScienceProblem(name, -1 if answer is None else answer, len(choices), picture))
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
    splits: Mapping[str, Sequence[ScienceProblem]], predictions: Lines, split: str = "test", **options: Any
) -> ScoreResult:
    """Score a split by the rule ``official`` (LLaVA's script).

    Lines have ``question_id``, ``text`` and, as LLaVA writes it, ``prompt``; where no line has a prompt, the data
    tells which questions have a picture.
    """
    if split not in splits:
        raise ValueError(f"scienceqa has no split {split!r}; it has {', '.join(splits)}")
    ids = [problem.id for problem in splits[split]]
    joined = join_predictions(ids, predictions, ("question_id", "index", "id"), ("text", "prediction"))
    has_prompts = any(line is not None and "prompt" in line for line in joined.lines)
    samples: list[dict[str, Any]] = []
    for problem, text, line in joined.beside(splits[split]):
        parsed = read_letter(text) if line is not None else FAILED
        chosen = OPTIONS.index(parsed) if parsed in tuple(OPTIONS[: problem.choices]) else -1
        answer = OPTIONS[problem.answer] if 0 <= problem.answer < len(OPTIONS) else None
        reply = {"score": float(chosen >= 0 and chosen == problem.answer), "parsed": parsed, "answer": answer}
        prompted = "<image>" in str((line or {}).get("prompt", "")) if has_prompts else problem.has_picture
        groups = {"category": "image" if problem.has_picture else "text", "is_multimodal": bool(line) and prompted}
        samples.append({"id": problem.id, **reply, **groups})
    warnings = []
    if joined.n_missing:
        warnings.append("as in LLaVA's script, questions without a prediction are left out of IMG-Accuracy")
    if not any(sample["is_multimodal"] for sample in samples):
        warnings.append("no answered question has a picture: IMG-Accuracy is 0, where the script divides by zero")
    metrics = {
        "accuracy": mean_score(samples),
        "IMG-Accuracy": mean_score(sample for sample in samples if sample["is_multimodal"]),
        "image_accuracy": mean_score(sample for sample in samples if sample["category"] == "image"),
    }
    metrics |= {f"{name}_rounded": round(100 * value, 2) for name, value in metrics.items()}
    metrics |= {"correct": sum(sample["score"] for sample in samples), "count": len(samples)}
    return joined.result({"official": (metrics, samples)}, warnings)


@BENCHMARKS.register
class ScienceQA(Benchmark):
    """The test split of ScienceQA as LLaVA asks it; pictures in ``image_folder`` (``images/test``)."""

    scorer = "scienceqa"
    form = 'folder with problems.json, pid_splits.json, llava_test_CQM-A.json; lines {"question_id", "text"}'
    load, rate = staticmethod(load_scienceqa), staticmethod(score_scienceqa)
    _get = (
        "problems.json, pid_splits.json and images of https://github.com/lupantech/ScienceQA; "
        f"llava_test_CQM-A.json of {EVAL_ZIP}"
    )
    _note = "all 4241 questions; the paper's number is of the 2017 with a picture: quote IMG-Accuracy"
    releases = (Release("scienceqa", ("scienceqa",), "scienceqa/images/test", _get, "SQA-I", _note),)
    id_field, text_field = "question_id", "text"
    headline = ("official", "IMG-Accuracy")

    def questions(self) -> Sequence[Question]:
        """All questions of ``llava_test_CQM-A.json``."""
        return [self._question(item) for item in read_json(find_file(self.data, "list of questions", CONVERSATIONS))]

    def _question(self, item: Line) -> Question:
        name = str(item["id"])
        asked = item["conversations"][0]["value"].replace(IMAGE_PLACEHOLDER, "").strip()
        text = f"{asked}\n{LETTER_REQUEST}"
        if not item.get("image"):
            return Question(name, text, fields={"prompt": text})
        fields = {"prompt": f"{IMAGE_PLACEHOLDER}\n{text}"}  # by which LLaVA's script knows questions with a picture
        return self.ask(name, text, item["image"], "images/test", fields=fields)
