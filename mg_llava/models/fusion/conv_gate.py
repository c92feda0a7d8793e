"""Conv-Gate: the last map of the high-resolution encoder, gated into the low-resolution tokens.

Shapes: B pictures, N low-resolution tokens, C_l low and C_h high channels.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from mg_llava.models.fusion.grids import ConvolvedFusion, UnequalGrids
from mg_llava.models.interfaces import Seen
from mg_llava.registry import MODELS

GatePer = Literal["picture", "token", "channel"]


@MODELS.register_module()
class ConvGateFusion(ConvolvedFusion):
    r"""Conv-Gate fusion (MG-LLaVA, section 3.2), as published weights have it.

    .. math::
        g  &= \tanh(\mathrm{MLP}(\mathrm{mean}_N [L' ; H'])), \quad \text{one scalar per picture} \\
        F  &= L' + g H'

    with L' and H' of :class:`ConvolvedFusion`. The module is exactly the identity on ``low`` before training.

    Args:
        low_channels: Channels of the low-resolution tokens, C_l.
        high_channels: Channels of the high-resolution map, C_h.
        gate_channels: Hidden width of the gate's MLP; ``None`` takes a quarter of the two widths that it sees.
        unequal_grids: As for :class:`~mg_llava.models.fusion.grids.GridFusion`.
        gate_per: ``"picture"`` as published; ``"token"`` leaves out the mean and has a scalar for each token;
            ``"channel"`` has one for each channel of a picture.
        gate_start: Gate before training, between -1 and 1, up to what the drawn weights add; None leaves it to these
            alone, as published: close to zero, of either sign. H' starts at zero as well, so that neither passes much
            gradient to the other, and the sign may turn when H' has begun to learn under the other one.

    Raises:
        ValueError: A setting is unknown or out of range.
    """

    def __init__(
        self,
        low_channels: int,
        high_channels: int,
        gate_channels: int | None = None,
        unequal_grids: UnequalGrids = "error",
        gate_per: GatePer = "picture",
        gate_start: float | None = None,
    ) -> None:
        super().__init__(low_channels, high_channels, unequal_grids)
        if gate_per not in get_args(GatePer):
            raise ValueError(f"gate_per must be one of {', '.join(get_args(GatePer))}, found {gate_per!r}")
        if gate_start is not None and not -1 < gate_start < 1:
            raise ValueError(f"gate_start must be between -1 and 1, found {gate_start}; None leaves it as published")
        self.gate_per = gate_per
        self.gate = build_gate(low_channels, gate_channels, low_channels if gate_per == "channel" else 1)
        self.last_gate: Tensor | None = None
        """Gate of the last forward, ``(B,)``, detached, averaged over tokens and channels; for monitoring."""
        self.last_high_norm: Tensor | None = None
        """Mean norm over tokens of what the last forward added from the high-resolution map, detached; 0 at first."""
        self.reset_parameters()
        if gate_start is not None:
            nn.init.constant_(self.gate[-1].bias, math.atanh(gate_start))

    @property
    def monitor(self) -> dict[str, Tensor]:
        """Scalars of the last forward: mean gate, and mean norm of what the high-resolution map added."""
        if self.last_gate is None or self.last_high_norm is None:
            return {}
        return {"gate": self.last_gate.float().mean(), "high_norm": self.last_high_norm}

    def forward(self, low: Tensor, high: Seen) -> Tensor:
        """``(B, N, C_l)`` to the same shape; see :meth:`ConvolvedFusion.convolve`."""
        low_tokens, high_tokens = self.convolve(low, high)
        gate = gate_of(self.gate, low_tokens, high_tokens, is_pooled=self.gate_per != "token")
        self.last_gate = gate.detach().mean(dim=(1, 2))
        added = gate * high_tokens
        self.last_high_norm = added.detach().float().norm(dim=-1).mean()
        return low_tokens + added


def build_gate(low_channels: int, gate_channels: int | None, out_channels: int = 1) -> nn.Sequential:
    """The MLP of a gate, which reads L' and H' side by side."""
    hidden = gate_channels or low_channels // 2
    return nn.Sequential(nn.Linear(2 * low_channels, hidden), nn.GELU(), nn.Linear(hidden, out_channels))


def gate_of(mlp: nn.Sequential, low: Tensor, high: Tensor, is_pooled: bool = True) -> Tensor:
    """The gate of L' and H', ``(B, N, C_l)`` each: ``(B, 1, G)`` of their means, or ``(B, N, G)`` without pooling."""
    both = torch.cat([low, high], dim=-1)
    return torch.tanh(mlp(both.mean(dim=1) if is_pooled else both)).view(len(low), -1, mlp[-1].out_features)
