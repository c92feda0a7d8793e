"""The run of a judge over predictions: each reply is written at once, so that a stopped run can be continued.

Questions that the judge refused, or about which no reply could be used, are open work: the next run asks them again.
"""

import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mg_llava.evaluation.judging.protocol import Judge, JudgeError, JudgeProtocol, JudgeRefusal, JudgeRequest, Message
from mg_llava.evaluation.judging.verdicts import without_thought
from mg_llava.evaluation.scoring.files import parse_lines
from mg_llava.work.atomic import write_text

_logger = logging.getLogger(__name__)

_KEY = "judge_key"
_ACCEPTED = "judge_accepted"
_IN_A_ROW = 10
"""So many refused questions with no reply between them are a fault of the set-up, and end the run; so are so many
replies that cannot be used, if none could."""
_RULE = "rule"
_SHOWN = 200


@dataclass
class CallableJudge:
    """A local model as a judge: a function of messages (``{"role", "content"}``), with a name for the results."""

    name: str
    function: Callable[[Sequence[Message]], str]

    def __call__(self, messages: Sequence[Message], max_tokens: int, temperature: float) -> str:
        """What the function makes of the messages."""
        return self.function(messages)


def load_local_judge(folder: str | Path, device: str = "cpu") -> CallableJudge:
    """A chat model of Transformers as a judge; greedy."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from mg_llava.compat import dtype_name
    from mg_llava.models.weights.loading import load_hugging_face

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = load_hugging_face(AutoModelForCausalLM, str(folder), **{dtype_name(): "auto"}).to(device).eval()

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
        requests: Questions; lines that need no judge come with their reply.
        judge: The judge.
        protocol: Which replies are accepted, and where they go.
        out: JSON Lines of these questions with this judge; what is there is not asked again. Lines of other replies,
            prompts and judges go to a file beside it, ``NAME.others.jsonl``, and come back from there.
        workers: Number of questions under way at once; more than one for endpoints only.
        progress: Wraps the work, given its length (as ``tqdm`` does).

    Returns:
        The prediction lines with the judge's reply and name, in the order of the requests.

    Raises:
        JudgeError: If the judge cannot be reached, refuses one question after the other, or gives no reply that can be
            used; what has been judged stays in ``out``.
        ValueError: If ``out`` holds something else.
    """
    out = Path(out)
    requests = list(requests)
    keys = [_key_of(request, judge, protocol) for request in requests]
    out.parent.mkdir(parents=True, exist_ok=True)
    done = _earlier_lines(out, keys)
    open_ones = [(key, request) for key, request in zip(keys, requests, strict=True) if key not in done]
    streak = _Streak(protocol.reply_field, is_usable=any(line.get("judge_name") != _RULE for line in done.values()))
    with open(out, "a", encoding="utf-8") as file:
        judged = _ask_all(open_ones, judge, protocol, workers)
        for line in judged if progress is None else progress(judged, len(open_ones)):
            file.write(_to_text(line))
            file.flush()
            done[line[_KEY]] = line
            streak.add(line)
    return [done[key] for key in keys]


@dataclass
class _Streak:
    """How many questions in a row have no verdict.

    Attributes:
        reply_field: Key of a judge's reply.
        is_usable: Whether the judge has given a reply that can be used.
        refused: Questions that it refused, since the last reply.
        unusable: Questions without a verdict, since the last one.
    """

    reply_field: str
    is_usable: bool
    refused: int = 0
    unusable: int = 0

    def add(self, line: dict[str, Any]) -> None:
        """Count a line.

        Raises:
            JudgeError: There are too many in a row.
        """
        if line["judge_name"] == _RULE:
            return
        self.is_usable |= line[_ACCEPTED]
        self.refused = self.refused + 1 if "judge_error" in line else 0
        self.unusable = 0 if line[_ACCEPTED] else self.unusable + 1
        if self.refused == _IN_A_ROW:
            raise JudgeError(f"{_IN_A_ROW} questions in a row were refused, the last one: {line['judge_error']}")
        if self.unusable >= _IN_A_ROW and not self.is_usable:
            last = line.get("judge_error", repr(line.get(self.reply_field))[:_SHOWN])
            raise JudgeError(
                f"no verdict about any of {self.unusable} questions, the last reply: {last}; take a judge that keeps "
                "to the form that is asked for"
            )


def _ask_all(
    requests: Sequence[tuple[str, JudgeRequest]], judge: Judge, protocol: JudgeProtocol, workers: int
) -> Iterator[dict[str, Any]]:
    def work(item: tuple[str, JudgeRequest]) -> dict[str, Any]:
        key, request = item
        return {**_ask(request, judge, protocol), _KEY: key}

    if workers <= 1:
        yield from map(work, requests)
        return
    waiting = iter(requests)
    failure: BaseException | None = None
    with ThreadPoolExecutor(workers) as pool:
        running = {pool.submit(work, item) for item in itertools.islice(waiting, workers)}
        # each is given as soon as it is there, and so are those that are under way beside one that fails: all are paid
        while running:
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                problem = future.exception()
                if problem is None:
                    yield future.result()
                failure = failure or problem
            if failure is None:
                running |= {pool.submit(work, item) for item in itertools.islice(waiting, workers - len(running))}
    if failure is not None:
        raise failure


def _ask(request: JudgeRequest, judge: Judge, protocol: JudgeProtocol) -> dict[str, Any]:
    base = {**request.line, "judge_prompt": protocol.version}
    if request.reply is not None:
        return {**base, protocol.reply_field: request.reply, "judge_name": _RULE, _ACCEPTED: True}
    given, reply, accepted = "", "", False
    for attempt in range(protocol.attempts):
        messages = request.messages if attempt == 0 else protocol.insist(request.messages)
        try:
            given = judge(messages, protocol.max_tokens, protocol.temperature + attempt * protocol.warmer)
        except JudgeRefusal as error:
            _logger.warning("question %s: %s", request.id, error)
            return {**base, "judge_name": judge.name, _ACCEPTED: False, "judge_error": str(error)}
        reply = protocol.tidy(without_thought(given))
        accepted = protocol.accepts(reply)
        if accepted:
            break
    if not accepted:
        _logger.warning("judge %s: no usable reply about %s: %.80r", judge.name, request.id, given)
    return {**base, protocol.reply_field: reply, "judge_name": judge.name, _ACCEPTED: accepted}


def _key_of(request: JudgeRequest, judge: Judge, protocol: JudgeProtocol) -> str:
    content = json.dumps([request.id, request.messages, request.reply, judge.name, protocol.version], default=str)
    return hashlib.blake2b(content.encode(), digest_size=12).hexdigest()


def _earlier_lines(out: Path, keys: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Lines of an earlier run by their key, of those in ``keys``; nothing else is left in ``out``.

    Scores are made of all that is there: replies of other judges, or about other predictions, would count.
    """
    beside = out.with_name(f"{out.stem}.others{out.suffix}")
    there, others, wanted = _usable_lines(out), _usable_lines(beside), set(keys)
    done = {key: line for key, line in {**others, **there}.items() if key in wanted}
    foreign = {key: line for key, line in there.items() if key not in wanted}
    if foreign:
        write_text(beside, "".join(map(_to_text, {**others, **foreign}.values())))
    if done.keys() != there.keys():
        write_text(out, "".join(map(_to_text, done.values())))
    return done


def _usable_lines(path: Path) -> dict[str, dict[str, Any]]:
    """Lines of an earlier run by their key; a cut last one and those without a usable reply leave the file."""
    if not path.is_file():
        return {}
    text = path.read_bytes().decode("utf-8", errors="replace")
    lines = parse_lines(path, text[: text.rfind("\n") + 1])
    for number, line in enumerate(lines, start=1):
        if _KEY not in line:
            raise ValueError(f"{path}: line {number} is not of a judge; give another file for the judge's replies")
    kept = {line[_KEY]: line for line in lines if line.get(_ACCEPTED, True)}
    if len(kept) < len(lines) or not text.endswith("\n"):
        write_text(path, "".join(map(_to_text, kept.values())))
    return kept


def _to_text(line: dict[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"
