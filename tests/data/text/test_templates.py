"""For every LLM of a config: what is trained on and what is asked with are the same tokens, begun and ended alike.

Tokenizers are trained on the spot in the form of each family: SentencePiece's own (Llama 2, InternLM2, Yi), BPE with
byte fallback and stripping special tokens (Phi-3), byte-level BPE (Llama 3, Qwen2.5). SmolLM2's is its real one.
"""

import io
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaTokenizer, PreTrainedTokenizerFast, Qwen2TokenizerFast

from mg_llava.data.records.schema import Turn
from mg_llava.data.text.conversation import Template, encode_conversation, encode_prompt
from mg_llava.data.text.stopping import Stops
from mg_llava.tokens import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from tests.smollm2 import find_smollm2

ROOT = Path(__file__).parents[3]
ROWS = {
    name: row
    for name, row in runpy.run_path(str(ROOT / "configs" / "_base_" / "llms.py")).items()
    if isinstance(row, dict) and "prompt_template" in row
}
CORPUS = [
    "USER: What is the number at the left of the picture? ASSISTANT: Seven.",
    "user asks the system how many digits there are, the assistant says three digits, two of them at the top.",
    "Describe the image briefly, be brief. A chalkboard with the digits four and nine and some more words.",
] * 8
CHATML = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
LLAMA3 = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


def sentence_piece(folder: Path, bos: str, eos: str, added: list[str], dummy_prefix: bool = True) -> Any:
    """A SentencePiece BPE model with byte fallback, read by transformers' Llama tokenizer."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        add_dummy_prefix=dummy_prefix,
        bos_piece=bos,
        eos_piece=eos,
        minloglevel=2,
    )
    file = folder / f"{abs(hash((bos, eos, dummy_prefix)))}.model"
    file.write_bytes(model.getvalue())
    tokenizer = LlamaTokenizer(str(file), bos_token=bos, eos_token=eos, legacy=True)
    tokenizer.add_special_tokens({"additional_special_tokens": added})
    return tokenizer


def phi3() -> Any:
    """As the hub's: Llama's BPE, and special tokens that swallow the white space after them."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="<|endoftext|>"
    )
    marks = [AddedToken(f"<|{name}|>", rstrip=True) for name in ("system", "user", "assistant", "end")]
    fast.add_special_tokens({"additional_special_tokens": marks})
    return fast


def byte_level(special: list[str], kind: type = PreTrainedTokenizerFast, **roles: str) -> Any:
    """Byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return kind(tokenizer_object=tokenizer, **roles)


def smollm2() -> Any:
    """The real one."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(find_smollm2())


def qwen() -> Any:
    return byte_level(CHATML, Qwen2TokenizerFast, eos_token="<|im_end|>", pad_token="<|endoftext|>")


FAMILIES: dict[str, Callable[[Path], Any]] = {
    "phi3_mini": lambda folder: phi3(),
    "vicuna_7b": lambda folder: sentence_piece(folder, "<s>", "</s>", []),
    "vicuna_13b": lambda folder: sentence_piece(folder, "<s>", "</s>", []),
    "llama3_8b": lambda folder: byte_level(LLAMA3, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>"),
    "yi_34b": lambda folder: sentence_piece(folder, "<|startoftext|>", "<|endoftext|>", CHATML[:2], False),
    "internlm2_5_7b": lambda folder: sentence_piece(folder, "<s>", "</s>", CHATML[:2], False),
    "smollm2_135m": lambda folder: smollm2(),
    "nano": lambda folder: nano(),
    **{f"qwen2_5_{size}": lambda folder: qwen() for size in ("0_5b", "1_5b", "3b", "7b")},
}


def nano() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ROOT / "data" / "nano" / "llm")


Made = tuple[Any, Template]
"""A tokenizer and the template of its LLM."""


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """Makes the tokenizer and the template of an LLM, once."""
    made: dict[str, Made] = {}

    def build(name: str) -> Made:
        if name not in made:
            template = Template.build(ROWS[name]["prompt_template"])
            made[name] = FAMILIES[name](tmp_path_factory.mktemp(name)), template
        return made[name]

    return build


TALK = [
    Turn("human", "<image>\nHow many digits are there?"),
    Turn("gpt", "Three digits, two of them at the top."),
    Turn("human", "What is the number at the left?"),
    Turn("gpt", "Seven."),
    Turn("human", "Sure? <image>"),
    Turn("gpt", "Yes."),
]
# What each LLM was tuned with, as its makers print it.
PRINTED = {
    "vicuna": "<s>USER: Describe the image. ASSISTANT:",
    "phi3_chat_published": "<s><|user|>Describe the image.<|end|>\n<|assistant|>\n",
    "llama3_chat": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nDescribe the image.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "qwen_chat": "<|im_start|>user\nDescribe the image.<|im_end|>\n<|im_start|>assistant\n",
    "internlm2_chat": "<s><|im_start|>user\nDescribe the image.<|im_end|>\n<|im_start|>assistant\n",
}
every_llm = pytest.mark.parametrize("name", ROWS)


def test_every_llm_has_a_tokenizer_here() -> None:
    assert set(FAMILIES) == set(ROWS)


@every_llm
@pytest.mark.parametrize("system", ["", "Be brief."])
def test_what_is_asked_is_what_was_trained(name: str, system: str, make: Callable[[str], Made]) -> None:
    tokenizer, template = make(name)
    whole = encode_conversation(TALK, tokenizer, template, system=system)
    for end in (1, 3, 5):  # each question, after the answers before it
        prompt = encode_prompt(TALK[:end], tokenizer, template, system)
        assert whole.input_ids[: len(prompt)] == prompt
        assert whole.labels[len(prompt) - 1] == IGNORE_INDEX
        assert whole.labels[len(prompt)] == whole.input_ids[len(prompt)]
    assert whole.input_ids.count(IMAGE_TOKEN_INDEX) == 2


@every_llm
def test_generation_ends_where_training_taught_it(name: str, make: Callable[[str], Made]) -> None:
    tokenizer, template = make(name)
    stops = Stops(tokenizer, template)
    whole = encode_conversation(TALK, tokenizer, template)
    answers: list[list[int]] = [[]]
    for label in whole.labels:
        answers[-1].append(label) if label != IGNORE_INDEX else answers.append([])
    answers = [answer for answer in answers if answer]
    assert len(answers) == 3
    for answer, turn in zip(answers, TALK[1::2], strict=True):
        assert answer[-1] in stops.ids
        assert not set(answer[:-1]) & set(stops.ids)
        assert tokenizer.decode(answer[:-1]).strip() == turn.text
    assert stops.words == []  # every stop word is one token


@every_llm
def test_each_conversation_begins_once(name: str, make: Callable[[str], Made]) -> None:
    tokenizer, template = make(name)
    ids = encode_conversation(TALK, tokenizer, template).input_ids
    opening = tokenizer.bos_token_id
    if opening is None:
        assert "qwen" in name
    elif template.instruction.startswith(tokenizer.bos_token):
        # BOS is the mark of each turn, of both sides
        assert ids[0] == opening and ids[1] != opening and ids.count(opening) == 6
    else:
        # each exchange that ended with EOS is begun anew; with a suffix for EOS only the first is
        assert ids[0] == opening and ids.count(opening) == (1 if template.suffix_as_eos else 3)


@every_llm
def test_prompt_reads_as_the_llms_makers_print_it(name: str, make: Callable[[str], Made]) -> None:
    tokenizer, template = make(name)
    printed = PRINTED[ROWS[name]["prompt_template"]]
    ids = encode_prompt([Turn("human", "Describe the image.")], tokenizer, template)
    if name == "yi_34b":
        printed = "<|startoftext|>" + printed
    # SentencePiece and special tokens that strip write white space their own way
    assert "".join(tokenizer.decode(ids).split()) == "".join(printed.split())
    if name in ("llama3_8b", "smollm2_135m") or name.startswith("qwen"):
        assert ids == tokenizer.encode(printed, add_special_tokens=False)


@pytest.mark.slow
def test_smollm2_reads_its_own_chat_template(make: Callable[[str], Made]) -> None:
    tokenizer, template = make("smollm2_135m")
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    talk = [Turn("human", "Hi there, 12 of you?"), Turn("gpt", "Yes, 12."), Turn("human", "And 7?")]
    roles = {"human": "user", "gpt": "assistant"}
    messages = [{"role": roles[turn.role], "content": turn.text} for turn in talk]
    own = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    assert encode_prompt(talk, tokenizer, template, system) == own
    assert tokenizer.decode(tokenizer.encode("a b  12\n")) == "a b  12\n"
    assert tokenizer.encode("x", add_special_tokens=True) == tokenizer.encode("x", add_special_tokens=False)
