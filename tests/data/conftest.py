"""Tokenizers trained on the spot, and files for the data tests."""

import json

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "USER: What is the number at the left of the picture? ASSISTANT: Seven.",
    "How many digits are there? Three digits, two of them at the top.",
    "Describe the image briefly. A chalkboard with the digits four and nine, user and assistant talk.",
] * 4
SPECIAL = [
    "<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|start_header_id|>",
    "<|end_header_id|>", "<|user|>", "<|assistant|>", "<|end|>", "<|system|>",
]  # fmt: skip


class Qwen2TokenizerFast(PreTrainedTokenizerFast):
    """A tokenizer without BOS, known by the name of its class."""


def train_tokenizer(kind):
    """``bytes``: as in Llama 3; ``words``: word-start marks as in SentencePiece; ``no_bos``: as in Qwen."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    alphabet = []
    if kind == "words":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        tokenizer.decoder = decoders.Metaspace()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*CORPUS, "\n\t0123456789.,:;!?"], trainer)
    names = dict(unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    if kind == "no_bos":
        return Qwen2TokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<|im_end|>")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


@pytest.fixture(scope="session")
def tokenizers():
    return {kind: train_tokenizer(kind) for kind in ("bytes", "words", "no_bos")}


@pytest.fixture(scope="session")
def tokenizer(tokenizers):
    return tokenizers["words"]


def turns_of(*texts):
    """Raw turns, human and gpt in alternation."""
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


@pytest.fixture
def files(tmp_path):
    """A folder with pictures, records of every kind and boxes: data.json, boxes.json, images/."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for name, shape in {"a.png": (30, 40), "b.png": (40, 30), "c.jpg": (25, 25)}.items():
        Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(tmp_path / "images" / name)
    records = [
        {"id": "text", "conversations": turns_of("How many digits?", "Three digits.")},
        {"id": 1, "image": "a.png", "conversations": turns_of("<image>\nDescribe the image briefly.", "A picture.")},
        {"id": "two", "image": ["b.png", "c.jpg"], "conversations": turns_of("<image> or <image>?", "Two.")},
        {
            "id": "3",
            "image": "c.jpg",
            "model": "",
            "conversations": turns_of("What?\n<image>", "Seven.", "And?", "No."),
        },
    ]
    boxes = [
        {"id": 1, "boxes": [[1, 1, 20, 20], [5, 5, 39, 29]], "scores": [0.3, 0.9], "labels": ["x", "y"]},
        {"id": "two#0", "boxes": [[0, 0, 9, 9]], "scores": [0.5], "labels": ["x"]},
        {"id": "two#1", "boxes": [], "scores": [], "labels": []},
        {"id": "3", "boxes": [[2, 2, 8, 8]], "scores": [0.5], "labels": ["x"]},
    ]
    (tmp_path / "data.json").write_text(json.dumps(records))
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    return tmp_path
