"""For every prompt template of a shipped config: exactly which tokens there are, and which of them carry loss.

The tokenizers split words as those of the LLMs do, so that token strings can be written by hand: ``pieces`` as
SentencePiece (Vicuna, Phi-3), which puts a mark before the first word of everything that is tokenized by itself;
``bytes`` as byte-level BPE (Llama 3, Yi), which does not.
"""

import runpy
from pathlib import Path

import pytest
from mmengine.config import Config
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mg_llava.data.records.schema import Turn
from mg_llava.data.text.conversation import encode_conversation
from mg_llava.tokens import IGNORE_INDEX, IMAGE_TOKEN_INDEX

ROOT = Path(__file__).parents[3]
TURNS = [
    Turn("human", "<image>\nHow many?"),
    Turn("gpt", "Three digits."),
    Turn("human", "Sure?"),
    Turn("gpt", "Yes."),
]
PICTURE = "<image>"

# Each line: whether it carries loss, and its tokens.
NO, LOSS = False, True
EXPECTED = {
    "vicuna": (
        "pieces",
        "<s>",
        "</s>",
        [
            (NO, ["<s>", "▁USER:", "▁", PICTURE, "▁", "\n", "How", "▁many?", "▁ASSISTANT:"]),
            (LOSS, ["▁Three", "▁digits.", "</s>"]),
            (NO, ["▁", "\n"]),
            (NO, ["<s>", "▁USER:", "▁Sure?", "▁ASSISTANT:"]),
            (LOSS, ["▁Yes.", "</s>"]),
            (NO, ["▁", "\n"]),
        ],
    ),
    "phi3_chat_published": (
        "pieces",
        "<s>",
        "<|endoftext|>",
        [
            (NO, ["<s>", "<|user|>", PICTURE, "▁", "\n", "How", "▁many?", "<|end|>", "▁", "\n"]),
            (NO, ["<|assistant|>", "▁", "\n"]),
            (LOSS, ["▁Three", "▁digits.", "<|end|>"]),
            (NO, ["▁", "\n"]),
            (NO, ["<|user|>", "▁Sure?", "<|end|>", "▁", "\n", "<|assistant|>", "▁", "\n"]),
            (LOSS, ["▁Yes.", "<|end|>"]),
            (NO, ["▁", "\n"]),
        ],
    ),
    "llama3_chat": (
        "bytes",
        "<|begin_of_text|>",
        "<|end_of_text|>",
        [
            (NO, ["<|begin_of_text|>", "<|start_header_id|>", "user", "<|end_header_id|>", "\n\n", PICTURE]),
            (NO, ["\n", "How", " many?", "<|eot_id|>"]),
            (NO, ["<|start_header_id|>", "assistant", "<|end_header_id|>", "\n\n"]),
            (LOSS, ["Three", " digits.", "<|eot_id|>"]),
            (NO, ["<|start_header_id|>", "user", "<|end_header_id|>", "\n\n", "Sure?", "<|eot_id|>"]),
            (NO, ["<|start_header_id|>", "assistant", "<|end_header_id|>", "\n\n"]),
            (LOSS, ["Yes.", "<|eot_id|>"]),
        ],
    ),
    "qwen_chat": (
        "bytes",
        "<|startoftext|>",
        "<|im_end|>",
        [
            (
                NO,
                ["<|startoftext|>", "<|im_start|>", "user", "\n", PICTURE, "\n", "How", " many?", "<|im_end|>", "\n"],
            ),
            (NO, ["<|im_start|>", "assistant", "\n"]),
            (LOSS, ["Three", " digits.", "<|im_end|>"]),
            (NO, ["\n"]),
            (NO, ["<|im_start|>", "user", "\n", "Sure?", "<|im_end|>", "\n", "<|im_start|>", "assistant", "\n"]),
            (LOSS, ["Yes.", "<|im_end|>"]),
            (NO, ["\n"]),
        ],
    ),
    # InternLM2.5's SentencePiece puts no mark before the first word
    "internlm2_chat": (
        "bytes",
        "<s>",
        "</s>",
        [
            (NO, ["<s>", "<|im_start|>", "user", "\n", PICTURE, "\n", "How", " many?", "<|im_end|>", "\n"]),
            (NO, ["<|im_start|>", "assistant", "\n"]),
            (LOSS, ["Three", " digits.", "<|im_end|>"]),
            (NO, ["\n"]),
            (NO, ["<|im_start|>", "user", "\n", "Sure?", "<|im_end|>", "\n", "<|im_start|>", "assistant", "\n"]),
            (LOSS, ["Yes.", "<|im_end|>"]),
            (NO, ["\n"]),
        ],
    ),
}


def make_tokenizer(kind: str, bos: str, eos: str, tokens: list[str]) -> PreTrainedTokenizerFast:
    """Knows exactly the given tokens; those in angle brackets are special."""
    words = dict.fromkeys(["<unk>", *tokens])
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    if kind == "pieces":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("\n|▁?[^▁\n]+|▁"), "isolated")
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n+| ?[^\s]+"), "isolated")
    tokenizer.add_special_tokens([word for word in words if word.startswith("<")])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token=bos, eos_token=eos)


@pytest.mark.parametrize("template", EXPECTED)
def test_tokens_with_and_without_loss(template: str) -> None:
    kind, bos, eos, lines = EXPECTED[template]
    tokens = [(token, loss) for loss, line in lines for token in line]
    tokenizer = make_tokenizer(kind, bos, eos, [bos, eos, *(token for token, _ in tokens if token != PICTURE)])
    encoded = encode_conversation(TURNS, tokenizer, template)
    found = [
        (PICTURE if number == IMAGE_TOKEN_INDEX else tokenizer.convert_ids_to_tokens(number), label != IGNORE_INDEX)
        for number, label in zip(encoded.input_ids, encoded.labels, strict=True)
    ]
    assert found == tokens
    assert all(
        label in (IGNORE_INDEX, number) for number, label in zip(encoded.input_ids, encoded.labels, strict=True)
    )


def test_every_template_of_a_shipped_config_is_written_out() -> None:
    rows = runpy.run_path(str(ROOT / "configs" / "_base_" / "llms.py"))
    used = {row["prompt_template"] for row in rows.values() if isinstance(row, dict) and "prompt_template" in row}
    leaves = [file for file in (ROOT / "configs").rglob("*.py") if "_base_" not in file.parts]
    used |= {Config.fromfile(file).prompt_template for file in leaves}
    assert used == set(EXPECTED)
