"""Regions in conversations: coordinates, object images and names, whatever the text is."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mg_llava.batch import TokenCount
from mg_llava.data.records.regions import Region, parse_regions
from mg_llava.data.records.schema import (
    PlaceholderError,
    RecordError,
    Turn,
    make_box_record,
    measure_record,
    parse_record,
)
from mg_llava.data.text.conversation import EncodedConversation, encode_conversation
from mg_llava.data.text.regions import RegionUse, regions_of_boxes, with_names
from mg_llava.tokens import BOX_TOKEN_INDEX, IGNORE_INDEX, IMAGE_TOKEN_INDEX, OBJECT_PLACEHOLDER, OBJECT_TOKEN_INDEX

REGIONS = [Region((0, 0, 10, 10), "dog"), Region((5, 5, 20, 20)), Region((1, 2, 3, 4), picture=1)]
SIZES = [(40, 40), (4, 8)]
EXACT = RegionUse({"style": "unit2", "frame": "original"})
TALK = (
    Turn("human", "<image> or <image>? How does <box:0> relate to <object:1> and <object:0>?"),
    Turn("gpt", "It is left of <box:2>."),
    Turn("human", "And <object:1>?"),
    Turn("gpt", "No."),
)


def test_placeholders_become_coordinates_and_object_images_in_reading_order():
    turns, shown = EXACT.resolve(TALK, REGIONS, SIZES)
    question = "<image> or <image>? How does [0.00, 0.00, 0.25, 0.25] relate to <object:0> and <object:1>?"
    texts = [question, "It is left of [0.25, 0.25, 0.75, 0.50].", "And <object:2>?", "No."]
    assert [turn.text for turn in turns] == texts
    assert shown == (REGIONS[1], REGIONS[0], REGIONS[1])


def test_shares_of_a_picture_are_its_pixels():
    turns, size = [Turn("human", "<image>\n<box:0> <object:0>"), Turn("gpt", "Yes.")], (200, 100)
    wanted = RegionUse().resolve(turns, parse_regions([[20, 30, 100, 90]], 1), [size])
    for of, box in (1, [0.1, 0.3, 0.5, 0.9]), (1000, [100, 300, 500, 900]):
        found, (region,) = RegionUse().resolve(turns, parse_regions([{"box": box, "of": of}], 1), [size])
        assert found == wanted[0] and region.of == 0 and np.allclose(region.box, [20, 30, 100, 90])
    for wrong in (
        ([0.1, 0.3, 0.5, 9], 1),
        ([1, 2, 3, 1004], 1000),
        ([0.1, 0.2, 0.3, 0.4], 0),
        ([0.1, 0.2, 0.3, 0.4], 1000),
    ):
        with pytest.raises(ValueError, match="look"):
            parse_regions([{"box": wrong[0], "of": wrong[1]}], 1)


def test_coordinates_bring_their_object_images():
    use = RegionUse({"style": "unit2", "frame": "original"}, attach="coordinates")
    text = "<image>\n<box:1>, [0.5, 0.5, 1, 1] and <box:0> <object:2>?"
    (turn, answer), shown = use.resolve([Turn("human", text), Turn("gpt", "<box:0>")], REGIONS[:2] * 2, [(40, 20)])
    assert OBJECT_PLACEHOLDER.sub("*", turn.text) == (
        "<image>\n[0.12, 0.25, 0.50, 1.00] *, [0.5, 0.5, 1, 1] * and [0.00, 0.00, 0.25, 0.50] *?"
    )
    assert [one.box for one in shown] == [(4.8, 5, 20, 20), (20, 10, 40, 20), (0, 0, 10, 10)]
    assert answer.text == "[0.00, 0.00, 0.25, 0.50]"
    _, again = use.resolve([Turn("human", OBJECT_PLACEHOLDER.sub("", turn.text))], (), [(40, 20)])
    assert [one.box for one in again][:2] == [one.box for one in shown][:2] and len(again) == 3


def test_typed_coordinates_are_in_the_picture_that_was_shown_last():
    use = RegionUse({"frame": "original"}, attach="coordinates")
    box = "[0, 0, 1, 1]"
    turns = [Turn("human", f"{box} <image> {box} <image> {box}"), Turn("gpt", box), Turn("human", f"{box} <image>")]
    _, shown = use.resolve(turns, (), [(10, 10), (20, 20), (30, 30)])
    assert [(one.picture, one.box[2]) for one in shown] == [(0, 10), (0, 10), (1, 20), (2, 30)]


@given(
    st.lists(st.sampled_from(["<box:0>", "<object:0>", "<object:2>", "[0.1, 0.2,", "[.1,.2,.3,.4]", "é", " "])),
    st.data(),
)
@settings(max_examples=200)
def test_every_object_image_has_its_region_whatever_the_text(pieces, data):
    use = RegionUse(
        data.draw(st.sampled_from([{}, {"style": "int100"}])),
        data.draw(st.sampled_from(["placeholders", "coordinates"])),
    )
    turns, shown = use.resolve([Turn("human", "<image>" + "".join(pieces))], REGIONS, SIZES)
    numbers = [int(number) for number in OBJECT_PLACEHOLDER.findall(turns[0].text)]
    assert numbers == list(range(len(shown))) and "<box:" not in turns[0].text
    assert len(shown) >= sum(piece.startswith("<object") for piece in pieces)


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        (Turn("human", "<box:3>"), r"<box:3> stands in the text, but there are 3 regions"),
        (Turn("human", "<object:9>"), r"<object:9> stands in the text"),
        (Turn("gpt", "<object:0>"), r"object images are shown in questions alone"),
    ],
)
def test_placeholders_without_a_region_are_named(turn, message):
    with pytest.raises(RecordError, match=message):
        EXACT.resolve([turn], REGIONS, SIZES)


@pytest.mark.parametrize(
    "value", [7, "dog", [[1, 2, 3]], [[3, 0, 1, 1]], [{"label": "x"}], [{"box": [0, 0, 1, float("nan")]}]]
)
def test_malformed_objects_are_refused(value):
    with pytest.raises(ValueError, match="object"):
        parse_regions(value, 1)
    with pytest.raises(ValueError, match="there are 1"):
        parse_regions([{"box": [0, 0, 1, 1], "picture": 1}], 1)


def test_records_say_their_regions_only_where_the_text_names_them():
    raw = {"id": 1, "image": "a.jpg", "objects": [{"box": [0, 0, 5, 5], "label": "dog"}]}
    talk = [{"from": "human", "value": "<image> <object:0> <box:0>"}, {"from": "gpt", "value": "<box:0>"}]
    assert parse_record({**raw, "conversations": talk}).regions == (Region((0, 0, 5, 5), "dog"),)
    assert measure_record({**raw, "conversations": talk})[-2:] == (1, 1)
    plain = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "x"}]
    assert parse_record({**raw, "objects": "any metadata", "conversations": plain}).regions == ()
    for wrong in ("<object:1>", "<box:7>"):
        with pytest.raises(RecordError, match=wrong):
            parse_record({**raw, "conversations": [{"from": "human", "value": f"<image>{wrong}"}, talk[1]]})
    with pytest.raises(PlaceholderError):
        parse_record({"id": 1, "conversations": [{"from": "human", "value": "<image>"}, talk[1]]})


def test_boxes_are_regions_where_a_record_has_none():
    boxes = [make_box_record([[0, 0, 1, 2]], labels=["a"]), make_box_record([[3, 3, 4, 4], [5, 5, 6, 6]])]
    assert [(one.box, one.picture) for one in regions_of_boxes(boxes)] == [
        *(((0, 0, 1, 2), 0), ((3, 3, 4, 4), 1), ((5, 5, 6, 6), 1))
    ]


def test_ids_of_object_images_stand_between_the_pieces_of_the_text(tokenizer):
    turns, _ = EXACT.resolve(TALK, REGIONS, SIZES)
    encoded = encode_conversation(turns, tokenizer, "vicuna")
    assert [token for token in encoded.input_ids if token < 0] == [*[IMAGE_TOKEN_INDEX] * 2, *[OBJECT_TOKEN_INDEX] * 3]
    for limit in range(20, len(encoded.input_ids)):
        cut = encode_conversation(turns, tokenizer, "vicuna", limit)
        assert len(cut.input_ids) <= limit and sum(token < 0 for token in cut.input_ids) == 5


def test_names_stand_before_their_boxes_without_loss(tokenizer):
    use = RegionUse(names="obj{}")
    encoded = EncodedConversation(
        [1, IMAGE_TOKEN_INDEX, 5, OBJECT_TOKEN_INDEX, IMAGE_TOKEN_INDEX, 6], [IGNORE_INDEX] * 5 + [6]
    )
    named = use.name_boxes(encoded, [[2, 0], [None]], tokenizer)
    third, first = (tokenizer.encode(name, add_special_tokens=False) for name in ("obj3", "obj1"))
    assert named.input_ids == [
        *(1, IMAGE_TOKEN_INDEX, *third, BOX_TOKEN_INDEX, *first, BOX_TOKEN_INDEX),
        *(5, OBJECT_TOKEN_INDEX, IMAGE_TOKEN_INDEX, BOX_TOKEN_INDEX, 6),
    ]
    assert named.labels == [IGNORE_INDEX] * (len(named.input_ids) - 1) + [6]
    longest = max(len(tokenizer.encode(f"obj{number}", add_special_tokens=False)) for number in range(1, 1000))
    assert with_names(TokenCount(7, 1), use, tokenizer).per_box == 1 + longest
    with pytest.raises(ValueError, match="no box tokens"):
        with_names(TokenCount(7, 0), use, tokenizer)


@pytest.mark.parametrize("wrong", [{"attach": "always"}, {"context": -1}, {"names": "obj"}, {"text": {"style": "x"}}])
def test_wrong_settings_of_regions_are_refused(wrong):
    with pytest.raises(ValueError, match=re.escape(next(iter(wrong))) if "text" not in wrong else "style"):
        RegionUse(**wrong)


def test_lengths_are_known_without_pictures(tokenizer):
    use = RegionUse(attach="coordinates")
    raw = {"id": 1, "image": "a.jpg", "objects": [[0, 0, 5, 5]]}
    talk = [{"from": "human", "value": "<image> <object:0> <box:0>?"}, {"from": "gpt", "value": "<box:0>"}]
    record = parse_record({**raw, "conversations": talk})
    turns, crops = use.measure(record)
    real, shown = use.resolve_record(record, (), [(400, 300)])
    assert crops == len(shown) == 2
    assert [len(turn.text) for turn in turns] == [len(turn.text) for turn in real]
    assert np.isfinite([one.box for one in shown]).all()
