"""From the uint8 canvas that workers send to the view of an encoder, on the device.

Shapes: N pictures, S side of the canvas, s side of a view, both in pixels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def normalize(images: Tensor, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD) -> Tensor:
    """Scale uint8 pixels to 0..1 and normalize them by channel.

    Args:
        images: ``(N, 3, S, S)`` uint8; floating tensors are taken as normalized already and returned as they are.
        mean: Per-channel mean of values in 0..1.
        std: Per-channel standard deviation of values in 0..1.

    Returns:
        ``(N, 3, S, S)`` float32.
    """
    if images.is_floating_point():
        return images
    # made there: a copy from the host costs more than filling a few numbers
    mean_tensor, std_tensor = (
        torch.cat([torch.full((1, 1, 1), value, device=images.device) for value in values]) for values in (mean, std)
    )
    return (images.float() * (1 / 255) - mean_tensor) / std_tensor


def resample(high: Tensor, size: int) -> Tensor:
    """Sample the normalized canvas down to the size of a view.

    Bilinear, align_corners false, **without** antialias: published weights were trained on this view, not on a
    picture resized with a filter.

    Args:
        high: ``(N, 3, S, S)`` float32.
        size: Side s.

    Returns:
        ``(N, 3, s, s)`` float32.
    """
    if high.shape[-2:] == (size, size):
        return high
    return F.interpolate(high, size=(size, size), mode="bilinear", align_corners=False)
