"""Keys and values with room for ids to come: a step writes its own, and copies nothing of those before.

Shapes: B rows, H heads of keys, q positions to come, C positions with their room, d channels of a head.
"""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

ROOM = 16
"""Positions that are added to those that are needed when there is no room left."""
_KINDS = ("llama", "qwen2")
"""Models whose attention takes its mask as it is given, and asks a cache for its length alone."""


class RoomyCache(DynamicCache):
    """Gives attention its room as well, as zeros, which a mask of :meth:`masked` hides."""

    def __init__(self) -> None:
        super().__init__()
        self.lengths: list[int] = []

    def get_seq_length(self, layer_idx: int | None = 0) -> int:
        """Positions that have keys and values."""
        return self.lengths[layer_idx or 0] if self.lengths else 0

    def masked(self, mask: Tensor) -> Tensor:
        """A mask of positions before and of q to come, as ``(B, C)``; there is room for these then."""
        self.reserve(mask.shape[1] - self.get_seq_length())
        capacity = self.key_cache[0].shape[2] if self.key_cache else mask.shape[1]
        return F.pad(mask, (0, capacity - mask.shape[1]))

    def reserve(self, count: int) -> None:
        """Have room for q positions; what has none yet gets it with its first ones."""
        for kept in (self.key_cache, self.value_cache):
            for number, (layer, length) in enumerate(zip(kept, self.lengths, strict=True)):
                if length + count > layer.shape[2]:
                    kept[number] = F.pad(layer[:, :, :length], (0, 0, 0, count + ROOM))

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any) -> tuple[Tensor, Tensor]:
        """Write keys and values ``(B, H, q, d)`` into their room; all of them, ``(B, H, C, d)``."""
        if layer_idx == len(self.lengths):
            self.key_cache.append(key_states)
            self.value_cache.append(value_states)
            self.lengths.append(key_states.shape[2])
            return key_states, value_states
        keys, values, start = self.key_cache[layer_idx], self.value_cache[layer_idx], self.lengths[layer_idx]
        end = self.lengths[layer_idx] = start + key_states.shape[2]
        keys[:, :, start:end], values[:, :, start:end] = key_states, value_states
        return keys, values

    def of(self, rows: Tensor) -> "RoomyCache":
        """A copy of some rows."""
        found = RoomyCache()
        found.lengths = list(self.lengths)
        for own, kept in ((found.key_cache, self.key_cache), (found.value_cache, self.value_cache)):
            own += [layer.index_select(0, rows.to(layer.device)) for layer in kept]
        return found

    def keep(self, rows: Sequence[int]) -> None:
        """Leave the other rows out; only those that are not in their place yet are copied."""
        moved = {place: row for place, row in enumerate(rows) if place != row}
        for kept in (self.key_cache, self.value_cache):
            for layer in kept:
                if moved:
                    layer[list(moved)] = layer[list(moved.values())]
            kept[:] = [layer[: len(rows)] for layer in kept]


def new_cache(llm: Any, rows: int) -> DynamicCache:
    """A cache for an LLM; with room where several rows make copying costly and its attention can take a mask."""
    cache, config = DynamicCache(), llm.config
    has_lists = hasattr(cache, "key_cache")  # it has layers of its own since transformers 5
    attends = getattr(config, "_attn_implementation", None) in ("sdpa", "eager")
    is_known = config.model_type in _KINDS and getattr(config, "sliding_window", None) is None
    return RoomyCache() if rows > 1 and has_lists and attends and is_known else cache


def closed_up(kept: Sequence[int]) -> list[int]:
    """Places of rows that go on, in an order in which most of them stay where they are: the last ones fill gaps."""
    going, last = set(kept), [place for place in kept if place >= len(kept)]
    return [place if place in going else last.pop() for place in range(len(kept))]
