"""Where an answer ends: end tokens for the LLM's generation, and stop words of several tokens."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from mg_llava.data.text.conversation import Template, special_ids


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

    def criteria(self) -> StoppingCriteriaList | None:
        """What stops the generation at a stop word; None where there is no such word."""
        return StoppingCriteriaList([_AtWords(self.tokenizer, self.words)]) if self.words else None

    def cut(self, text: str) -> tuple[str, bool]:
        """The text before the first stop word, stripped, and whether there was one."""
        ends = [at for word in self.words if (at := text.find(word)) >= 0]
        return text[: min(ends, default=len(text))].strip(), bool(ends)


class _AtWords(StoppingCriteria):
    """Stops each row at its first stop word."""

    def __init__(self, tokenizer: Any, words: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.words = list(words)
        self.tail = max(len(word.encode()) for word in words)  # a token has one byte at least

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:  # type: ignore[override]
        """Whether each row of (B, new) ids ends with a stop word, possibly inside its last token."""
        texts = self.tokenizer.batch_decode(input_ids[:, -self.tail :])
        return torch.tensor([any(word in text for word in self.words) for text in texts], device=input_ids.device)


def _token_of(tokenizer: Any, word: str) -> int | None:
    """The one token of a stop word, if it is one."""
    token = tokenizer.convert_tokens_to_ids(word)
    is_known = token != tokenizer.unk_token_id or word == tokenizer.unk_token  # SmolLM2's is <|endoftext|>
    if isinstance(token, int) and token >= 0 and is_known:
        return token
    ids = tokenizer.encode(word, add_special_tokens=False)
    return ids[0] if len(ids) == 1 and ids[0] != tokenizer.unk_token_id else None
