"""A judge behind an OpenAI-compatible endpoint: asks with the parameters that it takes, and sorts its errors.

An error either passes (asked again), names a parameter that the endpoint does not take (asked without it), is about
one question (a refusal of its text), or ends the run.
"""

import itertools
import json
import logging
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any

from mg_llava.evaluation.judging.protocol import JudgeError, JudgeRefusal, Message
from mg_llava.evaluation.judging.verdicts import without_thought
from mg_llava.work.json_text import parse_json

_logger = logging.getLogger(__name__)

_PASSING = frozenset([408, 409, 425, 429, 500, 502, 503, 504])
_ABOUT_A_REQUEST = frozenset([400, 413, 422, 451])
_LONGEST_PAUSE = 60.0
_LONGEST_ASKED = 300.0
"""Most seconds to wait where the endpoint says for how long."""
_TOO_MANY = 429
_MORE_ATTEMPTS = 3
"""Where questions come too fast: with these the pauses together outlast the minute that rates are counted by."""
_ROOM = 4096
"""Tokens for endpoints whose models think before they reply."""
_FILTERED = re.compile(
    r"content.?(filter|policy|management|exists risk|blocked)|moderation|flagged|safety|responsible.?ai|inappropriate",
    re.IGNORECASE,
)
_NOT_TAKEN = re.compile(
    r"unsupported|n[o']t supported?|unrecognized|unknown|unexpected|not permitted|extra.(inputs|fields)|not allowed|"
    r"deprecated|invalid (parameter|argument)|use .max_(completion_)?tokens",
    re.IGNORECASE,
)
_LEAST = re.compile(r"(?:>=|at least|minimum(?: value)?(?: of| is)?|greater than or equal to)\s*(\d+)", re.IGNORECASE)
_ADVICE = {401: "check the key in {key}", 403: "check the key in {key}", 404: "check the URL and the model's name"}


@dataclass(frozen=True)
class _Parameters:
    """What an endpoint takes, as far as is known.

    Attributes:
        limit: Name of the limit of new tokens; None for none.
        temperature: Whether a temperature.
        system: Whether messages of the system.
        least: Smallest limit of new tokens.
    """

    limit: str | None = "max_tokens"
    temperature: bool = True
    system: bool = True
    least: int = 1

    def body(self, model: str, messages: Sequence[Message], max_tokens: int, temperature: float) -> dict[str, Any]:
        """A request's body."""
        if not self.system:
            texts = [message["content"] for message in messages]
            messages = [{"role": "user", "content": "\n\n".join(texts)}]
        body: dict[str, Any] = {"model": model, "messages": list(messages)}
        if self.limit is not None:
            body[self.limit] = max(max_tokens, self.least)
        if self.temperature:
            body["temperature"] = temperature
        return body

    def without_refused(self, error: str) -> "_Parameters":
        """What is left after an error of the endpoint; the same where the error names no parameter."""
        least = _LEAST.search(error)
        if self.limit is not None and re.search(r"max_(completion_|output_)?tokens", error):
            if least is not None and int(least.group(1)) > self.least:
                return replace(self, least=int(least.group(1)))
            if _NOT_TAKEN.search(error):
                return replace(self, limit="max_completion_tokens" if self.limit == "max_tokens" else None)
        if self.temperature and "temperature" in error:
            return replace(self, temperature=False)
        if self.system and re.search(r"\bsystem\b", error) and re.search(r"role|message|instruction", error):
            return replace(self, system=False)
        return self


class _Refused(Exception):
    """An HTTP error; ``wait`` are the seconds after which the endpoint wants to be asked again."""

    def __init__(self, status: int, text: str, wait: float = 0.0) -> None:
        super().__init__(f"HTTP {status} ({text[:300]})")
        self.status = status
        self.text = text
        self.wait = wait
        self.is_filtered = _FILTERED.search(text) is not None


@dataclass
class EndpointJudge:
    """A model behind an OpenAI-compatible endpoint (OpenAI, vLLM, LMDeploy, llama.cpp, Ollama, ...).

    Args:
        url: Base URL up to and with the version, such as ``http://localhost:8000/v1``.
        name: The model's name there.
        key_variable: Environment variable that holds the key; servers of one's own need none.
        timeout: Seconds for one reply.
        retries: Further attempts where the server is busy or out of reach; three more where it says that questions
            come too fast.
        pause: Seconds before the first of them; doubled each time, up to a minute, and no less than the server says.
    """

    url: str
    name: str
    key_variable: str = "OPENAI_API_KEY"
    timeout: float = 120.0
    retries: int = 5
    pause: float = 1.0
    _parameters: _Parameters = field(default_factory=_Parameters, repr=False)

    def __call__(self, messages: Sequence[Message], max_tokens: int, temperature: float) -> str:
        """The endpoint's reply.

        Raises:
            JudgeRefusal: The endpoint refuses this question.
            JudgeError: The endpoint is out of reach, or takes no question; the message says what to do.
        """
        while True:
            used = self._parameters
            try:
                content = self._post(used.body(self.name, messages, max_tokens, temperature))
            except _Refused as error:
                if not error.is_filtered and self._adapt(used, used.without_refused(error.text), error):
                    continue
                if error.is_filtered or error.status in _ABOUT_A_REQUEST:
                    raise JudgeRefusal(f"{self.name} refuses the question: {error}") from error
                advice = _ADVICE.get(error.status, "the endpoint takes no such request")
                raise JudgeError(f"{self.url}: {error}; {advice.format(key=self.key_variable)}") from error
            reply, end = self._read(content)
            is_empty = not without_thought(reply)  # thoughts that were cut off are no reply
            if is_empty and end == "length" and self._adapt(used, replace(used, least=_ROOM), "no room for a reply"):
                continue
            if is_empty and end == "content_filter":
                raise JudgeRefusal(f"{self.name} refuses the question: {str(content)[:300]}")
            return reply

    def _adapt(self, used: _Parameters, wanted: _Parameters, reason: object) -> bool:
        """Ask with other parameters from now on; False where there are none."""
        if self._parameters != used:  # another thread has been here
            return True
        if wanted == used or wanted.least < used.least:
            return False
        _logger.warning("judge %s: %s; asking with %s", self.name, reason, wanted)
        self._parameters = wanted
        return True

    def _read(self, content: Any) -> tuple[str, str]:
        """Reply and reason of its end; an answer in another form is of its question, as filters give none at all."""
        try:
            choice = content["choices"][0]
            message = choice["message"]
            if message.get("refusal"):
                return "", "content_filter"
            reply = message.get("content") or ""
            if isinstance(reply, list):  # of parts
                reply = "".join(part.get("text") or "" for part in reply)
            return reply, choice.get("finish_reason") or ""
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise JudgeRefusal(f"{self.url}: unexpected answer of the endpoint: {str(content)[:300]}") from error

    def _post(self, body: dict[str, Any]) -> Any:
        url = f"{self.url.rstrip('/')}/chat/completions"
        headers = {"Content-Type": "application/json"}
        key = os.environ.get(self.key_variable)
        if key:
            headers["Authorization"] = f"Bearer {key}"
        for attempt in itertools.count():
            wait, more = 0.0, 0
            try:
                return self._send(urllib.request.Request(url, data=json.dumps(body).encode(), headers=headers))
            except _Refused as error:
                if error.status not in _PASSING:
                    raise
                problem, wait = str(error), error.wait
                more = _MORE_ATTEMPTS if error.status == _TOO_MANY else 0
            except (OSError, ValueError, HTTPException) as error:  # refused, timed out, cut off
                problem = str(error) or type(error).__name__
            if attempt >= self.retries + more:
                break
            pause = max(wait, min(self.pause * 2**attempt, _LONGEST_PAUSE))
            _logger.warning("judge %s: %s; asking again in %.1f s", self.name, problem, pause)
            time.sleep(pause)
        raise JudgeError(f"{url}: no reply after {attempt + 1} attempts: {problem}; is the server running?")

    def _send(self, request: urllib.request.Request) -> Any:
        """What the endpoint answers to one request.

        Raises:
            _Refused: An HTTP error, or the one that a relay hands on.
            OSError: Nothing, or not all of it, comes; or HTTPException, or ValueError.
        """
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                content = parse_json(response.read())
        except urllib.error.HTTPError as error:
            text = error.read()[:4000].decode(errors="replace")
            raise _Refused(error.code, text, _seconds_of(error.headers.get("Retry-After"))) from error
        refused = _inner_error(content)
        if refused is not None:
            raise refused
        return content


def _inner_error(content: Any) -> _Refused | None:
    """The error that a relay hands on under status 200, which has no choices."""
    if not isinstance(content, dict) or not content.get("error") or content.get("choices"):
        return None
    inner = content["error"]
    code = inner.get("code") if isinstance(inner, dict) else None
    return _Refused(code if isinstance(code, int) else 400, json.dumps(content))


def _seconds_of(after: str | None) -> float:
    """Seconds that a header ``Retry-After`` asks for, a number or a date, up to some minutes; 0 without one."""
    try:
        seconds = float(after or 0)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(str(after)).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError):
            return 0.0
    return min(max(0.0, seconds), _LONGEST_ASKED)
