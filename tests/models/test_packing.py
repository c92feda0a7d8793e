"""Packed rows: every sample once, little waste, and the loss and gradients of padded rows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mg_llava.batch import plan_layout
from mg_llava.data.collate import collate
from mg_llava.models.packing import block_mask, check_packing, pack, pair_cost, plan_rows
from mg_llava.models.systems.mg_llava import MGLLaVA
from mg_llava.tokens import IGNORE_INDEX
from tests import toy

MIXED = [(9, 1), (6, 0), (12, 2), (7, 1), (5, 0)]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(1, 100), st.sampled_from([0.0, 0.01, 1.0]))
def test_every_sample_is_in_one_row_and_no_row_is_longer_than_it_must_be(lengths, capacity, pair):
    rows = plan_rows(lengths, capacity, pair)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths))) and all(rows)
    width = max(sum(lengths[number] for number in row) for row in rows)
    assert width <= max(capacity, *lengths)
    assert len(rows) * width <= len(lengths) * max(lengths)  # never more than padded rows


def test_rows_waste_little_unless_pairs_cost_more():
    lengths = [600, 550, 500, 450, 400, 350, 300, 200]
    assert plan_rows(lengths, 10_000) == [list(range(8))]  # one row has no padding at all
    paired = plan_rows(lengths, 10_000, pair=1 / 800)
    assert sorted(sum(lengths[number] for number in row) for row in paired) == [800, 850, 850, 850]
    assert len(plan_rows([1100] * 16, 4096)) == 16  # of equals the shortest rows


@pytest.mark.parametrize(("attention", "cost"), [("flash_attention_2", 0), ("sdpa", 1 / (6 * 32))])
def test_pairs_cost_nothing_where_samples_are_computed_apart(toy_paths, attention, cost):
    llm = toy.build_model(toy_paths).llm
    llm.config._attn_implementation = attention
    assert pair_cost(llm) == cost


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 30), st.integers(0, 3))
def test_packing_keeps_what_a_sample_has(lengths, capacity, seed):
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    ids = torch.randint(1, 90, mask.shape, generator=generator) * mask
    labels = ids.masked_fill(torch.rand(mask.shape, generator=generator) < 0.4, IGNORE_INDEX)
    layout = plan_layout(ids, [], mask, labels)
    packed, samples, stretches = pack(layout, capacity)
    pieces = samples.flatten().split(list(stretches))  # each of one sample, or of padding, and whole
    assert sorted(len(own) for own in pieces if len(own) and own[0] >= 0) == sorted(lengths)
    assert all(len(own.unique()) <= 1 for own in pieces)
    embeds, before = ids.flatten(), labels.masked_fill(~mask, IGNORE_INDEX)
    for number, length in enumerate(lengths):
        found = samples == number
        assert packed.source[found].tolist() == layout.source[number, :length].tolist()
        assert embeds[packed.source[found] - 1].tolist() == ids[number, :length].tolist()
        assert packed.position_ids[found].tolist() == list(range(length))
        assert packed.labels[found].tolist() == [IGNORE_INDEX, *before[number, 1:length].tolist()]
    assert int(packed.attention_mask.sum()) == sum(lengths) == sum(packed.lengths)
    empty = ~packed.attention_mask
    assert (
        (packed.labels[empty] == IGNORE_INDEX).all()
        and not packed.source[empty].any()
        and (samples[empty] == -1).all()
    )
    # the same tokens are predicted, in the same order, from the tokens before them
    predicted, wanted = (one.labels.flatten()[one.targets + 1] for one in (packed, layout))
    assert predicted.tolist() == wanted.tolist() and int((labels[:, 1:] * mask[:, 1:] > 0).sum()) == len(wanted)
    assert packed.source.flatten()[packed.targets].tolist() == layout.source.flatten()[layout.targets].tolist()


def test_a_position_sees_its_own_sample_alone():
    mask = block_mask(torch.tensor([[0, 0, 1, 1, -1]]), torch.float32)[0, 0] == 0
    assert mask.int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 0, 1],
    ]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("capacity", [1, 40, 10_000])
def test_loss_and_gradients_are_those_of_padded_rows(toy_paths, attention, capacity):
    llm = toy.model_config(toy_paths, "full")["llm"] | {"attention": attention}
    model: MGLLaVA = toy.build_model(toy_paths, "full", llm=llm).train()
    batch = collate(toy.make_batch(MIXED, seed=4))["data"]

    def step() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model.zero_grad(set_to_none=True)
        loss = model(batch)["loss"]
        loss.backward()
        return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    expected, gradients = step()
    model.packing = capacity
    packed_loss, packed_gradients = step()
    torch.testing.assert_close(packed_loss, expected, rtol=1e-5, atol=1e-5)
    assert packed_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(packed_gradients[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_an_llm_that_may_mix_samples_is_refused():
    class Foreign(torch.nn.Module):
        config = type("Config", (), {"_attn_implementation": "sdpa"})()

    with pytest.raises(ValueError, match=r"packing needs an LLM of transformers.*Foreign with sdpa.*packing=None"):
        check_packing(Foreign())
