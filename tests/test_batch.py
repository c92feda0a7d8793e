"""The layout of a batch, token by token, for any mix of rows, placeholders, labels, masks and padding."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mg_llava.batch import Layout, TokenCount, plan_layout
from mg_llava.tokens import IGNORE_INDEX, IMAGE_TOKEN_INDEX, VIDEO_TOKEN_INDEX


class Case(NamedTuple):
    """A random batch: ids with masked columns anywhere, labels, and tokens of each placeholder."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    counts: list[int]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rows, width = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    some_id = st.one_of(st.integers(0, 30), st.sampled_from([IMAGE_TOKEN_INDEX, VIDEO_TOKEN_INDEX]))
    cells = rows * width
    ids = torch.tensor(draw(st.lists(some_id, min_size=cells, max_size=cells))).view(rows, width)
    mask = torch.tensor(draw(st.lists(st.booleans(), min_size=cells, max_size=cells))).view(rows, width)
    labels = st.one_of(st.just(IGNORE_INDEX), st.integers(0, 30))
    labels = torch.tensor(draw(st.lists(labels, min_size=cells, max_size=cells))).view(rows, width)
    found = int((mask & (ids < 0)).sum())
    return Case(ids, mask, labels, draw(st.lists(st.integers(0, 5), min_size=found, max_size=found)))


def naive(case: Case, side: str) -> tuple[list[list[int]], list[list[int]]]:
    """Place in the table and label of every position, appended one by one; None for padding."""
    next_token, placeholder = 1 + case.input_ids.numel(), 0
    sources, labels = [], []
    for row, ids in enumerate(case.input_ids.tolist()):
        source: list[int] = []
        label: list[int] = []
        for column, token in enumerate(ids):
            if not case.attention_mask[row, column]:
                continue
            if token >= 0:
                source.append(1 + row * len(ids) + column)
                label.append(int(case.labels[row, column]))
                continue
            for _ in range(case.counts[placeholder]):
                source.append(next_token)
                label.append(IGNORE_INDEX)
                next_token += 1
            placeholder += 1
        sources.append(source)
        labels.append(label)
    return sources, labels


@settings(max_examples=200, derandomize=True)
@given(case=cases(), side=st.sampled_from(["left", "right"]))
def test_every_position_is_where_a_loop_puts_it(case: Case, side: str) -> None:
    layout = plan_layout(case.input_ids, case.counts, case.attention_mask, case.labels, side)
    sources, labels = naive(case, side)
    longest = max(map(len, sources))
    targets = []
    for row, (source, label) in enumerate(zip(sources, labels, strict=True)):
        empty = longest - len(source)
        before, after = (empty, 0) if side == "left" else (0, empty)
        assert layout.source[row].tolist() == [0] * before + source + [0] * after
        assert layout.labels[row].tolist() == [IGNORE_INDEX] * before + label + [IGNORE_INDEX] * after
        assert layout.attention_mask[row].tolist() == [False] * before + [True] * len(source) + [False] * after
        assert layout.position_ids[row].tolist() == [0] * before + list(range(len(source))) + [0] * after
        targets += [row * longest + before + i for i in range(len(source) - 1) if label[i + 1] != IGNORE_INDEX]
    assert layout.targets.tolist() == targets
    assert layout.lengths == tuple(map(len, sources)) and layout.counts == tuple(case.counts)
    for part in layout[:5]:
        assert part.dtype == (torch.bool if part is layout.attention_mask else torch.int64)


@settings(max_examples=50, derandomize=True)
@given(case=cases())
def test_inputs_are_left_alone_and_share_no_memory(case: Case) -> None:
    before = [tensor.clone() for tensor in case[:3]]
    layout = plan_layout(case.input_ids, case.counts, case.attention_mask, case.labels)
    for part in layout[:5]:
        part.fill_(1)
    assert all(torch.equal(one, other) for one, other in zip(before, case[:3], strict=True))


def test_defaults_are_no_labels_and_every_column() -> None:
    layout = plan_layout(torch.tensor([[7, IMAGE_TOKEN_INDEX, 8], [IMAGE_TOKEN_INDEX, 9, 0]]), [2, 0])
    assert layout.source.tolist() == [[1, 7, 8, 3], [5, 6, 0, 0]]
    assert not len(layout.targets) and (layout.labels == IGNORE_INDEX).all()


@pytest.mark.parametrize("counts", [[], [4], [4, 4, 4]])
def test_number_of_placeholders(counts: list[int]) -> None:
    ids = torch.tensor([[IMAGE_TOKEN_INDEX, 1], [2, IMAGE_TOKEN_INDEX]])
    with pytest.raises(ValueError, match=f"2 placeholders in input_ids but {len(counts)} pictures in the batch"):
        plan_layout(ids, counts)


def test_other_negative_ids_are_refused() -> None:
    with pytest.raises(ValueError, match=r"input_ids holds -100; .* are -200, -201"):
        plan_layout(torch.tensor([[1, IGNORE_INDEX]]), [1])


def test_moving_keeps_numbers_and_kind() -> None:
    layout = plan_layout(torch.tensor([[1, IMAGE_TOKEN_INDEX]]), [3])
    moved = layout.to("meta")
    assert isinstance(moved, Layout) and moved.lengths == (4,) and moved.counts == (3,)
    assert all(part.device.type == "meta" for part in moved[:5])


def test_tokens_of_a_placeholder() -> None:
    assert TokenCount(576)(1, 12) == 588
    assert TokenCount(576)(8, 0) == 8 * 576
    assert TokenCount(0, per_box=0, per_media=32)(1, 12) == 32
