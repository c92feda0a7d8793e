"""Object images and named boxes through the Hugging Face processor and model: as in training."""

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from mg_llava.batch import canvas_flags
from mg_llava.data.collate import collate
from mg_llava.data.pictures.processor import PictureProcessor
from mg_llava.hf.image_processing import MGLLaVAImageProcessor
from mg_llava.hf.processing import MGLLaVAProcessor
from mg_llava.inference import Predictor, Request
from tests import toy
from tests.hf import conftest
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
    told = [{"from": role, "value": text} for role, text in TURNS[:-1]]
    asked = processor(conversation=told, images=pictures, boxes=boxes, objects=OBJECTS)
    assert torch.equal(asked["input_ids"][0], trained["input_ids"][0, : asked["input_ids"].shape[1]])
    rows = processor(
        conversation=[told, [{"role": "user", "content": "what is there?"}]],
        images=[pictures, None],
        boxes=[boxes, None],
        objects=[OBJECTS, None],
    )
    assert torch.equal(rows["pixel_values"], asked["pixel_values"])
    with pytest.raises(ValueError, match=r"row 0: <box:2> stands in the text"):
        processor(conversation=told, images=pictures, boxes=boxes, objects=OBJECTS[:1])
    with pytest.raises(ValueError, match=r"row 0: box \[500.0, .*is in pixels, the picture is 64 x 48.*thousandths"):
        processor(conversation=told, images=pictures, boxes=boxes, objects=[[500, 100, 900, 700]] * 3)


@pytest.mark.parametrize("names", ["", "obj{}"])
def test_a_folder_answers_as_the_predictor_does(toy_paths, tmp_path, monkeypatch, names) -> None:
    pictures, use = write_pictures(tmp_path), {"names": names, "attach": "coordinates"}
    monkeypatch.setitem(conftest.PROCESSOR, "regions", use)
    folder = tmp_path / "model"
    model = conftest.write_folder(folder, toy_paths, object_pooler={"type": "mg_llava.FramePooling", "side": 2})
    boxes = [{"boxes": own, "labels": ["x", "y"]} for own in BOXES]
    question = [{"from": role, "value": text} for role, text in TURNS[:-1]]
    loaded, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    inputs = processor(conversation=question, images=pictures, boxes=boxes, objects=OBJECTS)
    assert len(inputs["pixel_values"]) == 7
    new = loaded.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    made = PictureProcessor(toy.CANVAS, regions=use)
    predictor = Predictor(model, toy_paths["llm"], "vicuna", made, max_new_tokens=6)
    for one in (predictor, Predictor.from_pretrained(folder, max_new_tokens=6)):
        answer = one.predict_many([Request(TURNS[:-1], pictures, boxes, objects=OBJECTS)])[0]
        assert answer.token_ids == tuple(new.tolist()[: len(answer.token_ids)]) and answer.token_ids


@pytest.mark.parametrize("answer", ["<object:0> [0.1, 0.2, 0.6, 0.7]", "<box:0> and <box:9>", "<image> <video>"])
@pytest.mark.parametrize("video", [False, True])
def test_placeholders_in_what_the_model_said_are_words(toy_paths, tmp_path, answer, video) -> None:
    pictures = write_pictures(tmp_path)
    settings = PictureProcessor(toy.CANVAS, regions={"attach": "coordinates"}).to_dict()
    tokenizer = AutoTokenizer.from_pretrained(toy_paths["llm"])
    processor = MGLLaVAProcessor(MGLLaVAImageProcessor(**settings), tokenizer, template="vicuna")
    question = "<video>\nwhat?" if video else "<image> <image>\nwhat is <object:0>?"
    last = "and now?" if video else "and at <box:1>, [0.1, 0.2, 0.6, 0.7]?"
    talk = [("user", question), ("assistant", answer), ("user", last)]
    messages = [{"role": role, "content": text} for role, text in talk]
    told = processor(conversation=messages, images=pictures, boxes=BOXES, objects=None if video else OBJECTS)
    text = processor.apply_chat_template(messages)
    assert answer in text
    written = processor(text, images=pictures, boxes=BOXES, objects=None if video else OBJECTS)
    assert torch.equal(told["input_ids"], written["input_ids"])
    assert torch.equal(told["pixel_values"], written["pixel_values"])
    said = tokenizer.encode(answer, add_special_tokens=False)
    assert str(said)[1:-1] in str(told["input_ids"][0].tolist())
    assert int((told["input_ids"] < 0).sum()) == (2 if video else 5)
    with pytest.raises(ValueError, match="regions of a video" if video else "<object:9> stands in the text"):
        wrong = [*messages[:2], {"role": "user", "content": "<object:9>"}]
        processor(conversation=wrong, images=pictures, boxes=BOXES, objects=None if video else OBJECTS)
