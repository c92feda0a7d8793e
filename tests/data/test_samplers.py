"""Batches of similar length and one modality: any mix, any number of processes, every sample once."""

import itertools
import random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset
from xtuner.dataset.samplers.length_grouped import get_length_grouped_indices

from mg_llava.data.samplers import LengthGroupedSampler, TokenBatchSampler, group_by_length


class Lengths:
    lengths = property(lambda self: pytest.fail("a name of the data set's own, which says nothing to samplers"))

    def __init__(self, lengths):
        self.modality_length = lengths

    def __len__(self):
        return len(self.modality_length)


@given(st.lists(st.integers(-90, 90), min_size=1, max_size=60), st.integers(1, 5), st.integers(1, 4), st.booleans())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_sampler_with_any_mix_and_any_number_of_processes(monkeypatch, lengths, batch, world, round_up):
    parts = []
    for rank in range(world):
        monkeypatch.setattr("mg_llava.data.samplers.get_dist_info", lambda rank=rank: (rank, world))
        sampler = LengthGroupedSampler(Lengths(lengths), batch, seed=5, round_up=round_up)
        parts.append(list(sampler))
        assert len(sampler) == len(parts[-1]) and list(sampler) == parts[-1]
    assert {index for part in parts for index in part} == set(range(len(lengths)))
    if round_up:
        assert {len(part) for part in parts} == {-(-len(lengths) // (batch * world)) * batch}
    else:
        assert sum(map(len, parts)) == len(lengths)


def test_sampler_equals_xtuner(monkeypatch):
    from xtuner.dataset.samplers import LengthGroupedSampler as XTunerSampler

    lengths = [(-1) ** (i % 3) * (1 + i * 7 % 40) for i in range(203)]
    dataset = ConcatDataset([Lengths(lengths[:100]), Lengths(lengths[100:])])
    for epoch in (0, 1):
        ours = LengthGroupedSampler(dataset, 4, seed=1)
        theirs = XTunerSampler(dataset, 4, length_property="modality_length", seed=1)
        ours.set_epoch(epoch)
        theirs.set_epoch(epoch)
        assert list(ours) == list(theirs)
    nested = ConcatDataset([dataset, Lengths([5])])
    assert len(list(LengthGroupedSampler(nested, 4, seed=1))) == 204


@given(st.lists(st.integers(-5, 5).filter(bool), min_size=1, max_size=80), st.integers(1, 9), st.integers(0, 3))
@settings(max_examples=200)
def test_order_is_that_of_xtuners_function(lengths, group, seed):
    ours, theirs = (torch.Generator().manual_seed(seed) for _ in range(2))
    found = group_by_length(np.array(lengths), group, ours)
    assert found.tolist() == get_length_grouped_indices(lengths, group, generator=theirs)
    assert torch.equal(ours.get_state(), theirs.get_state())


def test_sampler_groups_by_modality_and_epoch():
    lengths = [5] * 40 + [-9] * 40
    sampler = LengthGroupedSampler(Lengths(lengths), 4, seed=0)
    order = list(sampler)
    mixed = [len({lengths[i] for i in order[k : k + 4]}) for k in range(0, 80, 4)]
    assert sum(mixed) <= len(mixed) + 1
    sampler.set_epoch(1)
    assert list(sampler) != order
    sampler.set_epoch(0)
    assert list(sampler) == order


def test_sampler_faults():
    with pytest.raises(TypeError, match="list has no 'modality_length'"):
        LengthGroupedSampler([1, 2], 1, seed=0)
    with pytest.raises(ValueError, match="0 samples and 0 lengths"):
        LengthGroupedSampler(Lengths([]), 1, seed=0)


@given(
    st.lists(st.one_of(st.integers(1, 3000), st.integers(-3000, -1)), min_size=1, max_size=200),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(0, 3),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_index_once_and_processes_disjoint(monkeypatch, lengths, batch, world, epoch):
    def parts(seed):
        found = []
        for rank in range(world):
            monkeypatch.setattr("mg_llava.data.samplers.get_dist_info", lambda rank=rank: (rank, world))
            sampler = LengthGroupedSampler(Lengths(lengths), batch, seed=seed)
            sampler.set_epoch(epoch)
            found.append(list(sampler))
        return found

    first = parts(7)
    # As the processes take turns: the whole order, then its beginning again to fill the last step.
    together = [index for step in zip(*first, strict=True) for index in step]
    count = len(lengths)
    assert sorted(together[:count]) == list(range(count))
    assert together[count:] == (together[:count] * (batch * world))[: len(together) - count]
    assert len(together) - count < batch * world and len(together) % (batch * world) == 0
    assert parts(7) == first


def test_steps_are_of_one_modality_and_similar_length():
    rng = random.Random(0)
    lengths = [rng.randint(600, 2000) for _ in range(900)] + [-rng.randint(5, 500) for _ in range(300)]
    rng.shuffle(lengths)
    batch = 8
    order = list(LengthGroupedSampler(Lengths(lengths), batch, seed=0))
    steps = [[lengths[i] for i in order[at : at + batch]] for at in range(0, len(order), batch)]
    # The last groups of both modalities are one.
    assert sum(min(step) < 0 < max(step) for step in steps) <= 2
    spread = np.mean([max(map(abs, step)) - min(map(abs, step)) for step in steps])
    shuffled = rng.sample(lengths, len(lengths))
    random_steps = [shuffled[at : at + batch] for at in range(0, len(shuffled), batch)]
    assert spread < 0.2 * np.mean([max(map(abs, step)) - min(map(abs, step)) for step in random_steps])


def test_one_modality_alone():
    for sign in (1, -1):
        order = list(LengthGroupedSampler(Lengths([sign * (1 + i % 9) for i in range(50)]), 4, seed=0))
        assert sorted(order[:50]) == list(range(50)) and len(order) == 52


def test_processes_with_other_lengths_are_an_error(monkeypatch):
    monkeypatch.setattr("mg_llava.data.samplers.all_gather_object", lambda digest: [digest, digest, "other"])
    with pytest.raises(RuntimeError, match=r"process 2 sees other lengths .* one token_cache folder"):
        LengthGroupedSampler(Lengths([1, 2, 3]), 1, seed=0)


LENGTHS = st.lists(st.one_of(st.integers(1, 600), st.integers(-600, -1)), min_size=1, max_size=150)


@given(LENGTHS, st.integers(1, 9), st.integers(600, 2000), st.integers(1, 4))
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_batches_by_tokens_stay_within_the_limit_in_any_number_of_processes(monkeypatch, lengths, most, tokens, world):
    counts, orders = set(), []
    for epoch in (0, 1):
        parts = []
        for rank in range(world):
            monkeypatch.setattr("mg_llava.data.samplers.get_dist_info", lambda rank=rank: (rank, world))
            sampler = TokenBatchSampler(LengthGroupedSampler(Lengths(lengths), most, seed=3), most, tokens)
            sampler.sampler.set_epoch(epoch)
            parts.append(list(sampler))
            counts |= {len(sampler), len(parts[-1])}
            sampler.skipped = 1
            assert list(sampler) == parts[-1][1:] and list(sampler) == parts[-1], "a resumed run leaves out once"
        together = [batch for step in zip(*parts, strict=True) for batch in step]
        for batch in together:
            assert len(batch) <= most and len(batch) * max(abs(lengths[i]) for i in batch) <= tokens
        once = {tuple(batch) for batch in together}
        assert sorted(index for batch in once for index in batch) == list(range(len(lengths)))
        assert len(together) - len(once) < world
        orders.append(together)
    assert len(counts) == 1, "all processes and epochs have equally many batches"
    assert len(lengths) < 100 or orders[0] != orders[1]


def test_batches_by_tokens_waste_little_and_mix_what_has_equal_length():
    rng = random.Random(0)
    lengths = [rng.choice((5000, 700, 60)) + rng.randint(0, 40) for _ in range(600)]
    sampler = TokenBatchSampler(LengthGroupedSampler(Lengths(lengths), 64, seed=0), 64, 8192)
    batches = list(sampler)
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    assert padded < 1.03 * sum(lengths)
    assert {len(b) for b in batches if lengths[b[0]] >= 5000} == {1} and max(map(len, batches)) == 64
    sampler.sampler.set_epoch(1)
    assert {frozenset(b) for b in sampler} != {frozenset(b) for b in batches}


def test_batches_by_tokens_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="sample 1 has 90 tokens, a batch at most 64; raise the limit"):
        TokenBatchSampler(LengthGroupedSampler(Lengths([5, -90]), 2, seed=0), 2, 64)
    with pytest.raises(TypeError, match=r"list knows no lengths, .* use LengthGroupedSampler"):
        TokenBatchSampler([1, 2], 2, 64)


@pytest.mark.parametrize("round_up", [True, False])
def test_steps_hold_the_same_samples_in_any_number_of_processes(monkeypatch, round_up):
    """Eight samples a step, whoever trains them: the k-th micro-batches of all processes are the k-th eight."""
    lengths = [(-1) ** (i % 3) * (i % 17 + 1) for i in range(100)]
    steps = []
    for world in (1, 2, 4, 8):
        parts = []
        for rank in range(world):
            monkeypatch.setattr("mg_llava.data.samplers.get_dist_info", lambda rank=rank, world=world: (rank, world))
            sampler = LengthGroupedSampler(Lengths(lengths), 8 // world, seed=3, round_up=round_up)
            sampler.set_epoch(2)
            parts.append(list(sampler))
        together = [index for group in itertools.zip_longest(*parts) for index in group if index is not None]
        steps.append(together)
    assert steps[0] == steps[1] == steps[2] == steps[3]
