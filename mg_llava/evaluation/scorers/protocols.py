"""What a judge is asked about each benchmark, and which replies are accepted.

Form and scale are those of the official protocols, so that the official aggregation applies; the wording is our own
(that of LLaVA-Bench comes with its ``rule.json``). Scores are comparable between runs of one judge and one version.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mg_llava.evaluation.scorers.joining import id_key, reply_text
from mg_llava.evaluation.scorers.judge_replies import JudgedQuestion

Message = dict[str, str]


@dataclass(frozen=True)
class JudgeRequest:
    """One question to a judge.

    Attributes:
        id: Id of the question.
        messages: The conversation that the judge continues.
        line: The prediction line that its reply completes.
        reply: The reply, where a rule gives it without asking.
    """

    id: str
    messages: tuple[Message, ...]
    line: Mapping[str, Any]
    reply: str | None = None


@dataclass(frozen=True)
class JudgeProtocol:
    """How a benchmark is judged.

    Attributes:
        version: Name of the prompt in the results.
        load: Reads the benchmark's files into what ``ask`` takes.
        ask: Question and model's reply to the messages, or to a reply that a rule gives.
        accepts: Whether a judge's reply can be used.
        max_tokens: Longest reply.
        temperature: Of the first attempt.
        attempts: Attempts until a reply is accepted.
        warmer: Added to the temperature at each further attempt.
        hint: Added to the last message at further attempts.
        reply_field: Key of the judge's reply on the prediction line.
        id_fields: Keys of the id on a prediction line; the first that it has.
        text_fields: Keys of the model's reply on a prediction line; the first that it has.
        key: Id of a prediction line to the id of its question.
    """

    version: str
    load: Callable[[Sequence[Path]], Mapping[str, Any]]
    ask: Callable[[Any, str], tuple[Message, ...] | str]
    accepts: Callable[[str], bool]
    max_tokens: int = 64
    temperature: float = 0.0
    attempts: int = 5
    warmer: float = 0.0
    hint: str = ""
    reply_field: str = "judge"
    id_fields: tuple[str, ...] = ("question_id", "id", "index")
    text_fields: tuple[str, ...] = ("text", "response", "pred", "prediction")
    key: Callable[[Any], str] = id_key

    def insist(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """The messages of a further attempt."""
        *before, last = messages
        return (*before, {**last, "content": last["content"] + self.hint})

    def requests(self, data: Sequence[str | Path], predictions: Sequence[Mapping[str, Any]]) -> list[JudgeRequest]:
        """Requests about all predictions of known questions.

        Raises:
            ValueError: If a prediction has no id or no reply.
        """
        questions = self.load([Path(path) for path in data])
        requests = []
        for number, line in enumerate(predictions, start=1):
            name = next((self.key(line[field]) for field in self.id_fields if field in line), None)
            text = next((line[field] for field in self.text_fields if field in line), None)
            if name is None or not any(field in line for field in self.text_fields):
                raise ValueError(
                    f"prediction {number}: expected one of {', '.join(self.id_fields)} and one of "
                    f"{', '.join(self.text_fields)}, found the keys {', '.join(line)}"
                )
            if name in questions:
                asked = self.ask(questions[name], reply_text(text))
                reply, messages = (asked, ()) if isinstance(asked, str) else (None, asked)
                requests.append(JudgeRequest(name, messages, line, reply))
        return requests


def find_protocol(benchmark: str) -> JudgeProtocol:
    """The protocol of a benchmark.

    Raises:
        ValueError: If none is known for it; the message lists those that are.
    """
    if benchmark not in PROTOCOLS:
        raise ValueError(f"no judge's protocol for {benchmark!r}; known are {', '.join(sorted(PROTOCOLS))}")
    return PROTOCOLS[benchmark]


def _user(text: str) -> tuple[Message, ...]:
    return ({"role": "user", "content": text},)


# MM-Vet: a grade from 0.0 to 1.0, completed at the end of a table

_MM_VET = """You grade answers. The last column of the table is how right the given answer is, from 0.0 (nothing is \
right) in steps of 0.1 to 1.0 (everything is right). <AND> in the true answer joins parts that are all needed; <OR> \
separates alternatives of which one is enough. Write the number that is missing in the last row, nothing else.

Question | True answer | Given answer | Grade
--- | --- | --- | ---
Which animals are there? | cat <AND> dog | There is a horse. | 0.0
Which animals are there? | cat <AND> dog | I see a cat. | 0.5
Which animals are there? | cat <AND> dog | A dog is lying beside a cat. | 1.0
What color is the bag? | red <OR> maroon | It is maroon. | 1.0
What does the sign ask for? | to keep the door shut, because the cat runs away | The door has to be closed. | 0.6
"""


def _load_mm_vet(paths: Sequence[Path]) -> Mapping[str, JudgedQuestion]:
    from mg_llava.evaluation.scorers.mm_vet import load_mm_vet

    return {question.id: question for question in load_mm_vet(paths)}


def _ask_mm_vet(question: JudgedQuestion, text: str) -> tuple[Message, ...]:
    answer = question.answer.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    return _user(_MM_VET + " | ".join([question.text, answer, text, ""]))


def _accepts_grade(reply: str) -> bool:
    from mg_llava.evaluation.scorers.mm_vet import parse_grade

    return parse_grade(reply) is not None


def _mm_vet_key(value: Any) -> str:
    from mg_llava.evaluation.scorers.mm_vet import mm_vet_id

    return mm_vet_id(value)


# LLaVA-Bench: two scores from 1 to 10 in the first line

_LLAVA_BENCH = (
    "Compare the two answers to the question above. The context describes the picture that the question is about. "
    "Score each answer from 1 to 10 for how helpful, relevant, accurate and detailed it is; more is better. Write the "
    "scores of the first and of the second answer, separated by a space, as the first line and nothing else in it. "
    "Explain them in the lines below, and do not let the order of the answers count."
)


def _load_llava_bench(paths: Sequence[Path]) -> Mapping[str, JudgedQuestion]:
    from mg_llava.evaluation.scorers.llava_bench import load_llava_bench

    return {id_key(question.id): question for question in load_llava_bench(paths)}


def _ask_llava_bench(question: JudgedQuestion, text: str) -> tuple[Message, ...]:
    role = question.role
    content = (
        f"[Context]\n{question.context}\n\n[Question]\n{question.text}\n\n"
        f"[{role} 1]\n{question.answer}\n\n[End of {role} 1]\n\n[{role} 2]\n{text}\n\n[End of {role} 2]\n\n"
        f"[System]\n{question.instruction or _LLAVA_BENCH}\n\n"
    )
    return ({"role": "system", "content": "You check carefully and exactly how good answers are."}, *_user(content))


# MSVD-QA, MSRVTT-QA: a Python dict of yes or no and a score from 0 to 5

_VIDEO_QA = (
    "You decide whether an answer to a question about a video means the same as the true answer. Other words with the "
    "same meaning are right."
)


def _load_video_qa(paths: Sequence[Path]) -> Mapping[str, JudgedQuestion]:
    from mg_llava.evaluation.scorers.video_qa import load_video_qa

    return {id_key(question.id): question for question in load_video_qa(paths)}


def _ask_video_qa(question: JudgedQuestion, text: str) -> tuple[Message, ...]:
    content = (
        f"Question: {question.text}\nTrue answer: {question.answer}\nGiven answer: {text}\n\n"
        "Reply with a Python dictionary and nothing else. Its key 'pred' has the string 'yes' if the given answer is "
        "right, else 'no'; its key 'score' has an integer from 0 (no relation) to 5 (the same meaning). "
        "Example: {'pred': 'yes', 'score': 4}"
    )
    return ({"role": "system", "content": _VIDEO_QA}, *_user(content))


def _accepts_verdict(reply: str) -> bool:
    from mg_llava.evaluation.scorers.video_qa import parse_verdict

    try:
        verdict = parse_verdict(reply)
    except ValueError:
        return False
    return isinstance(verdict, dict) and {"pred", "score"} <= set(verdict)


# MathVista: the answer in a reply, in the form that the hint of the question asks for

_MATHVISTA = """Take the final answer out of a reply to a question, in the form that the hint asks for. Write the \
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


def _load_mathvista(paths: Sequence[Path]) -> Mapping[str, Mapping[str, Any]]:
    from mg_llava.evaluation.scorers.mathvista import load_mathvista

    return load_mathvista(paths)


def _ask_mathvista(problem: Mapping[str, Any], text: str) -> tuple[Message, ...] | str:
    from mg_llava.evaluation.scorers.mathvista import extract_by_rule, make_query

    found = extract_by_rule(text, problem)
    return _user(f"{_MATHVISTA}{make_query(problem)}\nReply: {text}\nExtracted answer: ") if found is None else found


# MMVP: is the reply the true option?


def _load_mmvp(paths: Sequence[Path]) -> Mapping[str, Any]:
    from mg_llava.evaluation.scorers.mmvp import load_mmvp

    return {id_key(question.id): question for question in load_mmvp(paths)}


def _ask_mmvp(question: Any, text: str) -> tuple[Message, ...]:
    content = (
        f"Question: {question.text}\nTrue option: ({question.answer})\nGiven answer: {text}\n\n"
        "Does the given answer choose the true option? Reply with yes or no, one word."
    )
    return ({"role": "system", "content": "You decide whether answers are right."}, *_user(content))


_VIDEO_PROTOCOL = JudgeProtocol(
    "video_qa-1", _load_video_qa, _ask_video_qa, _accepts_verdict, id_fields=("id", "question_id")
)
PROTOCOLS: dict[str, JudgeProtocol] = {
    "mm_vet": JudgeProtocol(
        "mm_vet-1",
        _load_mm_vet,
        _ask_mm_vet,
        _accepts_grade,
        max_tokens=3,
        warmer=0.5,
        hint="\nThe grade as a number: ",
        key=_mm_vet_key,
    ),
    "llava_bench": JudgeProtocol(
        "llava_bench-1",
        _load_llava_bench,
        _ask_llava_bench,
        lambda reply: True,  # the script counts what it cannot read as -1 and does not ask again
        max_tokens=1024,
        temperature=0.2,
        attempts=1,
    ),
    "msvd_qa": _VIDEO_PROTOCOL,
    "msrvtt_qa": _VIDEO_PROTOCOL,
    "mathvista": JudgeProtocol(
        "mathvista-1",
        _load_mathvista,
        _ask_mathvista,
        lambda reply: reply.strip() != "",
        reply_field="extraction",
        id_fields=("pid", "question_id", "id", "index"),
    ),
    "mmvp": JudgeProtocol(
        "mmvp-1", _load_mmvp, _ask_mmvp, lambda reply: reply.strip().lower() in ("yes", "no"), max_tokens=10
    ),
}
"""Protocols by benchmark."""
