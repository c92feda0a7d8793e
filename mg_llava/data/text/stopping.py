"""Where an answer ends: end tokens, and stop words of several tokens, in whole answers and in streamed ones."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from mg_llava.data.text.conversation import Template, special_ids

_HALF = "\N{REPLACEMENT CHARACTER}"
"""Stands for a character whose other bytes are still to come."""

_CONTEXT = 16
"""Ids before a place without which those after it may read otherwise."""
_STEP = 32


class Stops:
    """The ends of an answer in one template.

    Args:
        tokenizer: A transformers tokenizer.
        template: The LLM's template; its stop words and the suffix that stands for EOS end an answer.
        extra_ids: Further end tokens, such as those of the LLM's generation config.

    Attributes:
        ids: End tokens; the tokenizer's own come first.
        words: Stop words that are not one token, to be cut from the text.
    """

    def __init__(self, tokenizer: Any, template: Template, extra_ids: Sequence[int] = ()) -> None:
        self.tokenizer = tokenizer
        stop_words = [*template.stop_words, *([template.suffix] if template.suffix_as_eos else [])]
        ids = [*special_ids(tokenizer)[1], *extra_ids]
        words = []
        for word in dict.fromkeys(word.strip() or word for word in stop_words):
            token = _token_of(tokenizer, word)
            words += [word] if token is None else []
            ids += [] if token is None else [token]
        self.ids: list[int] = list(dict.fromkeys(ids))
        self.words: list[str] = [word for word in words if word]

    def also(self, words: Sequence[str]) -> "Stops":
        """These ends and further stop words, which may begin and end inside of tokens."""
        more = copy.copy(self)
        more.words = [*self.words, *(word for word in words if word)]
        return more

    def criteria(self) -> StoppingCriteriaList | None:
        """What stops transformers' ``generate`` at a stop word; None where there is no such word."""
        return StoppingCriteriaList([_AtWords(self)]) if self.words else None

    def at_word(self, ids: Sequence[int]) -> bool:
        """Whether new ids end with a stop word, possibly inside of the last one."""
        if not self.words:
            return False
        tail = max(len(word.encode()) for word in self.words)  # a token has one byte at least
        text = self.tokenizer.decode(ids[-tail:])
        return any(word in text for word in self.words)

    def read(self, ids: Sequence[int]) -> str:
        """The text of new ids, with its stop words."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def cut(self, text: str) -> tuple[str, bool]:
        """The text before the first stop word, stripped, and whether there was one."""
        ends = [at for word in self.words if (at := text.find(word)) >= 0]
        return text[: min(ends, default=len(text))].strip(), bool(ends)

    def settled(self, text: str) -> str:
        """What further ids cannot change of a text: no half characters, nothing that may begin a stop word."""
        cut, is_whole = self.cut(text)
        if is_whole:
            return cut
        text = text.rstrip(_HALF)
        begun = (size for word in self.words for size in range(1, len(word)) if text.endswith(word[:size]))
        return text[: len(text) - max(begun, default=0)].strip()


class TextStream:
    """The text of ids that come one after the other, in pieces that together are the answer's text.

    Of many ids the last ones alone are read again with each new one.
    """

    def __init__(self, stops: Stops) -> None:
        self.stops = stops
        self.ids: list[int] = []
        self.sent = ""
        self._known = ""  # the text of the ids before ``_start``
        self._start = 0

    def push(self, ids: Sequence[int]) -> str:
        """Take new ids; the text that is settled by them and was not given before, often none."""
        self.ids.extend(ids)
        return self._send(self.stops.settled(self._read()))

    def _read(self) -> str:
        """The text of all ids, of which those before ``_start`` were read before."""
        first = max(0, self._start - _CONTEXT)
        before = self.stops.read(self.ids[first : self._start])
        whole = self.stops.read(self.ids[first:])
        if not whole.startswith(before):  # what comes changes what was there
            self._known, self._start = "", 0
            return self.stops.read(self.ids)
        text = self._known + whole[len(before) :]
        end = len(self.ids) - _CONTEXT
        if end - self._start >= _STEP:
            settled = self.stops.read(self.ids[first:end])
            if whole.startswith(settled) and settled.startswith(before):
                self._known, self._start = self._known + settled[len(before) :], end
        return text

    def finish(self) -> str:
        """The rest of the text, when there are no more ids."""
        return self._send(self.stops.cut(self.stops.read(self.ids))[0])

    def _send(self, text: str) -> str:
        if not text.startswith(self.sent):  # a tokenizer that reads whole runs of bytes may take them back for a while
            return ""
        new, self.sent = text[len(self.sent) :], text
        return new


class _AtWords(StoppingCriteria):
    """Stops each row at its first stop word."""

    def __init__(self, stops: Stops) -> None:
        self.stops = stops

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:  # type: ignore[override]
        """Whether each row of (B, new) ids ends with a stop word, possibly inside its last token."""
        return torch.tensor([self.stops.at_word(row) for row in input_ids.tolist()], device=input_ids.device)


def _token_of(tokenizer: Any, word: str) -> int | None:
    """The one token of a stop word, if it is one."""
    token = tokenizer.convert_tokens_to_ids(word)
    is_known = token != tokenizer.unk_token_id or word == tokenizer.unk_token  # SmolLM2's is <|endoftext|>
    if isinstance(token, int) and token >= 0 and is_known:
        return token
    ids = tokenizer.encode(word, add_special_tokens=False)
    return ids[0] if len(ids) == 1 and ids[0] != tokenizer.unk_token_id else None
