"""The perception-embedded prompt: what it writes, what it leaves out, and that it can be read again."""

from itertools import product

import numpy as np
import pytest

from mg_llava.data.dataset import LLaVADataset
from mg_llava.data.pictures.processor import PictureProcessor
from mg_llava.data.records.schema import NO_BOXES, Turn, make_box_record
from mg_llava.data.text.coordinates import BoxText
from mg_llava.data.text.perception import PerceptionPrompt
from mg_llava.data.text.prompt import build_parts
from tests.settings import grouped

SIZE = (200, 100)
FOUND = make_box_record(
    [[100, 0, 200, 50], [0, 50, 50, 100], [10, 10, 10.5, 90], [20, 20, 60, 60]],
    [0.5, 0.9, 0.8, 0.2],
    ["cat", "dog", "line", "bird"],
)
ORIGINAL = {"style": "unit2", "frame": "original"}


def test_threshold_cap_order_and_certainty() -> None:
    def write(**settings: object) -> str:
        return PerceptionPrompt(text=ORIGINAL, **settings).write(FOUND, SIZE)  # type: ignore[arg-type]

    cat, dog, bird = "cat [0.50, 0.00, 1.00, 0.50]", "dog [0.00, 0.50, 0.25, 1.00]", "bird [0.10, 0.20, 0.30, 0.60]"
    assert write() == f"Detected objects: {dog}; {cat}."  # no line of half a pixel
    assert write(threshold=0.0) == f"Detected objects: {dog}; {cat}; {bird}."
    assert write(threshold=0.0, most=1) == f"Detected objects: {dog}."
    assert write(threshold=0.0, order="left") == f"Detected objects: {dog}; {bird}; {cat}."
    assert write(sure=0.6) == f"Detected objects: {dog} (sure); {cat} (maybe)."
    bare = PerceptionPrompt(text=None, order="left")
    assert bare.write(FOUND, SIZE) == "Detected objects: dog; cat."
    with pytest.raises(ValueError, match="a prompt without boxes cannot be read"):
        bare.read("Detected objects: dog.", SIZE)
    assert write(threshold=0.95) == "Detected objects: none." == PerceptionPrompt().write(NO_BOXES, SIZE)


@pytest.mark.parametrize(
    ("style", "frame"), product(["unit3", "unit2", "int1000", "int100", "bins"], ["padded", "original"])
)
def test_objects_to_text_to_objects(style: str, frame: str) -> None:
    rng = np.random.default_rng(0)
    text = BoxText(style, frame)  # type: ignore[arg-type]
    prompt = PerceptionPrompt(text=text, threshold=0.4, most=5, sure=0.7)
    for _ in range(50):
        size = (int(rng.integers(300, 1000)), int(rng.integers(300, 1000)))
        count = int(rng.integers(0, 9))
        starts = rng.random((count, 2)) * 0.7
        # wide enough to be written again when they were rounded
        corners = np.concatenate([starts, starts + 0.1 + 0.2 * rng.random((count, 2))], 1) * [*size, *size]
        labels = [str(rng.choice(["a dog", "traffic light", "7", "café"])) for _ in range(count)]
        record = make_box_record(corners, rng.random(count), labels)
        written = prompt.write(record, size)
        kept, back = prompt.select(record), prompt.read(written, size)
        assert back.labels == tuple(labels[number] for number in kept)
        assert (back.scores == (record.scores[kept] >= 0.7)).all()
        bound = np.tile(np.array(text.bound(size)), 2) * (2 if style == "bins" else 1) + 1e-6
        assert (np.abs(back.boxes - record.boxes[kept]) <= bound).all()
        assert prompt.write(make_box_record(back.boxes, back.scores * 0.3 + 0.5, back.labels), size) == written


def test_labels_cannot_break_the_format() -> None:
    record = make_box_record([[0, 0, 50, 50], [0, 0, 60, 60]], [0.9, 0.8], ["a [0.1]; dog (sure)", "[]"])
    prompt = PerceptionPrompt(text=ORIGINAL)
    assert prompt.read(prompt.write(record, SIZE), SIZE).labels == ("a 0.1 dog sure", "object")


def test_it_stands_between_pictures_and_question() -> None:
    turns = (
        Turn("human", "<image>\n<image>\nWhich?"),
        Turn("gpt", "Both."),
        Turn("human", "Why?"),
        Turn("gpt", "So."),
    )
    prompt = PerceptionPrompt(text=ORIGINAL)
    first, *others = prompt(turns, [FOUND, NO_BOXES], [SIZE, SIZE])
    written = prompt.write(FOUND, SIZE)
    assert first.text == f"<image>\n<image>\nPicture 1. {written}\nPicture 2. Detected objects: none.\nWhich?"
    assert others == list(turns[1:])
    (late,) = prompt((Turn("human", "What is this?\n<image>"),), [FOUND], [SIZE])
    assert late.text == f"{written}\nWhat is this?\n<image>"
    assert prompt(turns, [], []) == turns


def test_dropout_in_training_alone(files, tokenizer) -> None:  # type: ignore[no-untyped-def]
    (part,) = build_parts([dict(type="mg_llava.PerceptionPrompt", dropout=0.3)])
    turns = (Turn("human", "<image>\nWhat?"), Turn("gpt", "A dog."))
    drawn = [part(turns, [FOUND], [SIZE], np.random.default_rng(seed)) == turns for seed in range(1000)]
    assert 0.25 < np.mean(drawn) < 0.35
    assert part(turns, [FOUND], [SIZE], None) != turns
    settings = dict(data_path=files / "data.json", image_folder=files / "images", box_path=files / "boxes.json")
    settings |= dict(tokenizer=tokenizer, template="vicuna", picture_processor=PictureProcessor(32))
    told, dropped, half = (
        LLaVADataset(**grouped(**settings, prompt=[PerceptionPrompt(threshold=0.0, dropout=share)]))
        for share in (0.0, 1.0, 0.5)
    )
    lengths = set()
    for epoch in range(12):
        half.set_epoch(epoch)
        ids = half[1]["input_ids"]
        assert ids == half[1]["input_ids"]  # an index gives the same in an epoch
        lengths.add(len(ids))
    assert lengths == {len(told[1]["input_ids"]), len(dropped[1]["input_ids"])}


def test_settings_out_of_range_are_one_message() -> None:
    with pytest.raises(ValueError, match=r"order is 'up'.*most is 0.*threshold is 2.*dropout is -1"):
        PerceptionPrompt(threshold=2, most=0, order="up", dropout=-1)  # type: ignore[arg-type]
