"""Keys and values with room: what attention gives is what it gives with copies, whatever is written and left out."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from mg_llava.models import generation
from mg_llava.models.generation import Decoding, generate
from mg_llava.models.room import ROOM, RoomyCache, closed_up, new_cache
from tests import toy
from tests.models.test_generation import after_prefixes, at_once


def test_rows_that_stay_are_not_moved() -> None:
    assert closed_up([0, 1, 2]) == [0, 1, 2] and closed_up([3]) == [3] and closed_up([]) == []
    found = closed_up([0, 2, 3, 5, 6])  # of 7 rows: 1 and 4 end
    assert sorted(found) == [0, 2, 3, 5, 6] and [found[place] for place in (0, 2, 3)] == [0, 2, 3]


def test_a_cache_is_that_of_copies() -> None:
    """Written one by one and several at once, beyond its room, with rows left out and taken twice."""
    random = torch.Generator().manual_seed(0)
    ours, plain, rows = RoomyCache(), DynamicCache(), list(range(6))
    for step, count in enumerate([5, 3, *[1] * (ROOM + 2), 2]):
        mask = torch.ones(len(rows), ours.get_seq_length() + count, dtype=torch.bool)
        masked = ours.masked(mask)
        new = torch.randn(2, 2, 6, 3, count, 4, generator=random)[:, :, rows]  # layers, keys and values
        for layer, (keys, values) in enumerate(new):
            found, wanted = ours.update(keys, values, layer), plain.update(keys, values, layer)
            for own, other in zip(found, wanted, strict=True):
                assert own.shape[2] == masked.shape[1] and torch.equal(own[:, :, masked[0]], other)
                assert not own[:, :, ~masked[0]].any()
        assert ours.get_seq_length() == plain.get_seq_length() == mask.shape[1]
        if step in (1, 4):
            kept = closed_up([place for place in range(len(rows)) if place != step])
            rows = [rows[place] for place in kept]
            ours.keep(kept)
            plain = generation._select(plain, torch.tensor(kept))
        if step == 7:
            again = torch.tensor([2, 0, 2])
            rows = [rows[place] for place in again.tolist()]
            before, ours, plain = ours, ours.of(again), generation._select(plain, again)
            assert len(before.key_cache[0]) == 4 and before.key_cache[0].data_ptr() != ours.key_cache[0].data_ptr()


@pytest.mark.parametrize("way", [at_once, after_prefixes])
def test_steps_are_those_of_copies(way: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = AutoModelForCausalLM.from_pretrained(toy.write_llm(tmp_path / "llm")).eval()
    limits, decoding = [3, 30, 1, 24, 9], Decoding(limit=30)
    found = list(generate(llm, way(llm), decoding, limits))
    assert type(new_cache(llm, 1)) is DynamicCache
    monkeypatch.setattr(generation, "new_cache", lambda *_: DynamicCache())
    wanted = list(generate(llm, way(llm), decoding, limits))
    assert len(found) == len(wanted) == 30
    for step, other in zip(found, wanted, strict=True):
        assert (step.rows, step.ids, step.ended) == (other.rows, other.ids, other.ended)
        assert torch.allclose(step.scores, other.scores, atol=1e-5)
