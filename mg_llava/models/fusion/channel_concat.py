"""Channel concatenation, and its two published cousins: more channels for the projector, no sum and no attention.

Shapes: B pictures, N low-resolution tokens, C_l low and C_h high channels.
"""

import torch
from torch import Tensor

from mg_llava.models.fusion.conv_gate import build_gate, gate_of
from mg_llava.models.fusion.grids import ConvolvedFusion, GridFusion, UnequalGrids
from mg_llava.models.interfaces import Seen, token_grid
from mg_llava.registry import MODELS


@MODELS.register_module()
class ChannelConcatFusion(GridFusion):
    """The channels of both encoders side by side (``fuse_model=3`` of the reference); it has no parameters.

    Args:
        low_channels: C_l.
        high_channels: C_h.
        unequal_grids: As for :class:`~mg_llava.models.fusion.grids.GridFusion`.
    """

    def __init__(self, low_channels: int, high_channels: int, unequal_grids: UnequalGrids = "error") -> None:
        super().__init__(unequal_grids)
        self.low_channels, self.high_channels = low_channels, high_channels
        self.out_channels = low_channels + high_channels

    def forward(self, low: Tensor, high: Seen) -> Tensor:
        """``(B, N, C_l)`` to ``(B, N, C_l + C_h)``; the last map is read."""
        cells = self.match_grid(high.maps[-1], token_grid(low.shape[1])).flatten(2).transpose(1, 2)
        return torch.cat([low, cells], dim=-1)


@MODELS.register_module()
class ConvolvedConcatFusion(ConvolvedFusion):
    """L' and H' of Conv-Gate side by side, without a gate (``fuse_model=2`` of the reference).

    The first half is ``low`` itself before training, the second zero.

    Args:
        low_channels: C_l.
        high_channels: C_h.
        unequal_grids: As for :class:`~mg_llava.models.fusion.grids.GridFusion`.
    """

    def __init__(self, low_channels: int, high_channels: int, unequal_grids: UnequalGrids = "error") -> None:
        super().__init__(low_channels, high_channels, unequal_grids)
        self.out_channels = 2 * low_channels
        self.reset_parameters()

    def forward(self, low: Tensor, high: Seen) -> Tensor:
        """``(B, N, C_l)`` to ``(B, N, 2 C_l)``."""
        return torch.cat(self.convolve(low, high), dim=-1)


@MODELS.register_module()
class GatedConcatFusion(ConvolvedFusion):
    """L' and the gated H' of Conv-Gate side by side (``fuse_model=1`` of the reference).

    The first half is ``low`` itself before training, the second zero.

    Args:
        low_channels: C_l.
        high_channels: C_h.
        gate_channels: Hidden width of the gate's MLP; ``None`` takes a quarter of the two widths that it sees.
        unequal_grids: As for :class:`~mg_llava.models.fusion.grids.GridFusion`.
    """

    def __init__(
        self,
        low_channels: int,
        high_channels: int,
        gate_channels: int | None = None,
        unequal_grids: UnequalGrids = "error",
    ) -> None:
        super().__init__(low_channels, high_channels, unequal_grids)
        self.out_channels = 2 * low_channels
        self.gate = build_gate(low_channels, gate_channels)
        self.reset_parameters()

    def forward(self, low: Tensor, high: Seen) -> Tensor:
        """``(B, N, C_l)`` to ``(B, N, 2 C_l)``."""
        low_tokens, high_tokens = self.convolve(low, high)
        return torch.cat([low_tokens, gate_of(self.gate, low_tokens, high_tokens) * high_tokens], dim=-1)
