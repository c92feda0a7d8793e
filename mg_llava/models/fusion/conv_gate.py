"""Fusion of the low- and high-resolution encoders into one token per low-resolution patch.

Shapes: B pictures, N low-resolution tokens on an h x w grid (N = h * w, row-major), C_l low and C_h high channels.
A fusion takes ``low (B, N, C_l)`` and ``high (B, C_h, H, W)``, returns ``(B, N, out_channels)`` and says its
``out_channels``, so that the projector can be sized from it.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mg_llava.registry import MODELS


def token_grid(tokens: int) -> int:
    """Side of the square grid that holds ``tokens`` tokens.

    Raises:
        ValueError: If ``tokens`` is not a square number.
    """
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise ValueError(
            f"{tokens} low-resolution tokens do not form a square grid; use an encoder whose image size is a multiple "
            "of its patch size, with the class token dropped"
        )
    return side


@MODELS.register_module()
class ConvGateFusion(nn.Module):
    r"""Conv-Gate fusion (MG-LLaVA, section 3.2), as published weights have it.

    .. math::
        H' &= W_{sp} * \mathrm{gelu}(W_{sc} * H) \\
        L' &= L + W_{fp} * \mathrm{gelu}(\mathrm{DW}_7 * L) \\
        g  &= \tanh(\mathrm{MLP}(\mathrm{mean}_N [L' ; H'])), \quad \text{one scalar per picture} \\
        F  &= L' + g H'

    ``slow_*`` act on the high-resolution map, ``fast_*`` on the low-resolution tokens. Both projections start at
    zero, so that the module is exactly the identity on ``low`` before training.

    Args:
        low_channels: Channels of the low-resolution tokens, C_l.
        high_channels: Channels of the high-resolution map, C_h.
        gate_channels: Hidden width of the gate's MLP; ``None`` takes a quarter of the two widths that it sees.
        unequal_grids: What to do when the two grids differ: ``"error"``, or ``"interpolate"`` the high-resolution map
            bilinearly to the grid of the tokens.
    """

    def __init__(
        self,
        low_channels: int,
        high_channels: int,
        gate_channels: int | None = None,
        unequal_grids: Literal["error", "interpolate"] = "error",
    ) -> None:
        super().__init__()
        if unequal_grids not in ("error", "interpolate"):
            raise ValueError(f"unequal_grids must be 'error' or 'interpolate', found {unequal_grids!r}")
        gate_channels = gate_channels or low_channels // 2
        self.out_channels = low_channels
        self.unequal_grids = unequal_grids
        self.slow_conv = nn.Conv2d(high_channels, high_channels, 1)
        self.slow_proj = nn.Conv2d(high_channels, low_channels, 1)
        self.fast_conv = nn.Conv2d(low_channels, low_channels, 7, padding=3, groups=low_channels)
        self.fast_proj = nn.Conv2d(low_channels, low_channels, 1)
        self.gate = nn.Sequential(nn.Linear(2 * low_channels, gate_channels), nn.GELU(), nn.Linear(gate_channels, 1))
        self.last_gate: Tensor | None = None
        """Gate of the last forward, ``(B,)``, detached; for monitoring."""
        self.last_high_norm: Tensor | None = None
        """Mean norm over tokens of what the last forward added from the high-resolution map, detached; 0 at first."""
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform convolutions, zero projections and biases; the gate keeps torch's default."""
        for conv in (self.slow_conv, self.fast_conv):
            nn.init.xavier_uniform_(conv.weight)
        for proj in (self.slow_proj, self.fast_proj):
            nn.init.zeros_(proj.weight)
        for module in (self.slow_conv, self.fast_conv, self.slow_proj, self.fast_proj):
            assert module.bias is not None
            nn.init.zeros_(module.bias)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """Fuse one batch of pictures.

        Args:
            low: ``(B, N, C_l)`` tokens, row-major.
            high: ``(B, C_h, H, W)`` last stage of the high-resolution encoder.

        Returns:
            ``(B, N, C_l)``.

        Raises:
            ValueError: If N is not a square number, or the grids differ and ``unequal_grids`` is ``"error"``.
        """
        side = token_grid(low.shape[1])
        high = self._match_grid(high, side)
        high_tokens = self.slow_proj(F.gelu(self.slow_conv(high))).flatten(2).transpose(1, 2)  # (B, N, C_l)
        low_map = low.transpose(1, 2).unflatten(2, (side, side))  # (B, C_l, h, w)
        low_tokens = low + self.fast_proj(F.gelu(self.fast_conv(low_map))).flatten(2).transpose(1, 2)
        gate = torch.tanh(self.gate(torch.cat([low_tokens, high_tokens], dim=-1).mean(dim=1)))  # (B, 1)
        self.last_gate = gate.detach().squeeze(-1)
        added = gate.unsqueeze(1) * high_tokens
        self.last_high_norm = added.detach().float().norm(dim=-1).mean()
        return low_tokens + added

    def _match_grid(self, high: Tensor, side: int) -> Tensor:
        if high.shape[-2:] == (side, side):
            return high
        if self.unequal_grids == "error":
            raise ValueError(
                f"the low-resolution grid is {side} x {side} but the high-resolution map is "
                f"{high.shape[-2]} x {high.shape[-1]}; choose image sizes so that image size / stride agree, or set "
                "unequal_grids='interpolate' in the fusion's config"
            )
        return F.interpolate(high, size=(side, side), mode="bilinear", align_corners=False)
