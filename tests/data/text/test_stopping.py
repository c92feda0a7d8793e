"""Streamed text is the answer's text in pieces: never half a character, nothing of a stop word, in any tokenizer."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mg_llava.data.text.conversation import Template
from mg_llava.data.text.stopping import Stops, TextStream
from tests.data.text import test_templates as families

TEXTS = [
    "Three digits, two of them at the top.",
    "Zürich, naïve: 你好 👍🏽 (12 °C)\n\n  and more .",
    "a b\tc\n\nUSER: what? ASSISTANT: no",
]
BARE = {"INSTRUCTION": "USER: {input} ASSISTANT:", "SEP": "\n"}


@pytest.fixture(scope="module", params=["vicuna_7b", "phi3_mini", "llama3_8b", "qwen2_5_7b"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """SentencePiece, BPE with byte fallback, byte-level BPE of two kinds."""
    return families.FAMILIES[request.param](Path(tmp_path_factory.mktemp("tokenizer")))


def pieces_of(stops: Stops, ids: list[int], size: int = 1) -> list[str]:
    stream = TextStream(stops)
    pieces = [stream.push(ids[start : start + size]) for start in range(0, len(ids), size)]
    return [*pieces, stream.finish()]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("words", [(), ("USER:",), ("\n\n",), ("of the", "th", "more ."), ("你好", "naïve: 你")])
def test_pieces_are_the_answer(tokenizer: Any, text: str, words: tuple[str, ...]) -> None:
    stops = Stops(tokenizer, Template.build(BARE)).also(words)
    ids = tokenizer.encode(text, add_special_tokens=False)
    whole, _ = stops.cut(stops.read(ids))  # tokenizers that normalize may lose a line break
    for size in (1, 3):
        pieces = pieces_of(stops, ids, size)
        assert "".join(pieces) == whole
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert words or len([piece for piece in pieces_of(stops, ids) if piece]) > 3, "it comes in pieces"


def test_long_answers_are_not_read_from_their_beginning_with_each_id(tokenizer: Any) -> None:
    stops, read = Stops(tokenizer, Template.build(BARE)).also(("never said",)), []
    ids = tokenizer.encode("\n".join(TEXTS * 12), add_special_tokens=False)
    assert len(ids) > 500
    plain = stops.read
    stops.read = lambda part: read.append(len(part)) or plain(part)  # type: ignore[method-assign, func-returns-value]
    assert "".join(pieces_of(stops, ids)) == stops.cut(plain(ids))[0]
    *of_pushes, of_finish = read
    assert of_finish == len(ids) and max(of_pushes) < 100


@settings(max_examples=60, derandomize=True)
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\N{REPLACEMENT CHARACTER}"), max_size=20))
def test_any_text_comes_whole(tokenizer: Any, text: str) -> None:
    stops = Stops(tokenizer, Template.build(BARE)).also(("ab", "ba"))
    ids = tokenizer.encode(text, add_special_tokens=False)
    pieces = pieces_of(stops, ids)
    assert "".join(pieces) == stops.cut(stops.read(ids))[0]
    assert not any("ab" in piece or "ba" in piece for piece in pieces)


def test_a_word_is_seen_as_soon_as_it_is_there(tokenizer: Any) -> None:
    text = "two digits. USER: what?"
    stops = Stops(tokenizer, Template.build(BARE)).also(["s. US"])
    ids = tokenizer.encode(text, add_special_tokens=False)
    first = next(n for n in range(1, len(ids) + 1) if stops.at_word(ids[:n]))
    assert "s. US" in tokenizer.decode(ids[:first]) and "s. US" not in tokenizer.decode(ids[: first - 1])
    assert not Stops(tokenizer, Template.build(BARE)).at_word(ids)


def test_characters_that_never_become_whole_are_given_at_the_end(tokenizer: Any) -> None:
    half = tokenizer.encode("👍", add_special_tokens=False)[:-1]
    stops = Stops(tokenizer, Template.build(BARE))
    assert "".join(pieces_of(stops, half)) == stops.cut(stops.read(half))[0]
