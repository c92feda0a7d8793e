"""Answers in the forms of OpenAI's chat completions: whole, or in chunks."""

import time
import uuid
from collections.abc import Sequence
from typing import Any

from mg_llava.inference.reply import ScoredToken
from mg_llava.inference.requests import Answer


class Completion:
    """One answer's objects.

    Args:
        model: Name of the model.
        tokenizer: Of the LLM, to name tokens.
        has_logprobs: Whether log-probabilities are wanted.
        has_usage: Whether the chunks end with one about usage.
    """

    def __init__(self, model: str, tokenizer: Any, has_logprobs: bool, has_usage: bool = False) -> None:
        self.tokenizer, self.has_logprobs, self.has_usage = tokenizer, has_logprobs, has_usage
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, answer: Answer, scored: Sequence[ScoredToken]) -> dict[str, Any]:
        """The answer as one object."""
        message = {"role": "assistant", "content": answer.text}
        choice = {"index": 0, "message": message, "finish_reason": _reason(answer), **self._logprobs(scored)}
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": _usage(answer)}

    def begin(self) -> dict[str, Any]:
        """The first chunk, which says who speaks."""
        return self._chunk({"role": "assistant", "content": ""}, ())

    def piece(self, text: str, scored: Sequence[ScoredToken]) -> dict[str, Any]:
        """A chunk with a piece of the text."""
        return self._chunk({"content": text}, scored)

    def end(self, answer: Answer) -> list[dict[str, Any]]:
        """The last chunks."""
        chunks = [self._chunk({}, (), _reason(answer))]
        if self.has_usage:
            chunks.append({**self._chunk({}, ()), "choices": [], "usage": _usage(answer)})
        return chunks

    def _chunk(
        self, delta: dict[str, Any], scored: Sequence[ScoredToken], reason: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, **self._logprobs(scored)}
        usage = {"usage": None} if self.has_usage else {}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice], **usage}

    def _logprobs(self, scored: Sequence[ScoredToken]) -> dict[str, Any]:
        if not self.has_logprobs:
            return {"logprobs": None}
        content = [
            {**self._token(token.id, token.logprob), "top_logprobs": [self._token(*pair) for pair in token.top]}
            for token in scored
        ]
        return {"logprobs": {"content": content, "refusal": None}}

    def _token(self, number: int, logprob: float) -> dict[str, Any]:
        text = self.tokenizer.decode([number])
        is_whole = "\N{REPLACEMENT CHARACTER}" not in text  # a part of a character has no text of its own
        return {
            "token": text,
            "logprob": max(logprob, -9999.0),
            "bytes": list(text.encode()) if is_whole else None,
        }


def _reason(answer: Answer) -> str:
    return "length" if answer.truncated else "stop"


def _usage(answer: Answer) -> dict[str, int]:
    new = len(answer.token_ids)
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": new,
        "total_tokens": answer.prompt_tokens + new,
    }
