"""Frozen vision encoders: a low-resolution one that gives tokens, a high-resolution one that gives stage maps.

Both run without autograd, in eval mode whatever ``train()`` says, without checkpointing, in their own dtype. Sizes
that others need (channels, grids, strides) are read from the networks.

Shapes: N pictures, s / S side of the low / high view in pixels, C channels, h x w grid of tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mg_llava.models.encoders.views import CLIP_MEAN, CLIP_STD
from mg_llava.models.weights.loading import (
    resolve_dtype,
)


class FrozenEncoder(nn.Module):
    """Base of both encoders: no gradients, no dropout or stochastic depth, nothing in the checkpoint."""

    def freeze(self, dtype: str | torch.dtype) -> None:
        """Switch gradients and training behavior off and move to ``dtype`` (``"auto"``: bfloat16 on CUDA)."""
        self.requires_grad_(False)
        self.to(resolve_dtype(dtype))
        self.eval()

    def train(self, mode: bool = True) -> "FrozenEncoder":
        """Stay in eval mode: stochastic depth in a frozen encoder makes the loss of the same batch differ."""
        return super().train(False)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights, to which inputs are cast."""
        return next(self.parameters()).dtype


class StageEncoder(FrozenEncoder):
    """Interface of high-resolution encoders.

    Attributes:
        image_size: Side S of the canvas in pixels.
        stage_channels: Channels of each stage, finest first.
        stage_strides: Pixels per cell of each stage.
        image_mean: Per-channel mean for normalization.
        image_std: Per-channel standard deviation for normalization.
    """

    image_size: int
    stage_channels: list[int]
    stage_strides: list[int]
    image_mean: Sequence[float] = CLIP_MEAN
    image_std: Sequence[float] = CLIP_STD

    @property
    def grid(self) -> int:
        """Side of the square grid of the last stage."""
        return self.image_size // self.stage_strides[-1]

    def _check_size(self, name: str) -> None:
        coarsest = max(self.stage_strides)
        if self.image_size % coarsest:
            raise ValueError(
                f"image_size={self.image_size} is not a multiple of {coarsest}, the coarsest stride of {name}; use "
                f"{self.image_size // coarsest * coarsest} or {(self.image_size // coarsest + 1) * coarsest}"
            )

    def stages(self, pixels: Tensor) -> list[Tensor]:
        """Maps ``(N, C_s, S / stride_s, S / stride_s)`` of all stages."""
        raise NotImplementedError

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Stage maps of a batch of pictures.

        Args:
            pixels: ``(N, 3, S, S)`` normalized.

        Returns:
            For each stage ``(N, C_s, S / stride_s, S / stride_s)`` in the encoder's dtype, finest first.
        """
        return self.stages(pixels.to(dtype=self.dtype, memory_format=torch.channels_last))
