"""What the judged benchmarks share: their questions, and where a prediction line has the judge's reply and name."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mg_llava.evaluation.scoring.joining import Line, name_ids

REPLY_FIELDS = ("judge", "judge_reply", "content", "review")
"""Keys of a prediction line that may hold the judge's reply."""
_NAME_FIELDS = ("judge_name", "judge_model", "model")


@dataclass(frozen=True)
class JudgedQuestion:
    """A question whose reply a judge grades.

    Attributes:
        id: As the data file has it.
        text: The question.
        answer: The true answer, or that of the reference.
        groups: Capabilities or category.
        image: File name of the picture, or name of the video.
        context: Description of the picture that the judge gets.
        instruction: The judge's task, where the benchmark's files have it.
        role: The judge's name for the answers' authors.
    """

    id: Any
    text: str = ""
    answer: str = ""
    groups: tuple[str, ...] = ()
    image: str = ""
    context: str = ""
    instruction: str = ""
    role: str = "Assistant"


def find_judge_reply(line: Line | None, fields: Sequence[str] = REPLY_FIELDS) -> Any:
    """The judge's reply on a prediction line: a text, a verdict, or a list of one for each run; None without one."""
    reply = None if line is None else next((line[name] for name in fields if line.get(name) is not None), None)
    return list(map(without_thought, reply)) if isinstance(reply, list) else without_thought(reply)


def without_thought(reply: Any) -> Any:
    """A judge's reply without what it thought before, which ends with ``</think>``; nothing of one that never ends."""
    if not isinstance(reply, str):
        return reply
    _, end, said = reply.rpartition("</think>")
    return said.strip() if end else "" if said.lstrip().startswith("<think>") else reply


def judge_names(lines: Iterable[Line | None]) -> str:
    """Names of the judges that the lines come from."""
    names: set[str] = set()
    for line in lines:
        value = next((line[name] for name in _NAME_FIELDS if line.get(name)), None) if line else None
        names.update(map(str, value if isinstance(value, list) else [value] if value else []))
    return ", ".join(sorted(names)) or "unknown"


def needs_judge(name: str) -> str:
    """The warning where no line has a judge's reply."""
    return f"no prediction has a judge's reply: run `tools/judge.py {name}` on them and score what it writes"


def unreadable(name: str, ids: Iterable[Any]) -> str:
    """The warning where judges have replied, and none of their replies can be read."""
    (text,) = name_ids(ids, "judge's replies, which are all there are, cannot be read: nothing is scored")
    return f"{text}; run `tools/judge.py {name}` again, or with another judge"
