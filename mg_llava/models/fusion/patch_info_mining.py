"""Patch info mining (Mini-Gemini): each low-resolution token reads the high-resolution cells inside its own patch.

Shapes: B pictures, N low-resolution tokens on an h x h grid, C_l low channels, C_r channels that are read, H side of
the map that is read, m = H / h.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mg_llava.models.attention import SingleHeadAttention
from mg_llava.models.interfaces import Fusion, Seen, Spec, token_grid
from mg_llava.models.vision import is_split
from mg_llava.registry import MODELS

_KEPT = 16 << 20
"""Bytes of a picture's cells up to which they are kept for the backward pass."""


@MODELS.register_module()
class PatchInfoMiningFusion(Fusion):
    """Patch info mining over all stages, upsampled to the finest one and concatenated.

    A token is added what it reads by attention with one head from the m * m cells of its patch. The values begin at
    random, so that before training the tokens are already changed, unless ``zero_init`` is set.

    Args:
        low_channels: C_l.
        high_channels: C_r, of all stages together.
        zero_init: Begin as the identity on the low-resolution tokens.
    """

    reads: Literal["last", "all"] = "all"

    def __init__(self, low_channels: int, high_channels: int, zero_init: bool = False) -> None:
        super().__init__()
        self.low_channels, self.high_channels = low_channels, high_channels
        self.out_channels = low_channels
        self.attention = SingleHeadAttention(low_channels, high_channels, zero_init)

    @classmethod
    def conflicts(cls, low: Spec, high: Spec, settings: Mapping[str, Any]) -> list[str]:
        """See :meth:`Fusion.conflicts`: a map whose cells do not fall into patches."""
        strides = high.stage_strides if cls.reads == "all" else high.stage_strides[-1:]
        side = high.image_size // min(strides)
        if side % low.grid == 0:
            return []
        step = math.lcm(low.grid * min(strides), max(high.stage_strides))  # of which the encoder takes multiples
        size = -(-low.image_size // step) * step
        return [
            f"the finest map that {cls.__name__} reads has {side} x {side} cells ({high.image_size} px), which "
            f"{low.grid} x {low.grid} tokens ({low.image_size} px) do not divide; use image_size={size} or a multiple "
            "of it for the high-resolution encoder"
        ]

    def forward(self, low: Tensor, high: Seen) -> Tensor:
        """``(B, N, C_l)`` to the same shape.

        The cells of all pictures together are large: they are made for one picture at a time, and where they are not
        small, again in the backward pass. Processes that gather split parameters take all at once, because they must
        gather equally often.

        Raises:
            ValueError: If N is not a square number, or does not divide the map into patches.
        """
        maps = high.maps if self.reads == "all" else high.maps[-1:]
        step = len(low) if is_split(self) else 1
        pieces = zip(low.split(step), *(item.split(step) for item in maps), strict=True)
        return torch.cat([self._mine_again(*piece) for piece in pieces])

    def _mine_again(self, *piece: Tensor) -> Tensor:
        """As ``_mine``, keeping nothing large for the backward pass."""
        finest, channels = piece[1], sum(item.shape[1] for item in piece[1:])
        # of one picture, however many there are: processes that gather split parameters must choose alike
        is_small = finest[0, 0].numel() * channels * finest.element_size() <= _KEPT
        if piece[0].is_meta or is_small or not torch.is_grad_enabled():
            return self._mine(*piece)
        return checkpoint(self._mine, *piece, use_reentrant=False, preserve_rng_state=False)

    def _mine(self, low: Tensor, *maps: Tensor) -> Tensor:
        cells = patches(stack_stages(maps), token_grid(low.shape[1]))  # (B, N, m * m, C_r)
        attend = self.attention if is_split(self) else self.attention.read_once
        read = attend(low.flatten(0, 1)[:, None], cells.flatten(0, 1))  # (B * N, 1, C_l)
        return low + read.view_as(low)


@MODELS.register_module()
class LastStagePatchInfoMiningFusion(PatchInfoMiningFusion):
    """Patch info mining over the last stage; where its grid is that of the tokens, each reads a single cell."""

    reads = "last"


def stack_stages(maps: Sequence[Tensor]) -> Tensor:
    """Stages ``(B, C_s, H_s, W_s)``, upsampled bilinearly to the first and concatenated: ``(B, sum C_s, H, W)``."""
    size = maps[0].shape[-2:]
    rest = [F.interpolate(item.float(), size=size, mode="bilinear", align_corners=False).to(item) for item in maps[1:]]
    return torch.cat([maps[0], *rest], dim=1)


def patches(whole: Tensor, grid: int) -> Tensor:
    """The cells of each patch of a ``grid`` x ``grid`` lattice: ``(B, C, H, H)`` to ``(B, grid * grid, m * m, C)``.

    Raises:
        ValueError: The grid does not divide the map.
    """
    side = whole.shape[-1]
    if side % grid:
        raise ValueError(f"a map of {side} x {side} cells does not fall into {grid} x {grid} patches")
    m = side // grid
    rows = whole.unflatten(3, (grid, m)).unflatten(2, (grid, m))  # (B, C, grid, m, grid, m)
    return rows.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)
