"""The token budget: text, pictures and boxes never exceed the context, whatever the sample; what is cut, and when."""

import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mg_llava.batch import TokenCount
from mg_llava.data.dataset import LLaVADataset
from mg_llava.data.pictures.processor import PictureProcessor
from mg_llava.data.text.budget import BudgetError, TokenBudget, share_room
from mg_llava.data.text.conversation import NoLabelError, encode_conversation
from mg_llava.tokens import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from tests.data.conftest import turns_of
from tests.settings import grouped

SIDE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("budget")
    (folder / "images").mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (20 + 4 * number, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
    return folder


def write(folder, samples):
    """Samples are (numbers of boxes, one per picture; words of the question; words of the answer)."""
    records, boxes = [], []
    for number, (counts, question, answer) in enumerate(samples):
        text = "<image> " * len(counts) + "digits " * question
        record = {"id": number, "conversations": turns_of(text, "seven " * answer)}
        if counts:
            record["image"] = [f"{k}.png" for k in range(len(counts))]
        records.append(record)
        for k, count in enumerate(counts):
            key = str(number) if len(counts) == 1 else f"{number}#{k}"
            # Disjoint, so that they all survive the NMS; scores fall, then rise.
            rows = [[2 * i % 28, i // 14 * 2, 2 * i % 28 + 1, i // 14 * 2 + 1] for i in range(count)]
            scores = [abs(count / 2 - i) / 50 for i in range(count)]
            boxes.append({"id": key, "boxes": rows, "scores": scores, "labels": ["abc"[i % 3] for i in range(count)]})
    (folder / "data.json").write_text(json.dumps(records))
    (folder / "boxes.json").write_text(json.dumps(boxes))


def make(folder, tokenizer, **changes):
    arguments = dict(
        data_path=folder / "data.json",
        image_folder=folder / "images",
        tokenizer=tokenizer,
        template="vicuna",
        picture_processor=PictureProcessor(SIDE),
        box_path=folder / "boxes.json",
        tokens_per_image=9,
        long_text_margin=None,
    )
    return LLaVADataset(**grouped(**{**arguments, **changes}))


samples = st.lists(
    st.tuples(st.lists(st.integers(0, 40), max_size=4), st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=3
)
processors = st.builds(
    PictureProcessor,
    image_size=st.just(SIDE),
    mode=st.sampled_from(["reference", "exact"]),
    max_boxes=st.sampled_from([None, 3, 20, 100]),
    cap=st.sampled_from(["per_category", "per_image"]),
    empty_box=st.sampled_from(["corner", "none", "picture"]),
    min_box_area=st.just(0.0),
)


@given(samples, processors, st.integers(2, 120), st.integers(1, 20), st.one_of(st.none(), st.integers(1, 100)))
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_sample_exceeds_the_context(folder, tokenizer, rows, processor, context, per_image, max_length):
    write(folder, rows)
    settings = dict(picture_processor=processor, tokens_per_image=per_image, over_budget="skip", no_label="skip")
    dataset = make(folder, tokenizer, context_length=context, max_length=max_length, **settings)
    free = make(folder, tokenizer, **settings)
    for index, (counts, _, _) in enumerate(rows):
        pictures = len(counts)
        try:
            item = dataset.load(index)
        except BudgetError as error:
            assert pictures * per_image + 1 > context and f"record '{index}'" in str(error)
            continue
        except NoLabelError:
            assert max_length is not None and max_length < pictures + 1
            continue
        ids, boxes = item["input_ids"], item["boxes"]
        length = len(ids) + pictures * (per_image - 1) + sum(map(len, boxes))
        assert length <= context and len(ids) <= (max_length or context)
        assert ids.count(IMAGE_TOKEN_INDEX) == len(item["images"]) == len(boxes) == pictures
        assert any(label != IGNORE_INDEX for label in item["labels"])
        everything = free.load(index)
        room = context - len(ids) - pictures * (per_image - 1)
        assert sum(map(len, boxes)) == min(room, sum(map(len, everything["boxes"])))
        for some, full in zip(boxes, everything["boxes"], strict=True):
            rest = iter(full.tolist())
            assert all(box in rest for box in some.tolist())  # in order, none but those
            assert ((some >= 0) & (some <= SIDE)).all()
        if len(everything["input_ids"]) <= min(max_length or context, context - pictures * (per_image - 1)):
            assert ids == everything["input_ids"]


def test_a_budget_that_holds_changes_nothing(folder, tokenizer):
    write(folder, [([30], 5, 5), ([], 5, 5), ([3, 4], 5, 5)])
    plain, limited = make(folder, tokenizer, max_length=60), make(folder, tokenizer, max_length=60, context_length=90)
    for index in range(3):
        first, second = plain[index], limited[index]
        assert first["input_ids"] == second["input_ids"] and first["labels"] == second["labels"]
        assert all(torch.equal(a, b) for a, b in zip(first["boxes"], second["boxes"], strict=True))


def test_boxes_go_before_text_and_the_worst_ones_first(folder, tokenizer):
    write(folder, [([9], 20, 20)])
    full = make(folder, tokenizer, picture_processor=PictureProcessor(SIDE, cap="per_image"))[0]
    length = len(full["input_ids"]) + 8
    for room in (9, 4, 1, 0):
        item = make(
            folder,
            tokenizer,
            context_length=length + room,
            picture_processor=PictureProcessor(SIDE, cap="per_image"),
        )[0]
        assert item["input_ids"] == full["input_ids"]
        assert torch.equal(item["boxes"][0], full["boxes"][0][:room])
    shorter = make(folder, tokenizer, context_length=length - 1)[0]
    assert len(shorter["input_ids"]) == len(full["input_ids"]) - 1 and len(shorter["boxes"][0]) == 0


def test_several_pictures_share_the_room(folder, tokenizer):
    write(folder, [([9, 1, 0, 5], 3, 3)])
    full = make(folder, tokenizer)[0]
    assert [len(boxes) for boxes in full["boxes"]] == [9, 1, 1, 5]  # a stand-in for none
    context = len(full["input_ids"]) + 4 * 8
    kept = [make(folder, tokenizer, context_length=context + room)[0]["boxes"] for room in (16, 9, 3, 0)]
    assert [[len(boxes) for boxes in some] for some in kept] == [[9, 1, 1, 5], [4, 1, 1, 3], [1, 1, 1, 0], [0] * 4]


@given(st.lists(st.integers(0, 30), max_size=6), st.integers(0, 100))
def test_sharing_is_fair_and_wastes_nothing(counts, room):
    shares = share_room(counts, room)
    assert sum(shares) == min(room, sum(counts))
    assert all(0 <= share <= count for share, count in zip(shares, counts, strict=True))
    cut = [share for share, count in zip(shares, counts, strict=True) if share < count]
    assert not cut or max(shares) <= min(cut) + 1


def test_a_text_near_its_limit_gets_fewer_boxes(folder, tokenizer):
    write(folder, [([9], 3, 3), ([2, 9], 3, 3)])
    one, two = (len(make(folder, tokenizer).encode(index).input_ids) for index in (0, 1))
    for margin, boxes in ((0, 9), (20, 3)):
        dataset = make(folder, tokenizer, max_length=one + 5, context_length=500, long_text_margin=margin)
        assert len(dataset[0]["boxes"][0]) == boxes
    # The limit of a text beside two pictures.
    dataset = make(folder, tokenizer, context_length=two + 16 + 30, long_text_margin=30)
    assert [len(boxes) for boxes in dataset[1]["boxes"]] == [2, 3]


def test_pictures_alone_exceed_the_context(folder, tokenizer):
    write(folder, [([1], 1, 1), ([1, 1, 1], 1, 1), ([], 1, 1)])
    with pytest.raises(BudgetError, match=r"record '1' of .*data\.json: 3 pictures of 9 tokens .*context_length 27"):
        make(folder, tokenizer, context_length=27)
    assert len(make(folder, tokenizer, context_length=28)[1]["images"]) == 3
    dataset = make(folder, tokenizer, context_length=27, over_budget="skip")
    assert dataset[1]["id"] == "2" and dataset.report()["skipped"]["over_budget"] == 1
    with pytest.raises(ValueError, match="context_length needs tokens"):
        make(folder, tokenizer, context_length=27, tokens=None)
    # pictures that take no place in the sequence are counted too
    assert len(make(folder, tokenizer, context_length=27, tokens_per_image=0)[1]["images"]) == 3


def test_limits():
    budget = TokenBudget(context_length=100, max_length=70, tokens=TokenCount(20))
    assert [budget.text_limit(pictures) for pictures in (0, 1, 2, 4)] == [70, 70, 62, 24]
    assert budget.box_room(70, 1) == 11 and budget.box_room(10, 0) == 90 and budget.expanded(10, 2, 5) == 53
    with pytest.raises(BudgetError, match="5 pictures of 20 tokens"):
        budget.text_limit(5)
    assert TokenBudget(max_length=7).text_limit(99) == 7 and TokenBudget().box_room(5, 5) is None
    with pytest.raises(ValueError, match="max_length is 0"):
        TokenBudget(max_length=0)


def test_text_alone_is_cut_as_ever(folder, tokenizer):
    write(folder, [([], 50, 50)])
    dataset = make(folder, tokenizer, max_length=40, context_length=60)
    turns = dataset.record(0).turns
    assert dataset[0]["input_ids"] == encode_conversation(turns, tokenizer, "vicuna", 40).input_ids


def test_spare_picture_keeps_text_alone_as_short_as_beside_a_picture() -> None:
    budget = TokenBudget(context_length=40, spare_picture=True).counting(TokenCount(9))
    assert budget.text_limit(0) == budget.text_limit(1) == 40 - 9
    assert budget.text_limit(2) == 40 - 2 * (9 - 1)
    assert TokenBudget(40, max_length=20, spare_picture=True).counting(TokenCount(9)).text_limit(0) == 20
    assert TokenBudget(None, spare_picture=True).counting(TokenCount(9)).text_limit(0) is None
    assert TokenBudget(context_length=40).counting(TokenCount(9)).text_limit(0) == 40
    with pytest.raises(ValueError, match=r"context_length 9 leaves no room .* 9 tokens of a picture"):
        TokenBudget(context_length=9, spare_picture=True).counting(TokenCount(9))
