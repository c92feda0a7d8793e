"""MMVP: 150 pairs of pictures that CLIP takes for alike, one question with two options about each.

``official`` needs a judge's reply on each line (``judge``, ``gpt_grade``, ...): it counts if it is ``yes`` in any case
and nothing else. ``lmms_eval`` reads the option's letter, and goes by the labels of the file: lmms-eval's own data has
some of ``DISPUTED`` corrected.

Metrics: ``pair_accuracy`` (both questions of a pair right, the benchmark's figure) and ``accuracy`` (questions).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mg_llava.data.records.tables import Row, read_table, require_columns
from mg_llava.evaluation.asking import file_opener
from mg_llava.evaluation.benchmark import BENCHMARKS, Benchmark, Question
from mg_llava.evaluation.judging.protocol import JudgeProtocol, Messages, from_user
from mg_llava.evaluation.judging.verdicts import REPLY_FIELDS, unreadable
from mg_llava.evaluation.release import HUGGING_FACE, Release
from mg_llava.evaluation.scoring.files import find_file
from mg_llava.evaluation.scoring.joining import Joined, ScoreResult, join_predictions, make_result, name_ids, share

JUDGE_FIELDS = (*REPLY_FIELDS, "gpt_grade", "grade", "gpt_answer", "verdict", "judgement", "judgment")
QUESTIONS = "Questions.csv"
_IDS = ("question_id", "index", "id")
_TEXTS = ("response", "text", "prediction", "answer")
_CLEAR = ("yes", "no")
DISPUTED = (99, 100, 279, 280)
"""Questions, from 1, whose labels are held for wrong."""
_PATTERNS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"^\s*\(?([AB])\)?\.?\s*$",
        r"^\s*\(?([AB])\)?[.\s]",
        r"answer\s+is\s+\(?([AB])\)?",
        r"option\s+\(?([AB])\)?",
        r"\(?([AB])\)?(?:\s|$)",
    )
)


@dataclass(frozen=True)
class MmvpQuestion:
    """A question; consecutive ones, from the first, are a pair.

    Attributes:
        id: Its position, from 1, by which its picture is named.
        text: Question and options as MG-LLaVA asks them.
        answer: ``a`` or ``b``.
    """

    id: int
    text: str
    answer: str


def load_mmvp(paths: Sequence[Path]) -> list[MmvpQuestion]:
    """Read ``Questions.csv`` (or the folder with it).

    Raises:
        ValueError: If it is malformed; the message names file and row.
    """
    path = find_file(paths, "list of questions", QUESTIONS) if paths[0].is_dir() else paths[0]
    rows = require_columns(path, read_table(path), ("Question", "Options", "Correct Answer"))
    return [_question(path, row) for row in rows]


def read_option(reply: str) -> str:
    """lmms-eval's reading: ``a`` or ``b`` by the first of several patterns, in any case; ``""`` without one."""
    text = reply.strip()
    for pattern in _PATTERNS:
        found = pattern.search(text)
        if found:
            return found.group(1).lower()
    return text[0].lower() if text[:1].lower() in ("a", "b") else ""


def score_mmvp(
    questions: Sequence[MmvpQuestion], predictions: Sequence[Mapping[str, Any]], **options: Any
) -> ScoreResult:
    """Score by the rules named above; a question without a prediction or without a judge's reply is wrong."""
    joined = join_predictions([question.id for question in questions], predictions, _IDS, _TEXTS)
    warnings = []
    rules: dict[str, Any] = {}
    verdicts = [_verdict(line) for line in joined.lines]
    unclear = [
        q.id for q, verdict in zip(questions, verdicts, strict=True) if (verdict or "yes").lower() not in _CLEAR
    ]
    judged = sum(verdict is not None for verdict in verdicts)
    if judged and len(unclear) == judged:
        warnings.append(unreadable("mmvp", unclear))
    elif judged:
        rules["official"] = _judged(questions, verdicts)
        both = zip(questions, verdicts, joined.lines, strict=True)
        silent = [question.id for question, verdict, line in both if verdict is None and line is not None]
        warnings += name_ids(silent, "predictions have no judge's reply and are wrong")
        warnings += name_ids(unclear, "judge's replies are neither yes nor no and count as wrong")
    else:
        warnings.append(
            "no judge's replies (a field such as 'judge' on each line): the official figure is left out, the others "
            "read the option's letter"
        )
    if len(questions) % 2:
        warnings.append("the last question has no partner; it is in no pair")
    if len(questions) >= max(DISPUTED):
        warnings.append(f"the labels of {DISPUTED} are disputed; they are used as the file has them")
    rules["lmms_eval"] = _lettered(questions, joined)
    return make_result(joined, rules, warnings)


def _question(path: Path, row: Row) -> MmvpQuestion:
    found = re.search("[ab]", row["Correct Answer"].lower())
    if not found:
        raise ValueError(f"{path}: row {row.number} has the answer {row['Correct Answer']!r}, expected (a) or (b)")
    return MmvpQuestion(row.number, f"{row['Question']} {row['Options']}", found.group())


def _verdict(line: Mapping[str, Any] | None) -> str | None:
    """The judge's reply on a line."""
    if line is None:
        return None
    return next((str(line[name]) for name in JUDGE_FIELDS if line.get(name) is not None), None)


def _judged(questions: Sequence[MmvpQuestion], verdicts: Sequence[str | None]) -> dict[str, Any]:
    samples = [
        {"id": question.id, "score": float((verdict or "").lower() == "yes"), "parsed": verdict}
        for question, verdict in zip(questions, verdicts, strict=True)
    ]
    return _rule(samples)


def _lettered(questions: Sequence[MmvpQuestion], joined: Joined) -> dict[str, Any]:
    samples = []
    for question, text in zip(questions, joined.texts, strict=True):
        parsed, answer = read_option(text), question.answer
        samples.append({"id": question.id, "score": float(parsed == answer), "parsed": parsed, "answer": answer})
    return _rule(samples)


def _rule(samples: list[dict[str, Any]]) -> dict[str, Any]:
    scores = [sample["score"] for sample in samples]
    pairs = [min(pair) for pair in zip(scores[::2], scores[1::2], strict=False)]
    metrics = {"pair_accuracy": share(sum(pairs), len(pairs)), "accuracy": share(sum(scores), len(scores))}
    return {"metrics": metrics, "per_sample": samples}


def _ask(question: MmvpQuestion, text: str) -> Messages:
    content = (
        f"Question: {question.text}\nTrue option: ({question.answer})\nGiven answer: {text}\n\n"
        "Does the given answer choose the true option? Reply with yes or no, one word."
    )
    return from_user(content, system="You decide whether answers are right.")


@BENCHMARKS.register
class MMVP(Benchmark):
    """MMVP from ``Questions.csv``; pictures in ``image_folder`` (``MMVP Images``)."""

    scorer = "mmvp"
    form = 'Questions.csv; lines {"question_id", "response"}, and "judge" for judged scoring'
    load = staticmethod(load_mmvp)
    rate = staticmethod(score_mmvp)
    judge = JudgeProtocol("mmvp-1", load_mmvp, _ask, lambda reply: reply.strip().lower() in _CLEAR, max_tokens=10)
    releases = (
        Release(
            "mmvp",
            ("mmvp/Questions.csv",),
            "mmvp/MMVP Images",
            f"{HUGGING_FACE}MMVP/MMVP",
            "MMVP",
            "the paper's number is GPT-judged pair accuracy; the letter rule needs no judge",
        ),
    )
    id_field = "question_id"
    text_field = "response"
    headline = ("lmms_eval", "pair_accuracy")

    def questions(self) -> Sequence[Question]:
        """The questions in order; consecutive ones are a pair."""
        return [self._question(question) for question in load_mmvp(self.data)]

    def _question(self, question: MmvpQuestion) -> Question:
        picture = self.picture_file(f"{question.id}.jpg", "MMVP Images")
        opener = file_opener(picture, f"question {question.id}")
        fields = {"prompt": question.text, "answer": f"({question.answer})"}
        return Question(question.id, question.text, opener, picture.name, question.id, fields)
