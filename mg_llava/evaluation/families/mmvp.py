"""MMVP: 150 pairs of pictures that CLIP takes for alike, one question with two options about each.

``official`` needs a judge's reply on each line (``judge``, ``gpt_grade``, ...): it counts if it is ``yes`` in any case
and nothing else. ``lmms_eval`` reads the option's letter, and goes by the labels of the file: lmms-eval's own data has
some of ``DISPUTED`` corrected.

Metrics: ``pair_accuracy`` (both questions of a pair right, the benchmark's figure) and ``accuracy`` (questions).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mg_llava.data.records.tables import Row, read_table, require_columns
from mg_llava.evaluation.benchmark import BENCHMARKS, Benchmark, Question
from mg_llava.evaluation.judging.protocol import JudgeProtocol, Messages, from_user
from mg_llava.evaluation.judging.verdicts import REPLY_FIELDS, find_judge_reply, unreadable
from mg_llava.evaluation.release import HUGGING_FACE, Release
from mg_llava.evaluation.scoring.figures import mean, mean_score
from mg_llava.evaluation.scoring.files import find_file
from mg_llava.evaluation.scoring.joining import Lines, Rule, ScoreResult, join_predictions, name_ids

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
    """Question number ``id``, from 1, with its options; the answer is ``a`` or ``b``. Consecutive ones are a pair."""

    id: int
    text: str
    answer: str


def load_mmvp(paths: Sequence[Path]) -> list[MmvpQuestion]:
    """Read ``Questions.csv`` (or the folder with it); raises ``ValueError`` that names file and row."""
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


def score_mmvp(questions: Sequence[MmvpQuestion], predictions: Lines, **options: Any) -> ScoreResult:
    """Score by the rules named above; a question without a prediction or without a judge's reply is wrong."""
    joined = join_predictions([question.id for question in questions], predictions, _IDS, _TEXTS)
    judged, lettered, silent, unclear = [], [], [], []
    for question, text, line in joined.beside(questions):
        found = find_judge_reply(line, JUDGE_FIELDS)
        verdict = None if found is None else str(found)
        judged.append({"id": question.id, "score": float((verdict or "").lower() == "yes"), "parsed": verdict})
        parsed, answer = read_option(text), question.answer
        lettered.append({"id": question.id, "score": float(parsed == answer), "parsed": parsed, "answer": answer})
        silent += [question.id] if verdict is None and line is not None else []
        unclear += [question.id] if (verdict or "yes").lower() not in _CLEAR else []
    warnings, rules = [], {"official": _rule(judged), "lmms_eval": _rule(lettered)}
    n_judged = sum(sample["parsed"] is not None for sample in judged)
    if not n_judged:
        warnings.append(
            "no judge's replies (a field such as 'judge' on each line): the official figure is left out, the others "
            "read the option's letter"
        )
    elif len(unclear) == n_judged:
        warnings.append(unreadable("mmvp", unclear))
    else:
        warnings += name_ids(silent, "predictions have no judge's reply and are wrong")
        warnings += name_ids(unclear, "judge's replies are neither yes nor no and count as wrong")
    if len(unclear) == n_judged:
        del rules["official"]
    if len(questions) % 2:
        warnings.append("the last question has no partner; it is in no pair")
    if len(questions) >= max(DISPUTED):
        warnings.append(f"the labels of {DISPUTED} are disputed; they are used as the file has them")
    return joined.result(rules, warnings)


def _question(path: Path, row: Row) -> MmvpQuestion:
    found = re.search("[ab]", row["Correct Answer"].lower())
    if not found:
        raise ValueError(f"{path}: row {row.number} has the answer {row['Correct Answer']!r}, expected (a) or (b)")
    return MmvpQuestion(row.number, f"{row['Question']} {row['Options']}", found.group())


def _rule(samples: Lines) -> Rule:
    scores = [sample["score"] for sample in samples]
    pairs = zip(scores[::2], scores[1::2], strict=False)
    return {"pair_accuracy": mean(map(min, pairs)), "accuracy": mean_score(samples)}, samples


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
    load, rate = staticmethod(load_mmvp), staticmethod(score_mmvp)
    judge = JudgeProtocol(
        "mmvp-1",
        load_mmvp,
        _ask,
        lambda reply: reply.strip().lower() in _CLEAR,
        max_tokens=10,
        warmer=0.5,
        hint="\nThe word alone: ",
    )
    _get = f"{HUGGING_FACE}MMVP/MMVP"
    _note = "the paper's number is GPT-judged pair accuracy; the letter rule needs no judge"
    releases = (Release("mmvp", ("mmvp/Questions.csv",), "mmvp/MMVP Images", _get, "MMVP", _note),)
    id_field, text_field = "question_id", "response"
    headline = ("lmms_eval", "pair_accuracy")

    def questions(self) -> Sequence[Question]:
        """The questions in order; consecutive ones are a pair."""
        return [self._question(one) for one in load_mmvp(self.data)]

    def _question(self, one: MmvpQuestion) -> Question:
        fields = {"prompt": one.text, "answer": f"({one.answer})"}
        return self.ask(one.id, one.text, f"{one.id}.jpg", "MMVP Images", fields=fields)
