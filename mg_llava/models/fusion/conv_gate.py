"""Conv-Gate: the last map of the high-resolution encoder, gated into the low-resolution tokens.

Shapes: B pictures, N low-resolution tokens on an h x w grid (N = h * w, row-major), C_l low and C_h high channels.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mg_llava.models.interfaces import Fusion, Seen, Spec, token_grid
from mg_llava.registry import MODELS


@MODELS.register_module()
class ConvGateFusion(Fusion):
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

    @classmethod
    def conflicts(cls, low: Spec, high: Spec, settings: Mapping[str, Any]) -> list[str]:
        """See :meth:`Fusion.conflicts`: grids that differ."""
        stride, side = high.stage_strides[-1], high.image_size // high.stage_strides[-1]
        if low.grid == side or settings.get("unequal_grids") == "interpolate":
            return []
        return [
            f"the low-resolution encoder has a {low.grid} x {low.grid} grid ({low.image_size} px), the "
            f"high-resolution encoder {side} x {side} ({high.image_size} px at stride {stride}); use "
            f"image_size={low.grid * stride} for the high-resolution encoder, or unequal_grids='interpolate' in the "
            "fusion"
        ]

    @property
    def monitor(self) -> dict[str, Tensor]:
        """Scalars of the last forward: mean gate, and mean norm of what the high-resolution map added."""
        if self.last_gate is None or self.last_high_norm is None:
            return {}
        return {"gate": self.last_gate.float().mean(), "high_norm": self.last_high_norm}

    def forward(self, low: Tensor, high: Seen) -> Tensor:
        """Fuse one batch of pictures.

        Args:
            low: ``(B, N, C_l)`` tokens, row-major.
            high: Its last map, ``(B, C_h, H, W)``, is read.

        Returns:
            ``(B, N, C_l)``.

        Raises:
            ValueError: If N is not a square number, or the grids differ and ``unequal_grids`` is ``"error"``.
        """
        side = token_grid(low.shape[1])
        high_map = self._match_grid(high.maps[-1], side)
        high_tokens = self.slow_proj(F.gelu(self.slow_conv(high_map))).flatten(2).transpose(1, 2)  # (B, N, C_l)
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
