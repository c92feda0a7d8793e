"""Mergers by cross-attention: boxes into the picture (F-to-B of the paper), and the picture into boxes (B-to-F).

Shapes: N canvases, P visual tokens of C channels, C_l channels of low-resolution tokens, n_i boxes of canvas i, C_b
channels of a pooled box, n the most boxes of a canvas.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mg_llava.batch import send
from mg_llava.models.attention import SingleHeadAttention
from mg_llava.models.interfaces import Merger
from mg_llava.registry import MODELS


@MODELS.register_module()
class BoxesIntoPicture(Merger):
    """Visual tokens are added what they read of the boxes of their canvas; the LLM gets no tokens of boxes.

    A canvas without boxes stays exactly as it is. What is read begins at random, unless ``zero_init`` is set.

    Args:
        visual_channels: C.
        object_channels: C_b.
        zero_init: Begin as the identity on visual tokens.
    """

    keeps_objects = False

    def __init__(self, visual_channels: int, object_channels: int, zero_init: bool = False) -> None:
        super().__init__()
        self.visual_channels, self.object_channels = visual_channels, object_channels
        self.attention = SingleHeadAttention(visual_channels, object_channels, zero_init)

    def forward(self, low: Tensor, visual: Tensor, objects: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """See :meth:`Merger.forward`."""
        boxes, mask = pad(objects)
        return visual + self.attention(visual, boxes, mask), []


@MODELS.register_module()
class PictureIntoBoxes(Merger):
    """Features of boxes are added what they read of their canvas; the LLM gets both.

    What is read begins at random, unless ``zero_init`` is set.

    Args:
        low_channels: C_l.
        visual_channels: C.
        object_channels: C_b.
        source: The tokens that boxes read: ``"low"`` before the fusion, as the reference's code does, or ``"fused"``,
            as the paper says.
        zero_init: Begin as the identity on features of boxes.
    """

    def __init__(
        self,
        low_channels: int,
        visual_channels: int,
        object_channels: int,
        source: Literal["low", "fused"] = "low",
        zero_init: bool = False,
    ) -> None:
        super().__init__()
        if source not in ("low", "fused"):
            raise ValueError(f"source must be 'low' or 'fused', found {source!r}")
        self.source = source
        self.low_channels, self.visual_channels, self.object_channels = low_channels, visual_channels, object_channels
        read = low_channels if source == "low" else visual_channels
        self.attention = SingleHeadAttention(object_channels, read, zero_init)

    def forward(self, low: Tensor, visual: Tensor, objects: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """See :meth:`Merger.forward`; all boxes are in one tensor."""
        boxes, _ = pad(objects)
        merged = boxes + self.attention(boxes, low if self.source == "low" else visual)
        return visual, torch.cat([own[: len(item)] for own, item in zip(merged, objects, strict=True)])


def pad(objects: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Boxes of all canvases ``(N, n, C_b)``, n at least 1, and ``(N, n)`` bool where there is one."""
    device, most = objects[0].device, max(1, *map(len, objects))
    room = objects[0].new_zeros(most, objects[0].shape[1])  # as long as the longest, and never empty
    boxes = pad_sequence([*objects, room], batch_first=True)[:-1]
    counts = send(torch.tensor([len(item) for item in objects]), device)
    return boxes, torch.arange(most, device=device) < counts[:, None]
