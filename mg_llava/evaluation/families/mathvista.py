"""MathVista: mathematics in pictures; extracted answers to normalized answers to accuracies."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mg_llava.data.records.tables import id_key
from mg_llava.evaluation.benchmark import BENCHMARKS, Benchmark, Question
from mg_llava.evaluation.judging.protocol import JudgeProtocol, Messages, from_user
from mg_llava.evaluation.release import HUGGING_FACE, JUDGED, Release
from mg_llava.evaluation.scoring.answers import edit_distance, round_as_printed
from mg_llava.evaluation.scoring.figures import group_by, mean, share
from mg_llava.evaluation.scoring.files import find_file, read_records, take
from mg_llava.evaluation.scoring.joining import Line, Lines, ScoreResult, join_predictions, name_ids, reply_text

_ID_FIELDS = ("pid", "question_id", "id", "index")
_REPLY_FIELDS = ("response", "prediction", "text")
_GROUPS = ("question_type", "answer_type", "language", "source", "category", "task", "context", "grade", "skills")
_NO_ANSWERS = "the problems have no answers (a test split): submit the extracted answers to MathVista's server"
_HINTS: dict[Any, str] = {
    "text": "and provide the correct option letter, e.g., A, B, C, D",
    "integer": "requiring an integer answer and provide the final value, e.g., 1, 2, 3",
    ("float", 1): "requiring a floating-point number with one decimal place and provide the final value, "
    "e.g., 1.2, 1.3, 1.4",
    ("float", 2): "requiring a floating-point number with two decimal places and provide the final value, "
    "e.g., 1.23, 1.34, 1.45",
    "list": "requiring a Python list as an answer and provide the final list, e.g., [1, 2, 3], [1.2, 1.3, 1.4]",
}
_QUOTED = re.compile(r'The answer is "(.*)"\.')
_LETTER = re.compile(r"\(([a-zA-Z])\)")


def load_mathvista(paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Problems by id, of a JSON object (``test_mini.json``), a JSON list or JSON lines with ``pid``."""
    path = find_file(paths, "MathVista problem file", "*.json", "*.jsonl")
    content = read_records(path)
    if isinstance(content, list):
        content = {id_key(take(one, "pid", f"{path}: entry {i}")): one for i, one in enumerate(content, start=1)}
    for name, problem in content.items():
        for field in ("question_type", "answer_type"):
            take(problem, field, f"{path}: problem {name}")
    return content


def score_mathvista(
    annotations: Mapping[str, Line], predictions: Lines, quick_extract: bool | str = False, **options: Any
) -> ScoreResult:
    """Accuracies of the official script, over the problems that are in the predictions.

    Lines have an ``extraction``, or a ``response`` of which the answer is taken by the rules of the script's first
    stage where they apply, else as it is. With ``quick_extract`` ("true" on command lines) ``The answer is "..."``
    counts as a rule of the first stage.
    """
    joined = join_predictions(list(annotations), predictions, _ID_FIELDS, ("extraction", *_REPLY_FIELDS))
    if not any("answer" in problem for problem in annotations.values()):
        return joined.result({}, [_NO_ANSWERS])
    quick = quick_extract if isinstance(quick_extract, bool) else quick_extract.lower() in ("1", "true", "yes")
    samples, scored, open_replies, formless = [], [], [], []
    for (name, problem), _, line in joined.beside(list(annotations.items())):
        extraction, parsed, answer = None, None, problem.get("answer")
        if line is not None:
            extraction, is_extracted = _extraction(line, problem, quick)
            parsed = normalize_extraction(extraction, problem)
            open_replies += [] if is_extracted else [name]
            formless += [name] if parsed is None or extraction in (None, "") else []
        score = float(parsed is not None and parsed == answer)
        reply = {"score": score, "parsed": parsed, "answer": answer}
        samples.append({"id": name, **reply, "category": problem["question_type"], "extraction": extraction})
        if line is not None:
            scored.append(({**problem, **(problem.get("metadata") or {})}, score))
    warnings = [
        *name_ids(open_replies, "replies have no extracted answer and were scored as they are; run a judge"),
        *name_ids(formless, "extracted answers are empty or have not the form of the true ones"),
    ]
    if joined.n_missing:
        warnings.append("accuracy is over the problems with a prediction, as in the official script")
    metrics = {**_metrics(scored), "accuracy_over_all": share(sum(score for _, score in scored), joined.n)}
    return joined.result({"official": (metrics, samples)}, warnings)


def make_query(problem: Line) -> str:
    """The question to the model: hint, question with its unit, choices."""
    kind, precision = problem["answer_type"], problem.get("precision")
    hint = _HINTS.get((kind, int(precision))) if kind == "float" and precision else _HINTS.get(kind)
    question = f"Question: {problem['question']}"
    if problem.get("unit"):
        question += f" (Unit: {problem['unit']})"
    choices = [f"({chr(ord('A') + number)}) {choice}" for number, choice in enumerate(problem.get("choices") or ())]
    lines = [f"Hint: Please answer the question {hint}, at the end." if hint else "", question]
    return "\n".join([line for line in lines if line] + (["Choices:", *choices] if choices else []))


def extract_by_rule(response: str, problem: Line, quick: bool = False) -> str | None:
    """What the script's first stage extracts without asking a judge; None where it would ask."""
    if response == "":
        return ""
    if problem["question_type"] == "multi_choice" and response in (problem.get("choices") or ()):
        return response
    try:
        if problem["answer_type"] == "integer":
            return str(int(response))
        if problem["answer_type"] == "float":
            return str(float(response))
    except ValueError:
        pass
    match = _QUOTED.search(response) if quick else None
    return match.group(1) if match else None


def normalize_extraction(extraction: Any, problem: Line) -> str | None:
    """An extracted answer in the form of the true ones; None where it has no such form.

    Of multiple choice it is always some choice: the one of a letter, else the nearest by edit distance, also to "".
    """
    if problem["question_type"] == "multi_choice":
        return _choice(extraction, problem.get("choices") or ())
    kind = problem["answer_type"]
    try:
        if kind == "integer":
            return str(int(float(extraction)))
        if kind == "float":
            return str(round(float(extraction), int(problem["precision"])))
    except (TypeError, ValueError, OverflowError, KeyError):
        return None
    return str(extraction) if kind == "list" else extraction


def _choice(extraction: Any, choices: Sequence[Any]) -> str | None:
    if not choices:
        return None
    text = extraction.strip() if isinstance(extraction, str) else str(extraction)
    letters = _LETTER.findall(text)
    if letters:
        text = letters[0].upper()
    options = [chr(ord("A") + number) for number in range(len(choices))]
    if text in options:
        return choices[options.index(text)]
    return min(choices, key=lambda choice: edit_distance(text, str(choice)))


def _extraction(line: Line, problem: Line, quick: bool) -> tuple[Any, bool]:
    """The extracted answer of a line, and whether it is one (and not the reply as it is)."""
    if "extraction" in line:
        return line["extraction"], True
    reply = next(line[name] for name in _REPLY_FIELDS if name in line)
    if isinstance(reply, list) and len(reply) == 1:
        reply = reply[0]  # MG-LLaVA writes lists of one
    text = reply_text(reply)
    found = extract_by_rule(text, problem, quick)
    return (text, False) if found is None else (found, True)


def _metrics(scored: Sequence[tuple[Line, float]]) -> dict[str, Any]:
    metrics: dict[str, Any] = _counts([score for _, score in scored])
    rounded: dict[str, Any] = {"accuracy": round(metrics["accuracy"] * 100, 2)}
    for kind in _GROUPS:
        members = [(str(name), score) for problem, score in scored for name in _names(kind, problem.get(kind))]
        groups = sorted(group_by(members, lambda member: member[0]).items())
        metrics[kind] = {name: _counts([score for _, score in some]) for name, some in groups}
        rounded[kind] = {name: round_as_printed(group["accuracy"] * 100) for name, group in metrics[kind].items()}
    return {**metrics, "rounded": rounded}


def _names(kind: str, value: Any) -> Sequence[Any]:
    """The groups that a problem belongs to; it has one of each kind, but several skills."""
    return [one for one in (value if kind == "skills" and isinstance(value, list) else [value]) if one is not None]


def _counts(scores: Sequence[float]) -> dict[str, Any]:
    return {"accuracy": mean(scores), "correct": int(sum(scores)), "total": len(scores)}


# The answer in a reply, in the form that the hint of the question asks for
_EXTRACTION = """Take the final answer out of a reply to a question, in the form that the hint asks for. Write the \
answer only.

Hint: Please answer the question requiring an integer answer and provide the final value, e.g., 1, 2, 3, at the end.
Question: How many triangles are there?
Reply: Two are on the left and three on the right, so that there are 5 triangles.
Extracted answer: 5

Hint: Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the end.
Question: Which side is longer?
Choices:
(A) AB
(B) BC
Reply: BC is opposite to the larger angle, so (B) is right.
Extracted answer: B

Hint: Please answer the question requiring a floating-point number with one decimal place and provide the final \
value, e.g., 1.2, 1.3, 1.4, at the end.
Question: What is the slope?
Reply: It rises by 3 over a length of 2, which makes 1.5 in all.
Extracted answer: 1.5

"""


def _ask(problem: Line, text: str) -> Messages | str:
    found = extract_by_rule(text, problem)
    if found is not None:
        return found
    return from_user(f"{_EXTRACTION}{make_query(problem)}\nReply: {text}\nExtracted answer: ")


@BENCHMARKS.register
class MathVista(Benchmark):
    """MathVista from ``test_mini.json``, pictures (``images/1.jpg``, ...) in ``image_folder``.

    Replies without an extracted answer are scored as they are; ``tools/judge.py mathvista`` has a judge extract it.
    """

    scorer = "mathvista"
    form = "test_mini.json; JSON with responses and extracted answers"
    load, rate = staticmethod(load_mathvista), staticmethod(score_mathvista)
    judge = JudgeProtocol(
        "mathvista-1", load_mathvista, _ask, lambda reply: reply.strip() != "", _ID_FIELDS, reply_field="extraction"
    )
    _get = f"{HUGGING_FACE}AI4Math/MathVista: testmini and images, to MathVista/test_mini.json and MathVista/images"
    releases = (Release("mathvista", ("MathVista/test_mini.json",), "MathVista", _get, caution=JUDGED),)
    id_field, text_field = "pid", "response"
    headline = ("official", "accuracy")

    def questions(self) -> Sequence[Question]:
        """All problems."""
        return [
            self.ask(name, make_query(problem), str(problem["image"]), owner=f"problem {name}")
            for name, problem in load_mathvista(self.data).items()
        ]
