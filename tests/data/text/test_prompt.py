"""Prompts made of boxes, and placeholders of videos: resolved before the text is encoded."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from mg_llava.batch import TokenCount
from mg_llava.data.boxes.augment import BoxAugmentation
from mg_llava.data.dataset import LLaVADataset
from mg_llava.data.inputs import make_turns
from mg_llava.data.pictures.processor import PictureProcessor
from mg_llava.data.records.schema import RecordError, Turn
from mg_llava.data.text.conversation import encode_conversation, encode_prompt
from mg_llava.data.text.prompt import describe_parts
from mg_llava.tokens import IMAGE_TOKEN_INDEX
from tests.settings import grouped

TURNS = (Turn("human", "<image>\nWhat is at <box:1>?"), Turn("gpt", "A digit; another one is at <box:0>."))


@dataclass(frozen=True)
class Sizes:
    """Says number of boxes and size of each picture."""

    word: str = "with"

    def __call__(self, turns, objects, sizes, draw=None):
        said = ", ".join(f"{len(boxes)} in {size[0]}:{size[1]}" for boxes, size in zip(objects, sizes, strict=True))
        return (*turns[:-1], replace(turns[-1], text=f"{turns[-1].text} {self.word} {said}"))


def make(files, tokenizer, **changes):
    arguments = dict(
        data_path=files / "data.json",
        image_folder=files / "images",
        tokenizer=tokenizer,
        template="vicuna",
        picture_processor=PictureProcessor(32),
        box_path=files / "boxes.json",
    )
    return LLaVADataset(**grouped(**{**arguments, **changes}))


def answer_of(dataset, index):
    sample = dataset[index]
    return dataset.tokenizer.decode([token for token in sample["labels"] if token >= 0])


def test_a_sample_is_encoded_after_its_boxes(files, tokenizer):
    plain, told = make(files, tokenizer), make(files, tokenizer, prompt=[Sizes()])
    assert answer_of(told, 1).endswith("with 2 in 40:30</s>")
    assert "with 1 in 30:40, 0 in 25:25" in answer_of(told, 2)
    for index in range(4):
        one, other = plain[index], told[index]
        assert all(np.array_equal(a, b) for a, b in zip(one["images"], other["images"], strict=True))
        assert other["input_ids"].count(IMAGE_TOKEN_INDEX) == len(one["images"])
    assert told.encode(1).input_ids == told[1]["input_ids"] != plain[1]["input_ids"]


def test_prompts_see_the_boxes_of_the_augmentation(files, tokenizer):
    dataset = make(files, tokenizer, prompt=[Sizes()], box_augmentation=BoxAugmentation(drop_all=1.0))
    assert "with 0 in 40:30" in answer_of(dataset, 1)


def test_box_tokens_take_the_room_that_the_prompt_leaves(files, tokenizer):
    limits = dict(tokens_per_image=2, long_text_margin=None)
    plain, told = (make(files, tokenizer, prompt=prompt, **limits) for prompt in ((), [Sizes()]))
    length = len(told[1]["input_ids"]) + 1  # the picture is two tokens and one placeholder
    assert [len(make(files, tokenizer, context_length=length + room, prompt=[Sizes()], **limits)[1]["boxes"][0])
            for room in (0, 1, 2)] == [0, 1, 2]  # fmt: skip
    assert len(plain[1]["boxes"][0]) == 2


def test_samples_say_what_their_placeholders_stand_for(files, tokenizer):
    dataset = make(files, tokenizer, tokens=TokenCount(per_canvas=7, per_box=2))
    assert [dataset[index]["tokens"] for index in range(4)] == [[], [11], [9, 9], [9]]
    assert "tokens" not in make(files, tokenizer)[1]


def test_a_record_that_names_too_many_boxes_is_named(files, tokenizer):
    text = (files / "data.json").read_text().replace("A picture.", "At <box:5>.")
    (files / "data.json").write_text(text)
    with pytest.raises(RecordError, match=r"record '1' of .*data\.json: <box:5> stands in the text"):
        make(files, tokenizer)[1]


def test_token_caches_of_other_prompts_are_apart_and_hold_no_boxes(files, tokenizer, tmp_path):
    cache = dict(token_cache=tmp_path / "cache", prompt=[Sizes()])
    first = make(files, tokenizer, **cache)
    texts = [first[index]["input_ids"] for index in range(4)]
    (files / "boxes.json").write_text((files / "boxes.json").read_text().replace('"id": "3"', '"id": "4"'))
    again = make(files, tokenizer, missing_box="empty", **cache)
    assert [again[index]["input_ids"] == text for index, text in enumerate(texts)] == [True, True, True, False]
    other = make(files, tokenizer, missing_box="empty", token_cache=tmp_path / "cache")
    assert other.token_cache.folder != again.token_cache.folder
    assert describe_parts([Sizes()]) != describe_parts([Sizes("of")]) != describe_parts([dict(type="Sizes")])


def test_frames_of_a_video_stand_side_by_side(tokenizer):
    turns = make_turns("<video>\nWhat happens?", 3, "request 1")
    assert [turn.text for turn in turns] == ["<image><image><image>\nWhat happens?"]
    ids = encode_prompt(turns, tokenizer, "vicuna")
    first = ids.index(IMAGE_TOKEN_INDEX)
    assert ids[first : first + 4].count(IMAGE_TOKEN_INDEX) == 3
    one = encode_prompt(make_turns("<video>\nWhat happens?", 1, "request 1"), tokenizer, "vicuna")
    assert [token for token in ids if token != IMAGE_TOKEN_INDEX] == [t for t in one if t != IMAGE_TOKEN_INDEX]
    # of k equal frames the ids are those of a picture k times
    trained = encode_conversation([*turns, Turn("gpt", "Seven.")], tokenizer, "vicuna").input_ids
    assert trained[: len(ids)] == ids


def test_pictures_and_text_without_a_video_stay_as_they_are():
    assert make_turns("What?", 2, "r")[0].text == "<image>\n<image>\nWhat?"
    assert make_turns("<image>\nWhat is <video>?", 1, "r")[0].text == "<image>\nWhat is <video>?"


def test_a_question_about_a_video_that_is_not_there_is_refused():
    for question in ("<video>\nWhat happens?", [("human", "<video>\nWhat?"), ("gpt", "A."), ("human", "And then?")]):
        with pytest.raises(ValueError, match=r"r: 1 <video> in the questions, 0 videos; give one, or its frames"):
            make_turns(question, 0, "r")
    said = [Turn("human", "What?"), Turn("gpt", "A <video>.", is_said=True), Turn("human", "And then?")]
    assert make_turns(said, 0, "r") == said
