"""Fusions of the last map, cell by cell: matching its grid to that of the tokens, and the convolutions of Conv-Gate.

Shapes: B pictures, N low-resolution tokens on an h x w grid (N = h * w, row-major), C_l low and C_h high channels.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from mg_llava.models.interfaces import Fusion, Seen, Spec, token_grid

UnequalGrids = Literal["error", "interpolate"]


class GridFusion(Fusion):
    """Base of fusions that need a cell of the last map for each token.

    Args:
        unequal_grids: What to do when the two grids differ: ``"error"``, or ``"interpolate"`` the high-resolution map
            bilinearly to the grid of the tokens.
    """

    def __init__(self, unequal_grids: UnequalGrids = "error") -> None:
        super().__init__()
        if unequal_grids not in ("error", "interpolate"):
            raise ValueError(f"unequal_grids must be 'error' or 'interpolate', found {unequal_grids!r}")
        self.unequal_grids = unequal_grids

    @classmethod
    def conflicts(cls, low: Spec, high: Spec, settings: Mapping[str, Any]) -> list[str]:
        """See :meth:`Fusion.conflicts`: grids that differ."""
        stride, side = high.stage_strides[-1], high.image_size // high.stage_strides[-1]
        if low.grid == side or settings.get("unequal_grids") == "interpolate":
            return []
        size = low.grid * stride
        can_be = size >= low.image_size and size % max(high.stage_strides) == 0  # the system and the encoder ask this
        resized = f"image_size={size} for the high-resolution encoder, or " if can_be else ""
        return [
            f"the low-resolution encoder has a {low.grid} x {low.grid} grid ({low.image_size} px), the "
            f"high-resolution encoder {side} x {side} ({high.image_size} px at stride {stride}); use {resized}"
            "unequal_grids='interpolate' in the fusion"
        ]

    def match_grid(self, high: Tensor, side: int) -> Tensor:
        """The last map ``(B, C_h, H, W)`` on the grid of the tokens.

        Raises:
            ValueError: The grids differ and ``unequal_grids`` is ``"error"``.
        """
        if high.shape[-2:] == (side, side):
            return high
        if self.unequal_grids == "error":
            raise ValueError(
                f"the low-resolution grid is {side} x {side} but the high-resolution map is "
                f"{high.shape[-2]} x {high.shape[-1]}; choose image sizes so that image size / stride agree, or set "
                "unequal_grids='interpolate' in the fusion's config"
            )
        return F.interpolate(high, size=(side, side), mode="bilinear", align_corners=False)


class ConvolvedFusion(GridFusion):
    r"""Base of fusions that begin as Conv-Gate does.

    .. math::
        H' &= W_{sp} * \mathrm{gelu}(W_{sc} * H) \\
        L' &= L + W_{fp} * \mathrm{gelu}(\mathrm{DW}_7 * L)

    ``slow_*`` act on the high-resolution map, ``fast_*`` on the low-resolution tokens. Both projections start at
    zero, so that before training L' is L and H' is zero. A constructor ends with :meth:`reset_parameters`.

    Args:
        low_channels: C_l.
        high_channels: C_h.
        unequal_grids: As for :class:`GridFusion`.
    """

    def __init__(self, low_channels: int, high_channels: int, unequal_grids: UnequalGrids = "error") -> None:
        super().__init__(unequal_grids)
        self.low_channels, self.high_channels = low_channels, high_channels
        self.out_channels = low_channels
        self.slow_conv = nn.Conv2d(high_channels, high_channels, 1)
        self.slow_proj = nn.Conv2d(high_channels, low_channels, 1)
        self.fast_conv = nn.Conv2d(low_channels, low_channels, 7, padding=3, groups=low_channels)
        self.fast_proj = nn.Conv2d(low_channels, low_channels, 1)

    def reset_parameters(self) -> None:
        """Xavier-uniform convolutions, zero projections and biases."""
        for conv in (self.slow_conv, self.fast_conv):
            nn.init.xavier_uniform_(conv.weight)
        for proj in (self.slow_proj, self.fast_proj):
            nn.init.zeros_(proj.weight)
        for module in (self.slow_conv, self.fast_conv, self.slow_proj, self.fast_proj):
            assert module.bias is not None
            nn.init.zeros_(module.bias)

    def convolve(self, low: Tensor, high: Seen) -> tuple[Tensor, Tensor]:
        """L' and H', each ``(B, N, C_l)``.

        Args:
            low: ``(B, N, C_l)`` tokens, row-major.
            high: Its last map, ``(B, C_h, H, W)``, is read.

        Raises:
            ValueError: If N is not a square number, or the grids differ and ``unequal_grids`` is ``"error"``.
        """
        side = token_grid(low.shape[1])
        high_map = self.match_grid(high.maps[-1], side)
        high_tokens = self.slow_proj(F.gelu(self.slow_conv(high_map))).flatten(2).transpose(1, 2)  # (B, N, C_l)
        low_map = low.transpose(1, 2).unflatten(2, (side, side))  # (B, C_l, h, w)
        low_tokens = low + self.fast_proj(F.gelu(self.fast_conv(low_map))).flatten(2).transpose(1, 2)
        return low_tokens, high_tokens
