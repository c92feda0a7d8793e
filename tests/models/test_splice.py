"""Assembly of the sequence: golden batch, and the properties that hold for any mix of rows."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mg_llava.batch import Layout, plan_layout
from mg_llava.models.splice import layout_of, splice
from mg_llava.tokens import IGNORE_INDEX, IMAGE_TOKEN_INDEX

WIDTH = 5
VOCABULARY = 30


class Batch(NamedTuple):
    """A random batch and, for each row, what has to come out at every position."""

    input_ids: Tensor
    labels: Tensor
    attention_mask: Tensor
    embedding: Tensor
    visual: Tensor
    boxes: list[Tensor]
    rows: list[list[Tensor]]
    row_labels: list[list[int]]


def make_batch(rows: list[list[int | None]], box_counts: list[int], patches: int, seed: int) -> Batch:
    """``None`` in a row is a picture; the expected rows are made token by token."""
    generator = torch.Generator().manual_seed(seed)
    pictures = sum(item is None for row in rows for item in row)
    embedding = torch.randn(VOCABULARY, WIDTH, generator=generator)
    visual = torch.randn(pictures, patches, WIDTH, generator=generator)
    boxes = [torch.randn(box_counts[i % len(box_counts)], WIDTH, generator=generator) for i in range(pictures)]
    longest = max(len(row) for row in rows)
    input_ids = torch.zeros(len(rows), longest, dtype=torch.long)
    labels = torch.full_like(input_ids, IGNORE_INDEX)
    mask = torch.zeros_like(input_ids, dtype=torch.bool)
    expected, expected_labels = [], []
    picture = 0
    for index, row in enumerate(rows):
        out, out_labels = [], []
        for column, item in enumerate(row):
            mask[index, column] = True
            if item is None:
                input_ids[index, column] = IMAGE_TOKEN_INDEX
                tokens = [*visual[picture], *boxes[picture]]
                out += tokens
                out_labels += [IGNORE_INDEX] * len(tokens)
                picture += 1
            else:
                input_ids[index, column] = item
                labels[index, column] = item if item % 3 else IGNORE_INDEX
                out.append(embedding[item])
                out_labels.append(int(labels[index, column]))
        expected.append(out)
        expected_labels.append(out_labels)
    return Batch(input_ids, labels, mask, embedding, visual, boxes, expected, expected_labels)


batches = st.builds(
    make_batch,
    rows=st.lists(
        st.lists(st.one_of(st.none(), st.integers(0, VOCABULARY - 1)), min_size=1, max_size=8), min_size=1, max_size=4
    ),
    box_counts=st.lists(st.integers(0, 4), min_size=1, max_size=5),
    patches=st.integers(1, 6),
    seed=st.integers(0, 100),
)


class Merged(NamedTuple):
    """What the LLM reads."""

    inputs_embeds: Tensor
    labels: Tensor
    attention_mask: Tensor
    position_ids: Tensor


def merge(
    ids: Tensor,
    embeds: Tensor,
    visual: Tensor | None = None,
    boxes: list[Tensor] | None = None,
    labels: Tensor | None = None,
    attention_mask: Tensor | None = None,
    padding_side: str = "right",
) -> Merged:
    pieces = [] if visual is None else [[tokens] for tokens in visual]
    for own, tokens in zip(pieces, boxes or (), strict=False):
        own.append(tokens)
    data = {"input_ids": ids, "labels": labels, "attention_mask": attention_mask}
    layout: Layout = layout_of(data, pieces, padding_side)
    return Merged(splice(embeds, pieces, layout), layout.labels, layout.attention_mask, layout.position_ids)


def run(batch: Batch, **kwargs: object) -> Merged:
    embeds = batch.embedding[batch.input_ids.clamp(min=0)]
    return merge(batch.input_ids, embeds, batch.visual, batch.boxes, batch.labels, batch.attention_mask, **kwargs)


def test_golden_sequence(golden_sequence: dict[str, Tensor]) -> None:
    g = golden_sequence
    out = merge(
        g["input_ids"],
        g["embedding"][g["input_ids"].clamp(min=0)],
        g["visual_tokens"],
        [g["box_tokens_0"], g["box_tokens_1"]],
        g["labels"],
        g["attention_mask"],
    )
    torch.testing.assert_close(out.inputs_embeds, g["out_inputs_embeds"], rtol=1e-5, atol=1e-5)
    assert torch.equal(out.labels, g["out_labels"])
    assert torch.equal(out.attention_mask, g["out_attention_mask"].bool())
    assert torch.equal(out.position_ids, g["out_position_ids"])


@settings(max_examples=80, derandomize=True)
@given(batch=batches)
def test_rows_order_labels_mask_and_positions(batch: Batch) -> None:
    out = run(batch)
    lengths = [len(row) for row in batch.rows]
    longest = max(lengths)
    assert out.inputs_embeds.shape == (len(lengths), longest, WIDTH)
    assert out.labels.shape == out.attention_mask.shape == out.position_ids.shape == (len(lengths), longest)
    for index, length in enumerate(lengths):
        assert torch.equal(out.inputs_embeds[index, :length], torch.stack(batch.rows[index]))
        assert not out.inputs_embeds[index, length:].any()
        assert out.labels[index].tolist() == batch.row_labels[index] + [IGNORE_INDEX] * (longest - length)
        assert out.attention_mask[index].tolist() == [True] * length + [False] * (longest - length)
        assert out.position_ids[index].tolist() == list(range(length)) + [0] * (longest - length)


@settings(max_examples=50, derandomize=True)
@given(batch=batches)
def test_left_padding_is_right_padding_shifted(batch: Batch) -> None:
    right, left = run(batch), run(batch, padding_side="left")
    for index, row in enumerate(batch.rows):
        shift = right.labels.shape[1] - len(row)
        for name in Merged._fields:
            one, other = getattr(right, name)[index], getattr(left, name)[index]
            assert torch.equal(one.roll(shift, dims=0), other), name


@settings(max_examples=40, derandomize=True)
@given(batch=batches)
def test_a_row_does_not_depend_on_the_others(batch: Batch) -> None:
    together = run(batch)
    picture = 0
    for index, row in enumerate(batch.rows):
        count = int((batch.input_ids[index] == IMAGE_TOKEN_INDEX).sum())
        mine = slice(picture, picture + count)
        picture += count
        ids = batch.input_ids[index : index + 1]
        alone = merge(
            ids,
            batch.embedding[ids.clamp(min=0)],
            batch.visual[mine],
            batch.boxes[mine],
            batch.labels[index : index + 1],
            batch.attention_mask[index : index + 1],
        )
        for name in Merged._fields:
            assert torch.equal(getattr(alone, name)[0], getattr(together, name)[index, : len(row)]), name


@settings(max_examples=30, derandomize=True)
@given(batch=batches, side=st.sampled_from(["left", "right"]))
def test_masked_columns_leave_no_trace(batch: Batch, side: str) -> None:
    """Columns are masked wherever they stand and whatever id is in them, a placeholder included."""
    extra = torch.full((len(batch.input_ids), 2), IMAGE_TOKEN_INDEX)
    off = torch.zeros_like(extra, dtype=torch.bool)
    order = (lambda a, b: torch.cat([a, b], 1)) if side == "right" else (lambda a, b: torch.cat([b, a], 1))
    padded = batch._replace(
        input_ids=order(batch.input_ids, extra),
        labels=order(batch.labels, torch.full_like(extra, 7)),
        attention_mask=order(batch.attention_mask, off),
    )
    for one, other in zip(run(batch), run(padded), strict=True):
        assert torch.equal(one, other)


def test_text_only_rows_stay_one_row_each() -> None:
    ids = torch.tensor([[1, 2, 3], [4, 5, 0]])
    embeds = torch.randn(2, 3, WIDTH)
    out = merge(ids, embeds, attention_mask=torch.tensor([[1, 1, 1], [1, 1, 0]]))
    assert out.inputs_embeds.shape == (2, 3, WIDTH)
    assert torch.equal(out.inputs_embeds[0], embeds[0]) and torch.equal(out.inputs_embeds[1, :2], embeds[1, :2])
    assert (out.labels == IGNORE_INDEX).all()
    assert out.attention_mask.tolist() == [[True, True, True], [True, True, False]]


def test_boxes_follow_their_own_picture() -> None:
    ids = torch.tensor([[IMAGE_TOKEN_INDEX, 1, IMAGE_TOKEN_INDEX]])
    visual = torch.tensor([[[10.0]], [[20.0]]])
    boxes = [torch.tensor([[11.0], [12.0]]), torch.tensor([[21.0]])]
    out = merge(ids, torch.ones(1, 3, 1), visual, boxes)
    assert out.inputs_embeds.flatten().tolist() == [10, 11, 12, 1, 20, 21]
    without = merge(ids, torch.ones(1, 3, 1), visual)
    assert without.inputs_embeds.flatten().tolist() == [10, 1, 20]


def test_tokens_take_the_dtype_of_the_text_and_pass_gradients() -> None:
    ids = torch.tensor([[1, IMAGE_TOKEN_INDEX]])
    visual = torch.randn(1, 3, WIDTH, requires_grad=True)
    boxes = torch.randn(2, WIDTH, requires_grad=True)
    embeds = torch.randn(1, 2, WIDTH, dtype=torch.bfloat16, requires_grad=True)
    out = merge(ids, embeds, visual, [boxes])
    assert out.inputs_embeds.dtype == torch.bfloat16
    out.inputs_embeds.sum().backward()
    assert torch.equal(visual.grad, torch.ones_like(visual)) and torch.equal(boxes.grad, torch.ones_like(boxes))
    assert embeds.grad[0, 0].all() and not embeds.grad[0, 1].any()


def test_inputs_are_left_alone() -> None:
    batch = make_batch([[1, None, 3], [4]], [2], 3, 0)
    before = [tensor.clone() for tensor in batch[:5]]
    run(batch)
    assert all(torch.equal(one, other) for one, other in zip(before, batch[:5], strict=True))


@pytest.mark.parametrize("pictures", [0, 1, 3])
def test_number_of_pictures(pictures: int) -> None:
    ids = torch.tensor([[IMAGE_TOKEN_INDEX, 1], [2, IMAGE_TOKEN_INDEX]])
    visual = torch.zeros(pictures, 4, WIDTH) if pictures else None
    with pytest.raises(ValueError, match=f"2 placeholders in input_ids but {pictures} pictures in the batch"):
        merge(ids, torch.zeros(2, 2, WIDTH), visual)


def test_a_layout_for_other_numbers_of_tokens_is_refused() -> None:
    ids = torch.tensor([[IMAGE_TOKEN_INDEX, 1]])
    data = {"input_ids": ids, "layout": plan_layout(ids, [5])}
    with pytest.raises(ValueError, match=r"planned for placeholders of \[5\] tokens, the model gives \[4\]"):
        layout_of(data, [[torch.zeros(4, WIDTH)]])
