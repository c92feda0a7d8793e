"""Judges: any OpenAI-compatible endpoint or a local model grades replies; a killed run goes on where it was.

Nothing but the standard library is needed. What a judge is asked, and which replies are accepted, is in
``protocols.py``; what its replies amount to, in the scorers.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mg_llava.evaluation.judging.protocol import JudgeProtocol, JudgeRequest, Message

logger = logging.getLogger(__name__)

_PASSING = frozenset([408, 409, 425, 429, 500, 502, 503, 504])
_LONGEST_PAUSE = 60.0
_KEY = "judge_key"


class JudgeError(RuntimeError):
    """A judge that cannot be reached, or that refuses; the message says what to do."""


class Judge(Protocol):
    """Replies to messages.

    Attributes:
        name: Written into the results, since scores of different judges are not comparable.
    """

    name: str

    def __call__(self, messages: Sequence[Message], max_tokens: int, temperature: float) -> str:
        """The reply to a conversation."""


class CallableJudge:
    """A local model as a judge.

    Args:
        name: Name in the results.
        function: Messages (``{"role", "content"}``) to a reply.
    """

    def __init__(self, name: str, function: Callable[[Sequence[Message]], str]) -> None:
        self.name = name
        self._function = function

    def __call__(self, messages: Sequence[Message], max_tokens: int, temperature: float) -> str:
        """What the function makes of the messages."""
        return self._function(messages)


@dataclass
class EndpointJudge:
    """A model behind an OpenAI-compatible endpoint (OpenAI, vLLM, LMDeploy, llama.cpp, Ollama, ...).

    Args:
        url: Base URL up to and with the version, such as ``http://localhost:8000/v1``.
        name: The model's name there.
        key_variable: Environment variable that holds the key; servers of one's own need none.
        timeout: Seconds for one reply.
        retries: Further attempts where the server is busy or out of reach.
        pause: Seconds before the first of them; doubled each time, up to a minute.
    """

    url: str
    name: str
    key_variable: str = "OPENAI_API_KEY"
    timeout: float = 120.0
    retries: int = 5
    pause: float = 1.0

    def __call__(self, messages: Sequence[Message], max_tokens: int, temperature: float) -> str:
        """The endpoint's reply; raises ``JudgeError`` if there is none."""
        body = {"model": self.name, "messages": list(messages), "max_tokens": max_tokens, "temperature": temperature}
        content = self._post(json.dumps(body).encode())
        try:
            return content["choices"][0]["message"]["content"] or ""
        except (KeyError, IndexError, TypeError) as error:
            raise JudgeError(f"{self.url}: unexpected answer of the endpoint: {str(content)[:300]}") from error

    def _post(self, body: bytes) -> Any:
        url = f"{self.url.rstrip('/')}/chat/completions"
        headers = {"Content-Type": "application/json"}
        key = os.environ.get(self.key_variable)
        if key:
            headers["Authorization"] = f"Bearer {key}"
        for attempt in range(self.retries + 1):
            try:
                request = urllib.request.Request(url, data=body, headers=headers)
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    return json.loads(response.read())
            except urllib.error.HTTPError as error:
                problem = f"HTTP {error.code} ({error.read()[:300].decode(errors='replace')})"
                if error.code not in _PASSING:
                    raise JudgeError(f"{url}: {problem}; check the model's name and {self.key_variable}") from error
            except (OSError, ValueError) as error:  # refused, timed out, cut off
                problem = str(error)
            if attempt < self.retries:
                pause = min(self.pause * 2**attempt, _LONGEST_PAUSE)
                logger.warning("judge %s: %s; asking again in %.1f s", self.name, problem, pause)
                time.sleep(pause)
        raise JudgeError(f"{url}: no reply after {self.retries + 1} attempts: {problem}; is the server running?")


def load_local_judge(folder: str | Path, device: str = "cpu") -> CallableJudge:
    """A chat model of Transformers as a judge; greedy."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype="auto").to(device).eval()

    def reply(messages: Sequence[Message]) -> str:
        ids = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_tensors="pt").to(device)
        with torch.inference_mode():
            output = model.generate(ids, do_sample=False, max_new_tokens=512)
        return str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))

    return CallableJudge(Path(folder).name, reply)


def run_judge(
    requests: Iterable[JudgeRequest],
    judge: Judge,
    protocol: JudgeProtocol,
    out: str | Path,
    workers: int = 1,
    progress: Callable[[Iterable[Any], int], Iterable[Any]] | None = None,
) -> list[dict[str, Any]]:
    """Ask a judge about all requests and write each reply at once.

    Args:
        requests: What to ask; lines that need no judge come with their reply.
        judge: The judge.
        protocol: Which replies are accepted, and where they go.
        out: JSON Lines; what is there of the same question, prompt and judge is not asked again.
        workers: Number of questions under way at once; more than one for endpoints only.
        progress: Wraps the work, given its length (as ``tqdm`` does).

    Returns:
        The prediction lines with the judge's reply and name, in the order of the requests.

    Raises:
        JudgeError: If the judge cannot be reached; what has been judged stays in ``out``.
    """
    out = Path(out)
    requests = list(requests)
    keys = [_key_of(request, judge, protocol) for request in requests]
    done = {line[_KEY]: line for line in _read_whole_lines(out)}
    open_ones = [(key, request) for key, request in zip(keys, requests, strict=True) if key not in done]
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out, "a", encoding="utf-8") as file:
        judged = _ask_all(open_ones, judge, protocol, workers)
        for line in judged if progress is None else progress(judged, len(open_ones)):
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            done[line[_KEY]] = line
    return [done[key] for key in keys]


def _ask_all(
    requests: Sequence[tuple[str, JudgeRequest]], judge: Judge, protocol: JudgeProtocol, workers: int
) -> Iterator[dict[str, Any]]:
    def work(item: tuple[str, JudgeRequest]) -> dict[str, Any]:
        key, request = item
        return {**_ask(request, judge, protocol), _KEY: key}

    if workers <= 1:
        yield from map(work, requests)
        return
    with ThreadPoolExecutor(workers) as pool:
        try:
            yield from pool.map(work, requests)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _ask(request: JudgeRequest, judge: Judge, protocol: JudgeProtocol) -> dict[str, Any]:
    base = {**request.line, "judge_prompt": protocol.version}
    if request.reply is not None:
        return {**base, protocol.reply_field: request.reply, "judge_name": "rule", "judge_accepted": True}
    reply, accepted = "", False
    for attempt in range(protocol.attempts):
        messages = request.messages if attempt == 0 else protocol.insist(request.messages)
        reply = judge(messages, protocol.max_tokens, protocol.temperature + attempt * protocol.warmer)
        accepted = protocol.accepts(reply)
        if accepted:
            break
    if not accepted:
        logger.warning("judge %s: no usable reply about %s: %.80r", judge.name, request.id, reply)
    return {**base, protocol.reply_field: reply, "judge_name": judge.name, "judge_accepted": accepted}


def _key_of(request: JudgeRequest, judge: Judge, protocol: JudgeProtocol) -> str:
    content = json.dumps([request.id, request.messages, request.reply, judge.name, protocol.version], default=str)
    return hashlib.blake2b(content.encode(), digest_size=12).hexdigest()


def _read_whole_lines(path: Path) -> list[dict[str, Any]]:
    """Lines of an earlier run; a last one that was cut off by a kill is removed from the file."""
    if not path.is_file():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with open(path, "r+b") as file:
            file.truncate(len(whole))
    lines = []
    for number, line in enumerate(whole.decode("utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}: line {number} is not JSON ({error.msg}); remove it or give another file"
            ) from error
        if _KEY not in lines[-1]:
            raise ValueError(f"{path}: line {number} is not of a judge; give another file for the judge's replies")
    return lines
