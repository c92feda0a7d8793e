"""Object images and named boxes through the Hugging Face processor and model: as in training."""

import pytest
import torch
from transformers import AutoTokenizer

from mg_llava.batch import canvas_flags
from mg_llava.data.collate import collate
from mg_llava.data.pictures.processor import PictureProcessor
from mg_llava.hf.image_processing import MGLLaVAImageProcessor
from mg_llava.hf.processing import MGLLaVAProcessor
from tests import toy
from tests.regions import BOXES, OBJECTS, TURNS, USES, train, write_pictures

ROLES = {"human": "user", "gpt": "assistant"}


@pytest.mark.parametrize("regions", USES, ids=str)
def test_a_row_is_what_was_trained(toy_paths, tmp_path, regions) -> None:
    pictures = write_pictures(tmp_path)
    trained = collate([train(toy_paths, pictures, **regions)])["data"]
    settings = PictureProcessor(toy.CANVAS, regions=regions).to_dict()
    tokenizer = AutoTokenizer.from_pretrained(toy_paths["llm"])
    made = MGLLaVAProcessor(MGLLaVAImageProcessor(**settings), tokenizer, template="vicuna")
    made.save_pretrained(tmp_path / "processor")
    stored = MGLLaVAImageProcessor.from_pretrained(tmp_path / "processor")
    processor = MGLLaVAProcessor(stored, tokenizer, template="vicuna")
    talk = [{"role": ROLES[role], "content": text} for role, text in TURNS]
    boxes = [{"boxes": own, "labels": ["x", "y"]} for own in BOXES]
    batch = processor(conversation=talk, images=pictures, boxes=boxes, objects=OBJECTS, return_labels=True)
    assert torch.equal(batch["input_ids"], trained["input_ids"]) and torch.equal(batch["labels"], trained["labels"])
    assert torch.equal(batch["pixel_values"], trained["canvas"])
    assert all(torch.equal(a, b) for a, b in zip(batch["boxes"], trained["boxes"], strict=True))
    flags = canvas_flags(batch["input_ids"].tolist())
    assert flags == {name: trained[name] for name in ("crops", "named") if name in trained}
    asked = processor(conversation=talk[:-1], images=pictures, boxes=boxes, objects=OBJECTS)
    assert torch.equal(asked["input_ids"][0], trained["input_ids"][0, : asked["input_ids"].shape[1]])
    rows = processor(
        conversation=[talk[:-1], [{"role": "user", "content": "what is there?"}]],
        images=[pictures, None],
        boxes=[boxes, None],
        objects=[OBJECTS, None],
    )
    assert torch.equal(rows["pixel_values"], asked["pixel_values"])
    with pytest.raises(ValueError, match=r"row 0: <box:2> stands in the text"):
        processor(conversation=talk[:-1], images=pictures, boxes=boxes, objects=OBJECTS[:1])
