"""Projectors from encoder channels to the width of the LLM."""

from torch import Tensor, nn

from mg_llava.registry import MODELS


def build_mlp(in_channels: int, out_channels: int, depth: int) -> nn.Sequential:
    """``depth`` linear layers with biases and exact (erf) GELU between them.

    Raises:
        ValueError: If ``depth`` is below 1.
    """
    if depth < 1:
        raise ValueError(f"a projector needs depth >= 1, found {depth}")
    layers: list[nn.Module] = [nn.Linear(in_channels, out_channels)]
    for _ in range(depth - 1):
        layers += [nn.GELU(), nn.Linear(out_channels, out_channels)]
    return nn.Sequential(*layers)


@MODELS.register_module()
class MLPProjector(nn.Module):
    """Projects tokens ``(..., in_channels)`` to ``(..., out_channels)``; depth 2 is the one of LLaVA-1.5.

    Args:
        in_channels: Width of the incoming tokens.
        out_channels: Hidden size of the LLM.
        depth: Number of linear layers.
    """

    def __init__(self, in_channels: int, out_channels: int, depth: int = 2) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.model = build_mlp(in_channels, out_channels, depth)

    def forward(self, tokens: Tensor) -> Tensor:
        """``(..., in_channels)`` to ``(..., out_channels)``."""
        return self.model(tokens)
