"""Text to ids and loss mask: equality with XTuner, several pictures, truncation, prompts."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mg_llava.data.records.schema import Turn
from mg_llava.data.text.conversation import (
    NoLabelError,
    Template,
    encode_conversation,
    encode_prompt,
    place_placeholder,
    special_ids,
)
from mg_llava.data.text.tokenizer import TokenizerError, build_tokenizer
from mg_llava.tokens import IGNORE_INDEX, IMAGE_TOKEN_INDEX

# Each template with the tokenizer whose special tokens fit it.
PAIRS = [
    ("vicuna", "words"),
    ("llama3_chat", "bytes"),
    ("phi3_chat", "words"),
    ("qwen_chat", "no_bos"),
    ("gemma", "bytes"),
]
pairs = pytest.mark.parametrize(("name", "kind"), PAIRS)

text = st.text(st.sampled_from("abc dig?.\n{}{0}éAS:"), max_size=40)
answer = st.tuples(st.just("gpt"), text)
plain_question = st.tuples(st.just("human"), text)
picture_question = st.tuples(
    st.just("human"), st.builds(lambda a, b, c: f"{a}{c}<image>{c}{b}", text, text, st.sampled_from(["", "\n", " "]))
)
exchange = st.builds(
    lambda first, rest, end: [first, *rest, *end],
    st.one_of(plain_question, picture_question),
    st.lists(plain_question, max_size=1),
    st.lists(answer, min_size=1, max_size=2),
)
conversations = st.builds(
    lambda lead, parts, tail: [Turn(*t) for t in [*lead, *(t for part in parts for t in part), *tail]],
    st.lists(answer, max_size=1),
    st.lists(exchange, min_size=1, max_size=4),
    st.lists(plain_question, max_size=1),
)


def xtuner_encoding(turns, tokenizer, name, max_length):
    from xtuner.dataset.map_fns import llava_map_fn, template_map_fn
    from xtuner.dataset.utils import encode_fn
    from xtuner.utils import PROMPT_TEMPLATE

    example = {"conversations": [{"from": turn.role, "value": turn.text} for turn in turns]}
    example = template_map_fn(llava_map_fn(copy.deepcopy(example)), PROMPT_TEMPLATE[name])
    return encode_fn(example, tokenizer, max_length, with_image_token=True)


@pairs
@given(turns=conversations)
@settings(max_examples=60)
def test_equals_xtuner(tokenizers, name, kind, turns):
    expected = xtuner_encoding(turns, tokenizers[kind], name, 10**6)
    out = encode_conversation(turns, tokenizers[kind], Template.build(name))
    assert out.input_ids == expected["input_ids"]
    assert out.labels == expected["labels"]
    assert not out.truncated


@pairs
@given(turns=conversations, max_length=st.integers(5, 200))
@settings(max_examples=60)
def test_truncation_keeps_pictures_and_a_label(tokenizers, name, kind, turns, max_length):
    full = encode_conversation(turns, tokenizers[kind], Template.build(name))
    cut = encode_conversation(turns, tokenizers[kind], Template.build(name), max_length)
    pictures = full.input_ids.count(IMAGE_TOKEN_INDEX)
    assert len(cut.input_ids) == len(cut.labels) <= max_length
    assert cut.input_ids.count(IMAGE_TOKEN_INDEX) == pictures
    assert any(label != IGNORE_INDEX for label in cut.labels)
    assert all(label in (IGNORE_INDEX, token) for label, token in zip(cut.labels, cut.input_ids, strict=True))
    expected = xtuner_encoding(turns, tokenizers[kind], name, max_length)
    kept = expected["input_ids"].count(IMAGE_TOKEN_INDEX) == pictures
    if kept and any(label != IGNORE_INDEX for label in expected["labels"]):
        assert cut.input_ids == expected["input_ids"] and cut.labels == expected["labels"]
    assert cut.truncated == (len(full.input_ids) > max_length)


@pairs
@given(turns=conversations)
@settings(max_examples=40)
def test_prompt_is_the_training_prefix(tokenizers, name, kind, turns):
    tokenizer, template = tokenizers[kind], Template.build(name)
    history = [*turns, Turn("human", "And <image> now?")]
    prompt = encode_prompt(history, tokenizer, template)
    out = encode_conversation([*history, Turn("gpt", "Seven.")], tokenizer, template)
    assert out.input_ids[: len(prompt)] == prompt
    assert out.labels[len(prompt)] != IGNORE_INDEX and out.labels[len(prompt) - 1] == IGNORE_INDEX


def test_loss_is_on_answers_and_their_end_alone(tokenizers):
    for name, kind, end in [("vicuna", "words", "</s>"), ("llama3_chat", "bytes", "<|eot_id|>")]:
        tokenizer = tokenizers[kind]
        out = encode_conversation(
            [Turn("human", "<image>\nHow many?"), Turn("gpt", "Three digits.")], tokenizer, Template.build(name)
        )
        supervised = [label for label in out.labels if label != IGNORE_INDEX]
        assert tokenizer.decode(supervised).replace(" ", "") == f"Threedigits.{end}"
        assert out.input_ids[0] == tokenizer.bos_token_id


def test_several_pictures_in_one_question_stay_in_place(tokenizer):
    turns = [Turn("human", "First <image> second <image>\nWhich?"), Turn("gpt", "None.")]
    out = encode_conversation(turns, tokenizer, Template.build("vicuna"))
    pieces, current = [], []
    for token in [*out.input_ids, IMAGE_TOKEN_INDEX]:
        if token == IMAGE_TOKEN_INDEX:
            pieces.append(current)
            current = []
        else:
            current.append(token)
    expected = [
        tokenizer.encode(p, add_special_tokens=False) for p in ("USER: First ", " second ", "\nWhich? ASSISTANT:")
    ]
    assert pieces[0][1:] == expected[0] and pieces[1] == expected[1]
    assert pieces[2][: len(expected[2])] == expected[2]
    assert place_placeholder("a <image> b") == "<image>\na  b"
    assert place_placeholder("<image>") == "<image>"
    assert place_placeholder(" a ") == " a "


def test_many_pictures_survive_a_tight_limit(tokenizer):
    turns = [Turn("human", "word " * 50 + "<image> and <image>"), Turn("gpt", "long answer " * 50)]
    turns += [
        Turn("human", "text " * 50),
        Turn("gpt", "more " * 50),
        Turn("human", "<image>" + "x " * 50),
        Turn("gpt", ""),
    ]
    for limit in range(4, 400, 7):
        out = encode_conversation(turns, tokenizer, Template.build("vicuna"), limit)
        assert len(out.input_ids) <= limit and out.input_ids.count(IMAGE_TOKEN_INDEX) == 3
        assert any(label != IGNORE_INDEX for label in out.labels)
    with pytest.raises(NoLabelError, match=r"3 pictures .* max_length 3"):
        encode_conversation(turns, tokenizer, Template.build("vicuna"), 3)


def test_long_question_keeps_the_header_of_the_answer(tokenizer):
    turns = [Turn("human", "<image>\n" + "number " * 300), Turn("gpt", "Seven.")]
    out = encode_conversation(turns, tokenizer, Template.build("vicuna"), 60)
    assert out.truncated and "ASSISTANT:" in tokenizer.decode([i for i in out.input_ids if i >= 0])
    assert "Seven." in tokenizer.decode([label for label in out.labels if label >= 0])


def test_no_answer_is_an_error(tokenizer):
    for turns in ([], [Turn("gpt", "a")], [Turn("human", "a")], [Turn("gpt", "a"), Turn("human", "b")]):
        with pytest.raises(NoLabelError):
            encode_conversation(turns, tokenizer, Template.build("vicuna"))
    with pytest.raises(ValueError, match="ends with a human turn"):
        encode_prompt([Turn("gpt", "a")], tokenizer, Template.build("vicuna"))


def test_system_text_stands_before_the_first_question(tokenizers):
    tokenizer, template = tokenizers["no_bos"], Template.build("qwen_chat")
    ids = encode_prompt([Turn("human", "Hi <image>")], tokenizer, template, system="Be brief.")
    assert ids == [
        *tokenizer.encode("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n", add_special_tokens=False),
        IMAGE_TOKEN_INDEX,
        *tokenizer.encode("\nHi<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False),
    ]


def test_tokens_that_are_added_later_count_in_the_template_too(tokenizers):
    tokenizer, template, turns = copy.deepcopy(tokenizers["words"]), Template.build("vicuna"), [Turn("human", "Hi")]
    before = encode_prompt(turns, tokenizer, template)
    tokenizer.add_tokens(["ASSISTANT:"])
    after = encode_prompt(turns, tokenizer, template)
    assert tokenizer.convert_tokens_to_ids("ASSISTANT:") in after and after != before
    assert encode_prompt(turns, tokenizers["words"], template) == before


def test_no_sample_asks_for_the_whole_vocabulary(tokenizers, monkeypatch):
    """``len`` of a tokenizer goes through all of its tokens: a tenth of a second at 128,000."""
    tokenizer, template = copy.deepcopy(tokenizers["words"]), Template.build("vicuna")

    def refuse(*_):
        raise AssertionError("the vocabulary was gone through")

    for name in ("__len__", "get_vocab", "get_added_vocab"):
        monkeypatch.setattr(type(tokenizer), name, refuse)
    turns = [Turn("human", "<image>\nHi"), Turn("gpt", "hello"), Turn("human", "and?")]
    assert encode_prompt(turns, tokenizer, template)
    assert encode_conversation(turns[:2], tokenizer, template, 100).input_ids


def test_special_ids_equal_xtuner(tokenizers):
    from xtuner.dataset.utils import get_bos_eos_token_ids

    for tokenizer in tokenizers.values():
        assert special_ids(tokenizer) == get_bos_eos_token_ids(tokenizer)


def test_templates(tokenizer):
    assert Template.build("phi3_chat_published").instruction.startswith("<|user|>{input}")
    assert Template.build("llama3_chat").stop_words == ("<|eot_id|>",)
    assert Template.build({"INSTRUCTION": "Q: {input} A:"}) == Template("Q: {input} A:")
    assert Template.build("vicuna") is not None
    turns = [Turn("human", "How many?")]
    assert encode_prompt(turns, tokenizer, "vicuna") == encode_prompt(turns, tokenizer, Template.build("vicuna"))
    with pytest.raises(ValueError, match=r"'vicunna' is unknown; known: .*vicuna"):
        Template.build("vicunna")
    with pytest.raises(ValueError, match="INSTRUCTION"):
        Template.build({"SEP": "x"})


def test_build_tokenizer(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path / "llm")
    assert build_tokenizer(tokenizer) is tokenizer
    folder = str(tmp_path / "llm")
    for kind in ("transformers.AutoTokenizer.from_pretrained", "transformers.AutoTokenizer"):
        built = build_tokenizer(dict(type=kind, pretrained_model_name_or_path=folder, padding_side="right"))
        assert built.encode("USER: 7") == tokenizer.encode("USER: 7")
    assert build_tokenizer(folder).eos_token_id == tokenizer.eos_token_id


def test_sentencepiece_model_alone_is_a_tokenizer(tmp_path):
    """Vicuna's folder: no tokenizer.json, only what was trained with SentencePiece."""
    import sentencepiece

    (tmp_path / "corpus.txt").write_text("USER: how many digits are there? ASSISTANT: two\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}'
    )
    tokenizer = build_tokenizer(str(tmp_path))
    encoded = encode_conversation([Turn("human", "<image>\nhow?"), Turn("gpt", "two")], tokenizer, "vicuna")
    newline = tokenizer.convert_tokens_to_ids("<0x0A>")
    at = encoded.input_ids.index(IMAGE_TOKEN_INDEX)
    assert encoded.input_ids[0] == tokenizer.bos_token_id
    # each half is tokenized alone, so that the second one starts with SentencePiece's mark of a word
    assert tokenizer.convert_ids_to_tokens(encoded.input_ids[at + 1]) == "▁"
    assert encoded.input_ids[at + 2] == newline
    assert tokenizer.eos_token_id in encoded.labels


def test_folder_without_tokenizer_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(TokenizerError, match=r"holds no tokenizer: found config\.json; one of tokenizer\.json"):
        build_tokenizer(str(tmp_path))
    with pytest.raises(TokenizerError, match="does not exist"):
        build_tokenizer(dict(type="transformers.AutoTokenizer", pretrained_model_name_or_path=str(tmp_path / "no")))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError, match=str(tmp_path)):
        build_tokenizer(str(tmp_path))
    with pytest.raises(TypeError, match="tokenizer is a int"):
        build_tokenizer(7)
