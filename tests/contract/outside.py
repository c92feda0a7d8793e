"""Parts of users, registered from a file outside the package: some of them right, some with a fault that is typical.

Shapes: N canvases, P tokens of a canvas, C channels, n boxes, D hidden size of the LLM.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mg_llava.models.interfaces import Fusion, LLMInputs, Loss, ObjectReader, Seeing, Seen, token_grid
from mg_llava.registry import MODELS


@MODELS.register_module()
class SideBySideFusion(Fusion):
    """Channels of both encoders side by side: a fusion without parameters."""

    def __init__(self, low_channels: int, high_channels: int) -> None:
        super().__init__()
        self.out_channels = low_channels + high_channels

    def forward(self, low: Tensor, high: Seen) -> Tensor:
        """See :meth:`Fusion.forward`."""
        side = token_grid(low.shape[1])
        high_map = F.interpolate(high.maps[-1], size=(side, side))
        return torch.cat([low, high_map.flatten(2).transpose(1, 2)], dim=-1)


@MODELS.register_module()
class QueriesFusion(Fusion):
    """Fewer tokens than the encoder gives: queries that look at the tokens of both."""

    def __init__(self, low_channels: int, high_channels: int, queries: int = 3) -> None:
        super().__init__()
        self.out_channels = low_channels
        self.queries = nn.Parameter(torch.randn(queries, low_channels))
        self.high = nn.Linear(high_channels, low_channels)

    def out_tokens(self, tokens: int) -> int:
        """See :meth:`Fusion.out_tokens`."""
        return len(self.queries)

    def forward(self, low: Tensor, high: Seen) -> Tensor:
        """See :meth:`Fusion.forward`."""
        seen = torch.cat([low, self.high(high.maps[-1].flatten(2).transpose(1, 2))], dim=1)
        return F.scaled_dot_product_attention(self.queries.expand(len(low), -1, -1), seen, seen)


@MODELS.register_module()
class AllStagesFusion(Fusion):
    """Reads the maps of all stages."""

    reads = "all"

    def __init__(self, low_channels: int, high_channels: int) -> None:
        super().__init__()
        self.out_channels = low_channels
        self.scale = nn.Parameter(torch.ones(low_channels))

    def forward(self, low: Tensor, high: Seen) -> Tensor:
        """See :meth:`Fusion.forward`."""
        return low * self.scale + sum(item.mean(dim=(1, 2, 3)) for item in high.maps)[:, None, None]


@MODELS.register_module()
class PairProjector(nn.Module):
    """Projects every two tokens to one."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * in_channels, out_channels)

    def out_tokens(self, tokens: int) -> int:
        """Tokens of a canvas after it."""
        return tokens // 2

    def forward(self, tokens: Tensor) -> Tensor:
        """``(N, P, C)`` to ``(N, P / 2, D)``."""
        return self.linear(tokens.unflatten(1, (-1, 2)).flatten(2))


@MODELS.register_module()
class CenterReader(ObjectReader):
    """Reads the last map where the middle of a box is."""

    def __init__(self, stage_channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.in_channels = stage_channels[-1]
        self.linear = nn.Linear(self.in_channels, out_channels)

    def pool(self, seen: Seen, boxes: Sequence[Tensor], size: int) -> Tensor:
        """See :meth:`ObjectReader.pool`."""
        pooled = []
        for high, item in zip(seen.maps[-1].float(), boxes, strict=True):
            center = (item[:, :2] + item[:, 2:]) / size - 1
            pooled.append(F.grid_sample(high[None], center[None, None], align_corners=False)[0, :, 0].T)
        return torch.cat(pooled)

    def project(self, pooled: Tensor) -> Tensor:
        """See :meth:`ObjectReader.project`."""
        return self.linear(pooled.to(self.linear.weight.dtype))


@MODELS.register_module()
class NormLoss(Loss):
    """Keeps tokens of pictures short."""

    def __call__(
        self, system: Any, batch: Mapping[str, Any], seeing: Seeing, read: LLMInputs | None
    ) -> dict[str, Tensor]:
        """See :meth:`Loss.__call__`."""
        tokens = [segment.tokens for segments in seeing for segment in segments]
        return {"loss_norm": torch.cat(tokens).float().square().mean() if tokens else system.blank()}


# -- faults ---------------------------------------------------------------------------------------------------------


@MODELS.register_module()
class ForwardReader(ObjectReader):
    """Has ``forward`` alone."""

    def __init__(self, stage_channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.in_channels = sum(stage_channels)
        self.linear = nn.Linear(self.in_channels, out_channels)

    def forward(self, seen: Seen, boxes: Sequence[Tensor], size: int) -> Tensor:
        """Tokens of boxes."""
        return self.linear(torch.zeros(sum(map(len, boxes)), self.in_channels))


@MODELS.register_module()
class PlainReader(nn.Module):
    """Derived from no interface."""

    def forward(self, seen: Seen, boxes: Sequence[Tensor], size: int) -> Tensor:
        """Tokens of boxes."""
        return torch.zeros(sum(map(len, boxes)), 8)


@MODELS.register_module()
class PlainEncoder(nn.Module):
    """Derived from no interface."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 14, stride=14)


@MODELS.register_module()
class WidthlessFusion(Fusion):
    """Does not say how wide its tokens are."""

    def __init__(self, low_channels: int, high_channels: int) -> None:
        super().__init__()

    def forward(self, low: Tensor, high: Seen) -> Tensor:
        """See :meth:`Fusion.forward`."""
        return low
