"""Fewer tokens for the frames of a video.

Shapes: P visual tokens of a frame on a grid, D hidden size of the LLM.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from mg_llava.models.interfaces import FramePooler, token_grid
from mg_llava.registry import MODELS


@MODELS.register_module()
class FramePooling(FramePooler):
    """The mean of every ``side`` x ``side`` projected tokens of a frame; at the right and lower edge of fewer.

    Args:
        side: Tokens along each axis that become one.

    Raises:
        ValueError: ``side`` is below 1.
    """

    def __init__(self, side: int = 2) -> None:
        super().__init__()
        if side < 1:
            raise ValueError(f"side is {side}, must be at least 1")
        self.side = side

    @classmethod
    def conflicts(cls, tokens: int, settings: Mapping[str, Any]) -> list[str]:
        """See :meth:`FramePooler.conflicts`."""
        if math.isqrt(tokens) ** 2 == tokens:
            return []
        return [
            f"{tokens} tokens come to it, which form no square grid to pool; use a projector that makes one of them, "
            "such as ResamplerProjector, or another fusion"
        ]

    def out_tokens(self, tokens: int) -> int:
        """See :meth:`FramePooler.out_tokens`."""
        return (-(-token_grid(tokens) // self.side)) ** 2

    def forward(self, tokens: Tensor) -> Tensor:
        """See :meth:`FramePooler.forward`."""
        grid = token_grid(len(tokens))
        cells = tokens.T.unflatten(1, (grid, grid))[None]  # (1, D, g, g)
        pooled = F.avg_pool2d(cells, self.side, ceil_mode=True, count_include_pad=False)
        return pooled[0].flatten(1).T
