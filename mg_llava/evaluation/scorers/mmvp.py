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
from mg_llava.evaluation.scorers.files import find_file
from mg_llava.evaluation.scorers.joining import Joined, ScoreResult, join_predictions, make_result, share
from mg_llava.evaluation.scorers.judge_replies import REPLY_FIELDS

JUDGE_FIELDS = (*REPLY_FIELDS, "gpt_grade", "grade", "gpt_answer", "verdict", "judgement", "judgment")
QUESTIONS = "Questions.csv"
_IDS = ("question_id", "index", "id")
_TEXTS = ("response", "text", "prediction", "answer")
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
    if any(verdict is not None for verdict in verdicts):
        rules["official"] = _judged(questions, verdicts)
        silent = sum(
            verdict is None and line is not None for verdict, line in zip(verdicts, joined.lines, strict=True)
        )
        unclear = sum(verdict is not None and verdict.lower() not in ("yes", "no") for verdict in verdicts)
        if silent or unclear:
            warnings.append(
                f"{silent} predictions have no judge's reply and {unclear} one that is neither yes nor no; wrong"
            )
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
