"""The resampler: queries read the tokens of both encoders, and take the place of the projector.

Shapes: B pictures, N low-resolution tokens, C_l channels of tokens, S tokens that are read, g side of the grid of
queries, D hidden size of the LLM.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mg_llava.models.fusion.grids import ConvolvedFusion, UnequalGrids
from mg_llava.models.interfaces import Seen
from mg_llava.registry import MODELS

CHANNELS_PER_HEAD = 128


@MODELS.register_module()
class ResamplerFusion(ConvolvedFusion):
    """L' and H' of Conv-Gate one after the other, for a :class:`ResamplerProjector` to read.

    The first N tokens are ``low`` itself before training, the others zero.

    Args:
        low_channels: C_l.
        high_channels: Channels of the high-resolution map.
        unequal_grids: As for :class:`~mg_llava.models.fusion.grids.GridFusion`.
    """

    def __init__(self, low_channels: int, high_channels: int, unequal_grids: UnequalGrids = "error") -> None:
        super().__init__(low_channels, high_channels, unequal_grids)
        self.reset_parameters()

    def out_tokens(self, tokens: int) -> int:
        """See :meth:`Fusion.out_tokens`."""
        return 2 * tokens

    def forward(self, low: Tensor, high: Seen) -> Tensor:
        """``(B, N, C_l)`` to ``(B, 2 N, C_l)``."""
        return torch.cat(self.convolve(low, high), dim=1)


@MODELS.register_module()
class ResamplerProjector(nn.Module):
    """Queries on a grid that read all tokens by one attention, as in Qwen-VL; in place of a projector.

    Positions are sines and cosines. Tokens that are several times as many as the queries lie on as many copies of the
    grid, and have its positions in each.

    Args:
        in_channels: C_l.
        out_channels: D.
        grid: g, that of the low-resolution encoder, which is the default, or 1: the places of tokens on another grid
            would be mixed up.
        heads: Most attention heads, of which as many are taken as divide D; None for one for every 128 of C_l.

    Raises:
        ValueError: ``grid`` is no number of at least 1, or ``heads`` is below 1.
    """

    def __init__(self, in_channels: int, out_channels: int, grid: int, heads: int | None = None) -> None:
        super().__init__()
        if not isinstance(grid, int) or grid < 1:
            raise ValueError(f"grid is {grid!r}; it must be a whole number of at least 1, or be left out")
        if heads is not None and heads < 1:
            raise ValueError(f"heads is {heads}, must be at least 1; None takes one for {CHANNELS_PER_HEAD} channels")
        self.in_channels, self.out_channels, self.grid = in_channels, out_channels, grid
        self.query = nn.Parameter(torch.empty(grid**2, out_channels))
        nn.init.trunc_normal_(self.query, std=0.02)
        self.kv_proj = nn.Linear(in_channels, out_channels, bias=False)
        self.ln_q, self.ln_kv, self.ln_post = (nn.LayerNorm(out_channels, eps=1e-6) for _ in range(3))
        most = max(1, in_channels // CHANNELS_PER_HEAD) if heads is None else heads
        self.attn = nn.MultiheadAttention(out_channels, math.gcd(out_channels, most), batch_first=True)
        self.proj = nn.Parameter(out_channels**-0.5 * torch.randn(out_channels, out_channels))

    @classmethod
    def conflicts(cls, tokens: int, settings: Mapping[str, Any]) -> list[str]:
        """Reasons why it cannot read this many tokens, each with the fix."""
        grid, own = settings["grid"], settings["encoder_tokens"]
        if tokens % grid**2:
            return [
                f"the projector has {grid} x {grid} queries, and the {tokens} tokens of a canvas are no multiple of "
                "them; leave out its grid, or the fusion"
            ]
        if grid > 1 and grid**2 not in (own, tokens):
            return [
                f"the projector has {grid} x {grid} queries, and the {tokens} tokens of a canvas are on another grid, "
                "on which their places would be mixed up; leave out its grid"
            ]
        return []

    def out_tokens(self, tokens: int) -> int:
        """Tokens of a canvas after it."""
        return self.grid**2

    def forward(self, tokens: Tensor) -> Tensor:
        """``(B, S, C_l)`` to ``(B, g * g, D)``."""
        read = self.ln_kv(self.kv_proj(tokens))
        positions = grid_positions(self.grid, self.query.shape[1], read.device).to(read)  # (g * g, D)
        keys = read + positions.repeat(tokens.shape[1] // self.grid**2, 1)
        query = (self.ln_q(self.query) + positions).expand(len(tokens), -1, -1)
        found, _ = self.attn(query, keys, read, need_weights=False)
        return self.ln_post(found) @ self.proj


def grid_positions(side: int, channels: int, device: torch.device | None = None) -> Tensor:
    """Sines and cosines of the places of a grid, row by row: the column in the first half of the channels.

    Returns:
        ``(side * side, channels)`` float32; each half holds its sines before its cosines.
    """
    quarter = -(-channels // 4)  # what is too much of other widths is cut off
    frequencies = 10000 ** (-torch.arange(quarter, device=device) / quarter)
    angles = torch.arange(side, device=device)[:, None] * frequencies  # (side, quarter)
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # (side, 2 * quarter)
    columns, rows = axis[None].expand(side, -1, -1), axis[:, None].expand(-1, side, -1)
    return torch.cat([columns, rows], dim=-1).flatten(0, 1)[:, :channels]
