"""The processor: the ids, pixels and boxes of training, in transformers' manner."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoProcessor, AutoTokenizer, BatchFeature, pipeline

from mg_llava.data.pictures.files import PictureError
from mg_llava.data.pictures.processor import PictureProcessor
from mg_llava.data.records.schema import Turn, make_box_record
from mg_llava.data.text.conversation import Template, encode_conversation, encode_prompt
from mg_llava.data.text.prompt import build_parts
from mg_llava.hf import MGLLaVAImageProcessor, MGLLaVAProcessor
from mg_llava.hf.export import folder_files
from mg_llava.hf.prompts import chat_template, encode_written_prompt, template_of, template_to_dict, to_turns
from mg_llava.inference import Predictor
from tests import toy
from tests.hf.conftest import BOXES, PERCEPTION, Exported, make_picture, training_config, write_weights

TEMPLATES = ["vicuna", "llama3_chat", "phi3_chat", "phi3_chat_published", "qwen_chat", "internlm2_chat", "default"]
WORDS = st.text("abc <>|\n:{}é", max_size=12).filter(lambda text: "<image>" not in text)


@pytest.fixture(scope="module")
def tokenizer(toy_paths: dict[str, str]) -> Any:
    return AutoTokenizer.from_pretrained(toy_paths["llm"])


@pytest.fixture(scope="module")
def processor(exported: Exported) -> MGLLaVAProcessor:
    return AutoProcessor.from_pretrained(exported.folder)


def as_messages(turns: Sequence[Turn], system: str = "") -> list[dict[str, Any]]:
    roles = {"human": "user", "gpt": "assistant"}
    messages = [{"role": roles[turn.role], "content": turn.text} for turn in turns]
    return [*([{"role": "system", "content": system}] if system else []), *messages]


def written(messages: Any, template: Template, tokenizer: Any) -> str:
    return tokenizer.apply_chat_template(messages, chat_template=chat_template(template, tokenizer), tokenize=False)


# -- parts of prompts -------------------------------------------------------------------------------------------------


def test_parts_of_prompts_come_with_the_folder(exported: Exported, tmp_path: Path) -> None:
    """The prompt of the training's front end, from conversations and from texts that are written out."""
    folder = tmp_path / "hf"
    config = {**training_config(exported.paths), "prompt_parts": [PERCEPTION]}
    folder_files(config, folder, dtype="float32")
    write_weights(exported.model, folder)
    processor = AutoProcessor.from_pretrained(folder)
    asked = Predictor.from_pretrained(folder, max_new_tokens=4)
    assert (
        asked.front_end.parts == build_parts([PERCEPTION]) and not AutoProcessor.from_pretrained(exported.folder).parts
    )
    given = {"boxes": BOXES, "scores": [0.5, 0.9], "labels": ["dog", "cat"]}
    turns, record = [Turn("human", "<image>\nwhat?")], make_box_record(*given.values())
    wanted = asked.front_end.encode(turns, None, [record], [(64, 48)])
    assert "Detected objects: dog [" in processor.decode(wanted) and "; cat [" in processor.decode(wanted)
    messages = as_messages(turns)
    for own in ({"conversation": messages}, {"text": processor.apply_chat_template(messages)}):
        assert processor(**own, images=make_picture(), boxes=given)["input_ids"].tolist() == [wanted]
        bare = processor(**own, images=make_picture())["input_ids"][0]
        assert "<image>\nDetected objects: none.\nwhat?" in processor.decode(bare)
    assert "Detected" not in processor.decode(
        processor(conversation=[{"role": "user", "content": "hi"}])["input_ids"][0]
    )
    labels = processor(
        conversation=[*messages, {"role": "assistant", "content": "a dog"}],
        images=make_picture(),
        boxes=given,
        return_labels=True,
    )
    assert labels["input_ids"][0, : len(wanted)].tolist() == wanted
    processor.save_pretrained(tmp_path / "again")
    assert AutoProcessor.from_pretrained(tmp_path / "again").parts == processor.parts
    assert "names and scores" in (folder / "README.md").read_text()


def test_parts_that_no_folder_can_describe(exported: Exported, tmp_path: Path) -> None:
    config = {**training_config(exported.paths), "prompt_parts": [lambda turns, *_: turns]}
    with pytest.raises(ValueError, match="cannot be described in a folder; make it a dataclass"):
        folder_files(config, tmp_path)


# -- prompts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("system", ["", "Be brief."])
@pytest.mark.parametrize("rounds", [1, 2, 3])
@pytest.mark.parametrize("question", ["<image>\nwhat?", "is <image> it?", "<image> and <image>", " a digit "])
def test_written_prompt_has_the_ids_of_training(
    name: str, system: str, rounds: int, question: str, tokenizer: Any
) -> None:
    template = Template.build(name)
    turns = [Turn("human", question)]
    for number in range(1, rounds):
        turns += [Turn("gpt", f"{number} digits"), Turn("human", f"and {number}?")]
    text = written(as_messages(turns, system), template, tokenizer)
    wanted = encode_prompt(turns, tokenizer, template, system)
    assert encode_written_prompt(text, tokenizer, template) == wanted
    bos = tokenizer.bos_token
    assert text.startswith(bos)
    assert encode_written_prompt(text.removeprefix(bos), tokenizer, template) == wanted


@settings(max_examples=60)
@given(st.sampled_from(TEMPLATES), WORDS, WORDS, WORDS)
def test_any_words_have_the_ids_of_training(name: str, first: str, answer: str, second: str) -> None:
    template = Template.build(name)
    tokenizer = _TOKENIZER[0]
    turns = [Turn("human", "<image>\n" + first), Turn("gpt", answer), Turn("human", second)]
    text = written(as_messages(turns), template, tokenizer)
    assert encode_written_prompt(text, tokenizer, template) == encode_prompt(turns, tokenizer, template)


_TOKENIZER: list[Any] = []


@pytest.fixture(autouse=True, scope="module")
def _share_tokenizer(tokenizer: Any) -> None:
    _TOKENIZER.append(tokenizer)


def test_sentencepiece_like_tokenizer(tmp_path: Path) -> None:
    """A tokenizer that puts a space before each piece: joined text would have other ids than training."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    inner.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=90, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    inner.train_from_iterator(["USER: what is there? ASSISTANT: a digit, two digits"] * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    template = Template.build("vicuna")
    turns = [Turn("human", "<image>\nwhat?"), Turn("gpt", "a digit"), Turn("human", "is it?")]
    text = written(as_messages(turns), template, tokenizer)
    wanted = encode_prompt(turns, tokenizer, template)
    assert encode_written_prompt(text, tokenizer, template) == wanted
    assert tokenizer.encode(text.split("<image>")[1], add_special_tokens=False) != wanted[wanted.index(-200) + 1 :]


def test_bos_that_the_template_writes_itself(toy_paths: dict[str, str]) -> None:
    """SmolLM2's BOS is ChatML's <|im_start|>: a written prompt has it once, as training has."""
    tokenizer = AutoTokenizer.from_pretrained(toy_paths["llm"], bos_token="<|im_start|>", eos_token="<|im_end|>")
    template = Template.build("qwen_chat")
    turns = [Turn("human", "<image>\nwhat?"), Turn("gpt", "a digit"), Turn("human", "is it?")]
    for system in ("", "Be brief."):
        text = written(as_messages(turns, system), template, tokenizer)
        assert "<|im_start|><|im_start|>" not in text and text.startswith("<|im_start|>")
        assert encode_written_prompt(text, tokenizer, template) == encode_prompt(turns, tokenizer, template, system)


def test_messages(processor: MGLLaVAProcessor) -> None:
    parts = [{"type": "image"}, {"type": "text", "text": "what?"}]
    ways = [
        [{"role": "user", "content": parts}],
        [{"role": "user", "content": "<image>\nwhat?"}],
        [{"from": "human", "value": "<image>\nwhat?"}],
        [Turn("human", "<image>\nwhat?")],
    ]
    assert {str(to_turns(way)) for way in ways} == {str(([Turn("human", "<image>\nwhat?")], ""))}
    picture = make_picture()
    rows = [processor(conversation=way, images=picture)["input_ids"].tolist() for way in ways]
    assert all(row == rows[0] for row in rows)
    text = processor.apply_chat_template(ways[0], add_generation_prompt=True)
    assert text == "<s>USER: <image>\nwhat? ASSISTANT:"
    assert processor(text, picture)["input_ids"].tolist() == rows[0]
    batch = processor.apply_chat_template(ways[0], tokenize=True, return_dict=True, images=picture)
    assert batch["input_ids"].tolist() == rows[0] and batch["pixel_values"].shape[0] == 1
    ids = processor.apply_chat_template(ways[0], tokenize=True, images=picture, add_generation_prompt=True)
    assert ids.tolist() == rows[0]


def test_arrays_are_given_as_pictures_boxes_and_regions(processor: MGLLaVAProcessor, tmp_path: Path) -> None:
    picture, other = make_picture(1), make_picture(2)
    picture.save(tmp_path / "a.png")
    talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is at <box:1>?"}]}]
    given = {"conversation": talk, "boxes": BOXES, "objects": BOXES[::-1]}
    wanted = processor(**given, images=picture)
    arrays = {"images": np.asarray(picture), "boxes": np.array(BOXES), "objects": np.array(BOXES[::-1])}
    filled = processor.apply_chat_template(talk, tokenize=True, return_dict=True, **arrays)
    rows = {"images": [arrays["images"]], "objects": np.array([BOXES[::-1]])}
    batch = processor.apply_chat_template([talk], tokenize=True, return_dict=True, **rows)
    for one in (processor(conversation=talk, **arrays), filled):
        assert torch.equal(one["input_ids"], wanted["input_ids"]) and torch.equal(one["boxes"][0], wanted["boxes"][0])
        assert torch.equal(one["pixel_values"], wanted["pixel_values"])
    assert all(torch.equal(batch[name], wanted[name]) for name in ("input_ids", "pixel_values"))
    inside = [{"role": "user", "content": [{"type": "image", "image": arrays["images"]}, *talk[0]["content"][1:]]}]
    found = processor.apply_chat_template(inside, tokenize=True, return_dict=True, images=[], objects=BOXES[::-1])
    assert torch.equal(found["pixel_values"], wanted["pixel_values"])
    rows = {"images": [picture, other], "boxes": np.array([BOXES, BOXES]), "objects": np.array([BOXES[::-1], BOXES])}
    two = processor(conversation=[talk, talk], **rows)
    (row,) = processor(conversation=[talk], images=[picture], boxes=[BOXES], objects=[BOXES[::-1]])["input_ids"]
    assert torch.equal(two["input_ids"][0][two["attention_mask"][0].bool()], row)
    assert not torch.equal(two["input_ids"][0], two["input_ids"][1])
    for path in (str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes(), np.asarray(picture)):
        seen = processor.image_processor(path, boxes=BOXES)
        assert torch.equal(seen["boxes"][0], processor.image_processor(picture, boxes=BOXES)["boxes"][0])


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (["what?"], "dict with role"),
        ([{"role": "robot", "content": "a"}], "robot"),
        ([{"role": "user", "content": 3}], "content is a int"),
        ([{"role": "user", "content": [{"type": "audio"}]}], "audio"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "last turn is a human one"),
        ([], "list of messages"),
    ],
)
def test_malformed_messages(processor: MGLLaVAProcessor, messages: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        processor(conversation=messages)


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_as_plain_values(name: str) -> None:
    assert template_of(template_to_dict(name)) == Template.build(name)


# -- batches ----------------------------------------------------------------------------------------------------------


def test_pictures_and_boxes_are_those_of_training(processor: MGLLaVAProcessor) -> None:
    picture, boxes = make_picture(), {"boxes": BOXES, "scores": [0.2, 0.9], "labels": ["cat", "dog"]}
    training = PictureProcessor(toy.CANVAS)
    wanted = training(picture, make_box_record(BOXES, [0.2, 0.9], ["cat", "dog"]))
    batch = processor("USER: <image>\nwhat? ASSISTANT:", picture, boxes)
    assert torch.equal(batch["pixel_values"][0], wanted.pixels) and batch["pixel_values"].dtype == torch.uint8
    assert torch.equal(batch["boxes"][0], wanted.boxes)
    assert torch.equal(processor("<image> a", picture)["boxes"][0], training(picture).boxes)
    exact = processor("<image> a", picture, boxes, mode="exact")
    precise = PictureProcessor(toy.CANVAS, mode="exact")(picture, make_box_record(BOXES, [0.2, 0.9], ["cat", "dog"]))
    assert torch.equal(exact["boxes"][0], precise.boxes)
    images = processor.image_processor([picture, picture], boxes=[None, np.array(BOXES)])
    assert isinstance(images, BatchFeature) and images["pixel_values"].shape == (2, 3, toy.CANVAS, toy.CANVAS)
    assert torch.equal(processor.image_processor(picture, boxes=BOXES)["boxes"][0], images["boxes"][1])


def test_casting_leaves_pixels_and_boxes(processor: MGLLaVAProcessor) -> None:
    batch = processor("<image> a", make_picture(), BOXES)
    cast = processor("<image> a", make_picture(), BOXES).to("cpu", torch.bfloat16)
    assert cast["pixel_values"].dtype == torch.uint8
    assert torch.equal(cast["boxes"][0], batch["boxes"][0]) and cast["boxes"][0].dtype == torch.float32


def test_rows(processor: MGLLaVAProcessor) -> None:
    texts = ["<image> and <image>", "a digit", "<image>"]
    first, second, third = make_picture(1), make_picture(2), make_picture(3)
    nested = processor(texts, [[first, second], None, third], [[None, BOXES], None, BOXES])
    flat = processor(texts, [first, second, third], [[None, BOXES], [], BOXES])
    for key, value in nested.items():
        for own, other in zip(value, flat[key], strict=True):
            assert torch.equal(own, other)
    lengths = nested["attention_mask"].sum(dim=1)
    assert nested["attention_mask"].flip(1).cumprod(dim=1).sum(dim=1).equal(lengths)
    assert (nested["input_ids"] == -200).sum(dim=1).tolist() == [2, 0, 1]
    right = processor(texts, [first, second, third], padding_side="right", padding="max_length", max_length=40)
    assert right["input_ids"].shape == (3, 40) and right["attention_mask"][:, 0].all()
    assert processor(texts[:1], [[first, second]], padding=False)["attention_mask"].all()
    assert "pixel_values" not in processor("a digit")
    asked = processor(conversation=[[{"role": "user", "content": "a?"}]] * 2, images=[first, second])
    assert (asked["input_ids"] == -200).sum(dim=1).tolist() == [1, 1]


def test_labels(processor: MGLLaVAProcessor, tokenizer: Any) -> None:
    turns = [Turn("human", "<image>\nwhat?"), Turn("gpt", "a digit"), Turn("human", "sure?"), Turn("gpt", "yes")]
    short = [Turn("human", "is there a digit?"), Turn("gpt", "no")]
    batch = processor(conversation=[turns, short], images=[make_picture(), None], return_labels=True)
    for row, own in zip(range(2), (turns, short), strict=True):
        wanted = encode_conversation(own, tokenizer, "vicuna")
        mask = batch["attention_mask"][row].bool()
        assert batch["input_ids"][row][mask].tolist() == wanted.input_ids
        assert batch["labels"][row][mask].tolist() == wanted.labels
        assert (batch["labels"][row][~mask] == -100).all()
    with pytest.raises(ValueError, match="assistant's"):
        processor(conversation=turns[:1], images=make_picture(), return_labels=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either text or conversation"),
        ({"text": "a", "conversation": []}, "either text or conversation"),
        ({"text": "a", "return_labels": True}, "labels need conversation"),
        ({"text": 3}, "text is a int"),
        ({"text": "<image> a"}, "1 <image> in the text, 0 pictures"),
        ({"text": ["a", "<video> a"]}, "row 1: 1 <video> in the questions, 0 videos"),
        ({"conversation": [Turn("human", "<video> a")]}, "row 0: 1 <video> in the questions, 0 videos"),
        ({"text": "a", "images": make_picture()}, "0 <image> in the text, 1 pictures"),
        ({"text": ["a", "<image>"], "images": [make_picture()] * 3}, "3 pictures for 2 rows with 1 <image>"),
        ({"text": ["a", "<image>"], "images": [None, make_picture()], "boxes": [BOXES]}, "2 rows but 1 sets"),
        ({"text": ["a", "<image>"], "images": [None, make_picture()], "boxes": [BOXES, None]}, "row 0.*no picture"),
        ({"text": "<image>", "images": make_picture(), "boxes": [[1, 2, 3]]}, "shape"),
        ({"text": "<image>", "images": make_picture(), "boxes": [[9, 9, 1, 1]]}, "x1 <= x2"),
        ({"text": "<image> <image>", "images": [make_picture()] * 2, "boxes": BOXES[:1]}, "2 sets of boxes"),
        ({"text": ["a", "a digit"], "padding": False}, "padding=True"),
        ({"text": "a", "padding": "max_length", "max_length": 1}, "max_length of"),
        ({"text": "a", "padding": "sometimes"}, "sometimes"),
        ({"text": "a", "padding_side": "top"}, "top"),
        ({"text": "a", "return_tensors": "tf"}, "'pt' is all"),
    ],
)
def test_errors(processor: MGLLaVAProcessor, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        processor(**arguments)


def test_more_errors(processor: MGLLaVAProcessor) -> None:
    with pytest.raises(PictureError, match=r"nowhere\.jpg.*row 0, picture 0"):
        processor("<image>", "nowhere.jpg")
    with pytest.raises(TypeError, match="box_mode"):
        processor("<image>", make_picture(), box_mode="exact")
    with pytest.raises(ValueError, match="2 pictures but 1 sets"):
        processor.image_processor([make_picture()] * 2, boxes=[None])
    with pytest.raises(ValueError, match="needs template"):
        MGLLaVAProcessor(processor.image_processor, processor.tokenizer)
    with pytest.raises(ValueError, match="empty_box"):
        MGLLaVAImageProcessor(image_size=64, empty_box="circle")


# -- answers, files ---------------------------------------------------------------------------------------------------


def test_decoding(processor: MGLLaVAProcessor) -> None:
    batch = processor("<image>\nwhat is <image>", [make_picture()] * 2)
    assert processor.decode(batch["input_ids"][0]) == "<s><image>\nwhat is <image>"
    assert processor.batch_decode(batch["input_ids"], skip_special_tokens=True) == ["\nwhat is "]
    answer = processor.tokenizer(" a digit</s>", add_special_tokens=False, return_tensors="pt")["input_ids"]
    whole = torch.cat([batch["input_ids"], answer], dim=1)
    assert processor.decode_answers(whole, batch["input_ids"]) == ["a digit"]
    assert processor.decode_answers(answer) == ["a digit"]


@pytest.mark.parametrize("form", [lambda ids: ids, lambda ids: ids.numpy(), lambda ids: ids.tolist(), list, tuple])
def test_ids_in_every_form_are_decoded(processor: MGLLaVAProcessor, form: Any) -> None:
    ids = processor(["<image>\nwhat", "<image>\nwhat"], [make_picture()] * 2)["input_ids"]
    assert processor.batch_decode(form(ids)) == ["<s><image>\nwhat", "<s><image>\nwhat"]
    assert processor.decode(form(ids)[1], skip_special_tokens=True) == "\nwhat"
    assert processor.post_process_image_text_to_text(form(ids)) == ["\nwhat", "\nwhat"]
    assert processor.decode(form(ids)[0][-1]) == "what" and processor.decode([]) == ""


def test_stop_words(exported: Exported, tokenizer: Any) -> None:
    template = {"INSTRUCTION": "USER: {input} ASSISTANT:", "STOP_WORDS": ["USER:"]}
    processor = MGLLaVAProcessor(MGLLaVAImageProcessor(image_size=64), tokenizer, template=template)
    ids = tokenizer("two digits USER: what", add_special_tokens=False, return_tensors="pt")["input_ids"]
    assert processor.decode_answers(ids) == ["two digits"]
    criteria = processor.stopping_criteria()
    assert criteria is not None and bool(criteria(ids[:, :-1], None).any())  # type: ignore[arg-type]


def test_round_trip(processor: MGLLaVAProcessor, tmp_path: Path) -> None:
    processor.image_processor.mode = "exact"
    try:
        processor.save_pretrained(tmp_path)
    finally:
        processor.image_processor.mode = "reference"
    again = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(again, MGLLaVAProcessor) and isinstance(again.image_processor, MGLLaVAImageProcessor)
    assert again.image_processor.picture_processor == PictureProcessor(toy.CANVAS, mode="exact")
    assert again.template == processor.template and again.chat_template == processor.chat_template
    assert again.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert again.tokenizer.padding_side == "left"
    changed = AutoProcessor.from_pretrained(tmp_path, nms_iou=0.7)
    assert changed.image_processor.nms_iou == 0.7


def test_pipeline(exported: Exported) -> None:
    ask = pipeline("image-text-to-text", model=str(exported.folder))
    picture = make_picture()
    messages = [
        {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "what is there?"}]}
    ]
    with_chat = ask(text=messages, max_new_tokens=4, return_full_text=False)[0]["generated_text"]
    plain = ask(images=[picture], text="<image>\nwhat is there?", max_new_tokens=4)
    assert isinstance(with_chat, str) and plain
    inputs = ask.processor(conversation=[{"role": "user", "content": "what is there?"}], images=picture)
    output = ask.model.generate(**inputs, max_new_tokens=4)
    assert ask.processor.decode_answers(output, inputs["input_ids"])[0] == with_chat.strip()


def test_folder_of_another_model(toy_paths: dict[str, str], tmp_path: Path) -> None:
    folder = shutil.copytree(toy_paths["llm"], tmp_path / "llm")
    with pytest.raises((OSError, ValueError)):
        MGLLaVAProcessor.from_pretrained(folder)
