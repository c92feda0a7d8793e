"""How a judge is asked about a benchmark, and which of its replies are accepted; the families have the wording.

Form and scale are those of the official protocols, so that the official aggregation applies; the wording is our own
(that of LLaVA-Bench comes with its ``rule.json``). Scores are comparable between runs of one judge and one version.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mg_llava.data.records.tables import id_key
from mg_llava.evaluation.scoring.files import naming_files
from mg_llava.evaluation.scoring.joining import Line, Lines, reply_text

Message = dict[str, str]
Messages = tuple[Message, ...]
_TEXT_FIELDS = ("text", "response", "pred", "prediction")
"""Keys of the model's reply on a prediction line; the first that it has."""
_MISSING = object()


class JudgeError(RuntimeError):
    """A judge that cannot be reached, or that takes no question; the message says what to do."""


class JudgeRefusal(RuntimeError):
    """A judge that refuses one question, such as for its content; the others are judged."""


class Judge(Protocol):
    """Replies to messages; the name is written into the results, since scores of two judges are not comparable."""

    name: str

    def __call__(self, messages: Sequence[Message], max_tokens: int, temperature: float) -> str:
        """The reply to a conversation."""


def from_user(text: str, system: str = "") -> Messages:
    """A conversation of one message, with a system text before it where there is one."""
    before = ({"role": "system", "content": system},) if system else ()
    return (*before, {"role": "user", "content": text})


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
    messages: Messages
    line: Line
    reply: str | None = None


@dataclass(frozen=True)
class JudgeProtocol:
    """How a benchmark is judged.

    Attributes:
        version: Name of the prompt in the results.
        load: Reads the benchmark's files into what ``ask`` takes: a mapping by id, or things that have an ``id``.
        ask: Question and model's reply to the messages, or to a reply that a rule gives.
        accepts: Whether a judge's reply can be used.
        tidy: A judge's reply without what is around its verdict; what is accepted and written.
        id_fields: Keys of the id on a prediction line; the first that it has.
        max_tokens: Longest reply.
        temperature: Of the first attempt.
        attempts: Attempts until a reply is accepted.
        warmer: Added to the temperature at each further attempt.
        hint: Added to the last message at further attempts.
        reply_field: Key of the judge's reply on the prediction line.
        key: Id of a prediction line to the id of its question.
    """

    version: str
    load: Callable[[Sequence[Path]], Any]
    ask: Callable[[Any, str], Messages | str]
    accepts: Callable[[str], bool]
    id_fields: tuple[str, ...] = ("question_id", "id", "index")
    max_tokens: int = 64
    temperature: float = 0.0
    attempts: int = 5
    warmer: float = 0.0
    hint: str = ""
    reply_field: str = "judge"
    key: Callable[[Any], str] = id_key
    tidy: Callable[[str], str] = str

    def insist(self, messages: Sequence[Message]) -> Messages:
        """The messages of a further attempt."""
        *before, last = messages
        return (*before, {**last, "content": last["content"] + self.hint})

    def requests(self, data: Sequence[str | Path], predictions: Lines) -> list[JudgeRequest]:
        """Requests about all predictions of known questions.

        Raises:
            ValueError: If a prediction has no id or no reply.
        """
        with naming_files(data, self.version):
            loaded = self.load([Path(path) for path in data])
        questions = loaded if isinstance(loaded, Mapping) else {id_key(question.id): question for question in loaded}
        requests = []
        for number, line in enumerate(predictions, start=1):
            name = next((self.key(line[field]) for field in self.id_fields if field in line), None)
            text = next((line[field] for field in _TEXT_FIELDS if field in line), _MISSING)
            if name is None or text is _MISSING:
                raise ValueError(
                    f"prediction {number}: expected one of {', '.join(self.id_fields)} and one of "
                    f"{', '.join(_TEXT_FIELDS)}, found the keys {', '.join(line)}"
                )
            if name in questions:
                asked = self.ask(questions[name], reply_text(text))
                reply, messages = (asked, ()) if isinstance(asked, str) else (None, asked)
                requests.append(JudgeRequest(name, messages, line, reply))
        return requests
