"""Batches of samples: their layout and the placeholders of their canvases, and samples that are refused by name."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mg_llava.batch import Layout, TokenCount
from mg_llava.data.collate import collate
from mg_llava.data.dataset import LLaVADataset
from mg_llava.data.pictures.processor import PictureProcessor
from mg_llava.pieces import Pieces
from mg_llava.tokens import IGNORE_INDEX, IMAGE_TOKEN_INDEX, VIDEO_TOKEN_INDEX
from tests import toy
from tests.settings import grouped

COUNT = TokenCount(4)


def counted(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [sample | {"tokens": [COUNT(1, len(boxes)) for boxes in sample["boxes"]]} for sample in samples]


def sample(**changes: Any) -> dict[str, Any]:
    box = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    return {
        "id": "a",
        "input_ids": [1, IMAGE_TOKEN_INDEX, 5],
        "labels": [IGNORE_INDEX, IGNORE_INDEX, 5],
        "images": [torch.zeros(3, 8, 8, dtype=torch.uint8)],
        "boxes": [box],
        **changes,
    }


def test_counted_samples_give_a_layout_of_their_batch() -> None:
    samples = counted(toy.make_batch([(9, 2), (5, 0), (12, 1)], seed=2))
    data = collate(samples)["data"]
    layout = data["layout"]
    assert isinstance(layout, Layout) and layout.counts == tuple(count for one in samples for count in one["tokens"])
    assert layout.lengths == tuple(len(one["input_ids"]) - len(one["tokens"]) + sum(one["tokens"]) for one in samples)
    for row, length in enumerate(layout.lengths):
        assert layout.attention_mask[row].tolist() == [True] * length + [False] * (max(layout.lengths) - length)
    labeled = sum((one["labels"] != IGNORE_INDEX).sum() for one in samples)
    assert len(layout.targets) == (layout.labels != IGNORE_INDEX).sum() == labeled


def test_one_sample_that_is_not_counted_leaves_the_layout_to_the_model() -> None:
    first, second = toy.make_batch([(9, 1), (5, 0)])
    assert "layout" not in collate([*counted([first]), second])["data"]
    assert "layout" not in collate([first, second])["data"]


def test_what_stays_on_the_host_is_no_view_of_what_workers_move() -> None:
    """A worker moves a tensor into shared memory and frees where it was, under an array that looked at it."""
    columns = [torch.arange(100) % 7 + number for number in range(4)]
    samples = [one | {"extra": {"pieces": [Pieces(*columns)]}} for one in counted(toy.make_batch([(9, 1), (5, 1)]))]
    for workers in (0, 1):
        loader = torch.utils.data.DataLoader(samples * 20, batch_size=40, collate_fn=collate, num_workers=workers)
        (batch,) = loader
        extra = batch["data"]["extra"]
        for array, tensor in zip(extra["planned"], extra["pieces"], strict=True):
            assert array.tolist() == tensor.tolist()
            assert not np.shares_memory(array, tensor.numpy())


def test_layouts_survive_workers_and_move_with_the_batch() -> None:
    from mmengine.model import BaseDataPreprocessor

    loader = torch.utils.data.DataLoader(
        counted(toy.make_batch([(9, 1), (5, 0)])), batch_size=2, collate_fn=collate, num_workers=1
    )
    data = next(iter(loader))["data"]
    moved = BaseDataPreprocessor(non_blocking=True)(data, False)
    for one in (data["layout"], moved["layout"]):
        assert isinstance(one, Layout) and all(type(length) is int for length in (*one.lengths, *one.counts))


def test_frames_that_share_a_placeholder() -> None:
    frames = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    video = sample(
        id="film",
        input_ids=[VIDEO_TOKEN_INDEX, 7, 5],
        images=list(frames),
        boxes=[torch.zeros(2, 4)] * 3,
        media=[0, 0, 0],
    )
    data = collate([sample(), video, sample()])["data"]
    assert data["media"] == [0, 1, 1, 1, 2] and len(data["canvas"]) == len(data["boxes"]) == 5
    assert "media" not in collate([sample(), sample()])["data"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": []}, "'a' has 1 placeholders, 0 pictures and 1 sets of boxes"),
        ({"boxes": []}, "1 placeholders, 1 pictures and 0 sets of boxes"),
        ({"input_ids": [1, 2, 5]}, "0 placeholders, 1 pictures"),
        ({"media": [0, 0]}, "and 2 pictures in media"),
        ({"media": [1]}, r"media is \[1\]; it must name each of the 1 placeholders"),
        ({"tokens": [5, 5]}, "'a' has 1 placeholders and counts the tokens of 2"),
        ({"labels": [5]}, "'a' has 3 ids and 1 labels"),
        (
            {"boxes": [torch.tensor([[0, 0, 1, 1], [0, 0, math.nan, 1]])]},
            r"'a': box \[.*nan.* of picture 0 is not finite",
        ),
        ({"boxes": [torch.tensor([[0, 0, math.inf, 1]])]}, "of picture 0 is not finite"),
    ],
)
def test_samples_that_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collate([sample(), sample(**changes)])


def test_frames_out_of_order() -> None:
    two = sample(input_ids=[IMAGE_TOKEN_INDEX] * 2, labels=None, media=[1, 0])
    two |= {"images": two["images"] * 2, "boxes": two["boxes"] * 2}
    with pytest.raises(ValueError, match="in the order of their placeholders"):
        collate([two])


def test_annotated_objects_stand_beside_their_canvases(files: Path, tokenizer: Any) -> None:
    """Those of a box file of their own, in canvas pixels; None for pictures that it lacks."""
    records = json.loads((files / "boxes.json").read_text())
    known = [{**record, "labels": ["dog"] * len(record["boxes"])} for record in records if record["id"] == 1]
    (files / "targets.json").write_text(json.dumps(known))
    dataset = LLaVADataset(
        **grouped(
            data_path=files / "data.json",
            image_folder=files / "images",
            box_path=files / "boxes.json",
            tokenizer=tokenizer,
            template="vicuna",
            picture_processor=PictureProcessor(32),
            targets=files / "targets.json",
        )
    )
    batch = collate([dataset[index] for index in range(4)])["data"]
    objects = batch["extra"]["objects"]
    assert len(objects) == len(batch["canvas"]) == 4
    assert [one is not None for one in objects] == [True, False, False, False]
    assert objects[0]["labels"] == ["dog"] * len(known[0]["boxes"])
    assert torch.allclose(objects[0]["boxes"], dataset.open(1).pictures[0].objects["boxes"])
    size, boxes = 40, torch.tensor(known[0]["boxes"], dtype=torch.float32)  # 40 x 30 in a square
    assert torch.allclose(objects[0]["boxes"], (boxes + torch.tensor([0.0, 5.0, 0.0, 5.0])) * 32 / size, atol=1e-4)
