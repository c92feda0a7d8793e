"""A conversation reaches the model as the same tensors in training and in a chat, for every template of a leaf."""

import json
import runpy
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from mg_llava.data.collate import collate
from mg_llava.data.dataset import LLaVADataset
from mg_llava.data.pictures.processor import PictureProcessor
from mg_llava.data.text.conversation import Template
from mg_llava.data.text.stopping import Stops
from mg_llava.inference import Request
from mg_llava.inference.batching import DecodedPictures, PictureGroup, PreparedRequest
from mg_llava.inference.frontend import FrontEnd
from tests import toy
from tests.settings import grouped

ROWS = runpy.run_path(str(Path(__file__).parents[2] / "configs" / "_base_" / "llms.py"))
TEMPLATES = sorted(
    {row["prompt_template"] for row in ROWS.values() if isinstance(row, dict) and "prompt_template" in row}
)
TURNS = [
    [("human", "<image>\nwhat is there?"), ("gpt", "two digits")],
    [
        ("human", "what is\n<image> there?"),
        ("gpt", " two digits\n"),
        ("human", "and  now?\n"),
        ("gpt", "a digit"),
        ("human", "héllo 数字?"),
        ("gpt", "is there"),
    ],
    [("human", "no picture"), ("gpt", "a"), ("human", "<image>\nand now?"), ("gpt", "b")],
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_chat_is_what_was_trained(toy_paths: dict[str, str], tmp_path: Path, template: str) -> None:
    data = toy.write_data(tmp_path, records=1)
    (boxes,) = json.loads((tmp_path / "boxes.json").read_text())
    turns = [[{"from": role, "value": text} for role, text in conversation] for conversation in TURNS]
    records = [{"id": "toy_0", "image": "0_0.png", "conversations": conversation} for conversation in turns]
    (tmp_path / "records.json").write_text(json.dumps(records))
    tokenizer = AutoTokenizer.from_pretrained(toy_paths["llm"])
    processor, written = PictureProcessor(toy.CANVAS), Template.build(template)
    settings = {**data, "tokenizer": tokenizer, "template": written, "picture_processor": processor}
    dataset = LLaVADataset(**grouped(**settings))
    front_end = FrontEnd(tokenizer, written, processor, Stops(tokenizer, written))
    picture = Path(data["image_folder"], "0_0.png").read_bytes()
    for number, conversation in enumerate(TURNS):
        trained = collate([dataset[number]])["data"]
        for end in range(1, len(conversation), 2):
            if not any("<image>" in text for _, text in conversation[:end]):
                continue
            request = PreparedRequest(front_end, 0, Request(conversation[:end], picture, boxes))
            decoded = PictureGroup([request]).load()
            assert isinstance(decoded, DecodedPictures)
            (seen,) = decoded.pictures
            assert request.ids == trained["input_ids"][0, : len(request.ids)].tolist()
            answered = (trained["labels"][0] >= 0).int().diff(prepend=torch.tensor([0]))
            starts = (answered == 1).nonzero()[:, 0].tolist()
            assert len(request.ids) in starts, "the answer begins where the prompt ends"
            assert torch.equal(trained["canvas"][0], seen.pixels) and torch.equal(trained["boxes"][0], seen.boxes)


def test_prompts_made_of_boxes_are_what_was_trained(toy_paths: dict[str, str], tmp_path: Path) -> None:
    data = toy.write_data(tmp_path, records=2)
    (boxes, *_) = json.loads((tmp_path / "boxes.json").read_text())
    parts = [{"type": "mg_llava.PerceptionPrompt", "threshold": 0.0}]
    settings = {**data, "tokenizer": toy_paths["llm"], "template": "vicuna"}
    processor = PictureProcessor(toy.CANVAS)
    dataset = LLaVADataset(**grouped(**settings, picture_processor=processor, prompt=parts))
    record, trained = dataset.record(0), dataset[0]["input_ids"]
    front_end = FrontEnd.build(toy_paths["llm"], "vicuna", processor, None, None, "", parts=parts)
    question = [(turn.role, turn.text) for turn in record.turns[:1]]
    pictures = [Path(data["image_folder"], name).read_bytes() for name in record.images]
    request = PreparedRequest(front_end, 0, Request(question, pictures, boxes))
    assert isinstance(PictureGroup([request]).load(), DecodedPictures)
    assert request.ids == trained[: len(request.ids)]
    assert "Detected objects" in front_end.tokenizer.decode([token for token in request.ids if token >= 0])


def test_every_template_is_looked_at() -> None:
    assert {"vicuna", "llama3_chat", "phi3_chat_published", "qwen_chat", "internlm2_chat"} <= set(TEMPLATES)
