"""One token per box: exact mean-RoIAlign over the stages of the high-resolution encoder, then an MLP.

The published model upsamples all stages to the finest one, concatenates them, takes RoIAlign with 56 x 56 bins and
averages the bins (MG-LLaVA, eq. 4). Every step of that is linear in the features and separable in x and y, so that

    feature_s[c] = sum_ij wy[i] * stage_s[c, i, j] * wx[j]

with two short weight vectors per box and stage. Neither the upsampled map nor the bins are ever made.

Shapes: B pictures, n boxes, stage s of C_s channels on a grid H_s x W_s, S the side of the canvas in pixels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mg_llava.batch import send_together
from mg_llava.models.interfaces import ObjectReader, Seen
from mg_llava.models.projectors import build_mlp
from mg_llava.registry import MODELS

MAX_INTERMEDIATE_ELEMENTS = 1 << 24
"""Boxes are pooled in slices, so that an intermediate tensor holds at most this many float32 (64 MiB)."""


def axis_weights(start: Tensor, end: Tensor, scale: float, side: int, bins: int) -> Tensor:
    """Weights that average one axis of RoIAlign (``aligned=False``, adaptive sampling) over its bins.

    Args:
        start: ``(n,)`` float32 lower edges in canvas pixels.
        end: ``(n,)`` float32 upper edges in canvas pixels.
        scale: Cells per canvas pixel on the finest grid.
        side: Cells of the finest grid along this axis.
        bins: Output bins of RoIAlign along this axis.

    Returns:
        ``(n, side)`` float32. Rows sum to the share of samples that lie within one cell of the grid.
    """
    # The order of the float32 operations follows RoIAlign's, so that samples on the border fall on the same side.
    low_edge = start * scale
    extent = (end * scale - low_edge).clamp(min=1.0)
    bin_size = extent / bins
    per_bin = torch.ceil(bin_size)  # samples per bin
    # Samples lie in order and at least half a cell apart, or there is one per bin: few of them can touch the grid,
    # however large the box is, and only those are made.
    step = (bin_size / per_bin).double()
    skipped = torch.floor((-1.0 - low_edge) / step - 2).clamp(min=0)  # (n,)
    window = torch.arange(max(bins, 2 * (side + 3)), device=start.device)
    k = skipped[:, None] + window  # (n, K)
    bin_index = torch.floor(k / per_bin[:, None])
    in_bin = (k - bin_index * per_bin[:, None]).float()
    at = (
        low_edge[:, None]
        + bin_index.float() * bin_size[:, None]
        + (in_bin + 0.5) * bin_size[:, None] / per_bin[:, None]
    )
    valid = (bin_index < bins) & (at >= -1.0) & (at <= side)
    at = torch.where(valid, at, 0).clamp(min=0.0, max=side - 1)
    low = at.floor()
    share = at - low
    weight = valid / (per_bin[:, None] * bins)
    weights = torch.zeros(len(start), side, device=start.device)
    weights.scatter_add_(1, low.long(), (1 - share) * weight)
    weights.scatter_add_(1, (low.long() + 1).clamp(max=side - 1), share * weight)
    return weights


def fold_upsampling(weights: Tensor, side: int) -> Tensor:
    """Move weights on the finest grid to a coarser one that is upsampled to it bilinearly (align_corners false).

    Args:
        weights: ``(..., fine)``.
        side: Cells of the coarser grid.

    Returns:
        ``(..., side)``.
    """
    fine = weights.shape[-1]
    if side == fine:
        return weights
    identity = torch.eye(side, device=weights.device)[None]  # (1, side, side)
    upsample = F.interpolate(identity, size=fine, mode="linear", align_corners=False)[0]  # (side, fine)
    return weights @ upsample.T


def pool_boxes(
    stages: Sequence[Tensor], boxes: Sequence[Tensor], canvas_size: int | tuple[int, int], bins: int = 56
) -> list[Tensor]:
    """Mean of RoIAlign over the upsampled and concatenated stages, for every box of every picture.

    Equal to ``roi_align(cat(upsample(stages)), boxes, bins, scale, sampling_ratio=-1, aligned=False).mean((2, 3))``
    up to float32 rounding, degenerate boxes included.

    Args:
        stages: Maps ``(B, C_s, H_s, W_s)``; all are read on the grid of the largest one.
        boxes: For each of the B pictures ``(n_i, 4)`` xyxy in canvas pixels, finite; n_i may be 0. Who makes batches
            checks that they are finite, because to look at them here would wait for the device.
        canvas_size: Side of the canvas in pixels, or (height, width).
        bins: Bins of RoIAlign along each axis.

    Returns:
        For each picture ``(n_i, sum C_s)`` float32.

    Raises:
        ValueError: If the number of pictures and of box lists differ, boxes are not ``(n, 4)``.
    """
    pictures = stages[0].shape[0]
    if len(boxes) != pictures:
        raise ValueError(f"{pictures} pictures but {len(boxes)} lists of boxes; give one list, maybe empty, for each")
    for index, item in enumerate(boxes):
        if item.ndim != 2 or item.shape[1] != 4:
            raise ValueError(f"boxes of picture {index} have shape {tuple(item.shape)}; expected (n, 4) xyxy")
    height, width = (canvas_size, canvas_size) if isinstance(canvas_size, int) else canvas_size
    fine = max(stage.shape[2] for stage in stages), max(stage.shape[3] for stage in stages)
    scales = fine[0] / height, fine[1] / width
    step = pictures if computes_together(stages[0].device) else 1
    found: list[Tensor] = []
    for first in range(0, pictures, step):
        own = [stage[first : first + step] for stage in stages]
        found += _pool(own, boxes[first : first + step], scales, fine, bins)
    return found


def computes_together(device: torch.device) -> bool:
    """Whether the boxes of all pictures are pooled at once, padded to the most of any.

    A GPU is then given few large operations in place of several for each picture. A CPU would compute the padding;
    there a picture's features are the same to the last bit whatever else is in the batch.
    """
    return device.type != "cpu"


def _pool(
    stages: Sequence[Tensor],
    boxes: Sequence[Tensor],
    scales: tuple[float, float],
    fine: tuple[int, int],
    bins: int,
) -> Sequence[Tensor]:
    """Features ``(n_i, sum C_s)`` of the pictures, whose boxes are padded to the most of any."""
    counts = [len(item) for item in boxes]
    if not any(counts):
        return stages[0].new_zeros(0, sum(stage.shape[1] for stage in stages), dtype=torch.float32).split(counts)
    flat = torch.cat(list(boxes)).to(device=stages[0].device, dtype=torch.float32)  # (n, 4)
    with torch.autocast(flat.device.type, enabled=False):  # float32 also where the trainer runs in half precision
        padding = _Padding(counts, flat.device)
        along_y, along_x = (padding.add(one) for one in _box_weights(flat, scales, fine, bins))  # (B, m, fine)
        found = [padding.remove(_pool_stage(stage, along_y, along_x)) for stage in stages]
    return torch.cat(found, dim=1).split(counts)


def _box_weights(
    boxes: Tensor, scales: tuple[float, float], sides: tuple[int, int], bins: int
) -> tuple[Tensor, Tensor]:
    """Weights ``(n, fine_h)`` and ``(n, fine_w)`` of boxes ``(n, 4)``, at once where both axes are alike."""
    if scales[0] == scales[1] and sides[0] == sides[1]:
        edges = boxes.view(-1, 2, 2).permute(1, 2, 0).flatten(1)  # x of all boxes, then y: starts, ends
        along_x, along_y = axis_weights(edges[0], edges[1], scales[0], sides[0], bins).chunk(2)
        return along_y, along_x
    along_y = axis_weights(boxes[:, 1], boxes[:, 3], scales[0], sides[0], bins)
    return along_y, axis_weights(boxes[:, 0], boxes[:, 2], scales[1], sides[1], bins)


class _Padding:
    """Rows of n boxes as those of B pictures with m boxes each, the most of any, and back."""

    def __init__(self, counts: Sequence[int], device: torch.device) -> None:
        self._pictures, self._most = len(counts), max(counts)
        self._places: list[Tensor] = []
        if min(counts) < self._most:
            number = np.arange(self._most)
            valid = number < np.array(counts)[:, None]  # (B, m)
            begins = np.cumsum([1, *counts[:-1]])  # row 0 is zero
            there = np.where(valid, begins[:, None] + number, 0).flatten()
            places = [torch.from_numpy(part) for part in (there, np.flatnonzero(valid))]
            self._places = send_together(places, device)

    def add(self, rows: Tensor) -> Tensor:
        """``(n, C)`` to ``(B, m, C)``, with zeros."""
        if self._places:
            rows = torch.cat([rows.new_zeros(1, rows.shape[1]), rows]).index_select(0, self._places[0])
        return rows.view(self._pictures, self._most, -1)

    def remove(self, rows: Tensor) -> Tensor:
        """Back."""
        flat = rows.flatten(0, 1)
        return flat.index_select(0, self._places[1]) if self._places else flat


def _pool_stage(stage: Tensor, weights_y: Tensor, weights_x: Tensor) -> Tensor:
    """Contract a stage ``(B, C, H, W)`` with weights ``(B, m, fine)`` of m boxes to ``(B, m, C)`` float32."""
    channels, height, width = stage.shape[1:]
    boxes, line = weights_y.shape[1], width * channels
    wy, wx = _fold(weights_y, weights_x, height, width)  # (B, m, H), (B, m, W)
    # maps of a few pictures may be four times as large in float32 as what is made of them
    count = max(1, MAX_INTERMEDIATE_ELEMENTS // max(boxes * line, height * line // 4))
    groups = zip(stage.split(count), wy.split(count), wx.split(count), strict=True)
    return torch.cat([_contract(*group) for group in groups])


def _fold(weights_y: Tensor, weights_x: Tensor, height: int, width: int) -> Sequence[Tensor]:
    """Weights on the grid of a stage, at once where both axes are alike."""
    if height == width and weights_y.shape == weights_x.shape:
        return fold_upsampling(torch.stack([weights_y, weights_x]), height).unbind()
    return fold_upsampling(weights_y, height), fold_upsampling(weights_x, width)


def _contract(stage: Tensor, wy: Tensor, wx: Tensor) -> Tensor:
    """Maps ``(b, C, H, W)`` with weights ``(b, m, H)`` and ``(b, m, W)`` to ``(b, m, C)`` float32."""
    pictures, channels, _, width = stage.shape
    # (b, H, W * C): a view where the encoder works channels-last, as ConvNeXt does
    rows = stage.permute(0, 2, 3, 1).flatten(2).float()
    step = max(1, MAX_INTERMEDIATE_ELEMENTS // (width * channels))
    pooled = []
    for along_y, along_x in zip(wy.split(step, dim=1), wx.split(step, dim=1), strict=True):
        lines = torch.bmm(along_y, rows).unflatten(2, (width, channels)).flatten(0, 1)  # (b * m, W, C)
        pooled.append(torch.bmm(along_x.reshape(-1, 1, width), lines).view(pictures, -1, channels))
    return pooled[0] if len(pooled) == 1 else torch.cat(pooled, dim=1)


@MODELS.register_module()
class RoIAlignBoxProjector(ObjectReader):
    """Pools every box from all stages and projects it to one token of the LLM.

    Args:
        stage_channels: Channels of the encoder's stages, in order.
        out_channels: Hidden size of the LLM; None pools boxes for a merger that takes them, and projects nothing.
        depth: Linear layers of the MLP.
        bins: Bins of RoIAlign along each axis; slightly changes the mean, published weights need 56.
        stages: Indices of the stages to read, -1 for the last; ``None`` reads all. They are read on the grid of the
            finest one among them.
        token_norm: Norm that every token is given, that at which the LLM reads objects best; None leaves it free, as
            published. Where box features have a large mean, a projector that learns fast grows tokens by a vector that
            is the same for all boxes before it tells them apart, and the LLM stops looking at them.

    Raises:
        ValueError: If ``stages`` names a stage that the encoder does not have, ``depth`` is below 1, or
            ``token_norm`` is not positive.
    """

    def __init__(
        self,
        stage_channels: Sequence[int],
        out_channels: int | None,
        depth: int = 2,
        bins: int = 56,
        stages: Sequence[int] | None = None,
        token_norm: float | None = None,
    ) -> None:
        super().__init__()
        if token_norm is not None and not token_norm > 0:
            raise ValueError(f"token_norm must be positive, found {token_norm}; None leaves norms as they are")
        if bins < 1:
            raise ValueError(f"bins is {bins}, must be at least 1")
        self.bins, self.token_norm = bins, token_norm
        self.stage_channels, self.out_channels = list(stage_channels), out_channels
        count = len(stage_channels)
        if stages is not None and (not stages or not all(-count <= index < count for index in stages)):
            raise ValueError(f"stages={list(stages)} must be indices into the encoder's {count} stages, at least one")
        self.stages = list(range(count)) if stages is None else [index % count for index in stages]
        self.in_channels = sum(stage_channels[index] for index in self.stages)
        self.model = None if out_channels is None else build_mlp(self.in_channels, out_channels, depth)

    @property
    def pooling(self) -> dict[str, Any]:
        """See :attr:`ObjectReader.pooling`."""
        return {"bins": self.bins, "stages": list(self.stages)}

    def forward(self, seen: Seen, boxes: Sequence[Tensor], size: int) -> Tensor:
        """Tokens of all boxes ``(sum n_i, out_channels)``; arguments as for :meth:`pool`."""
        return self.project(self.pool(seen, boxes, size))

    def pool(self, seen: Seen, boxes: Sequence[Tensor], size: int) -> Tensor:
        """See :meth:`ObjectReader.pool`; the maps of ``seen`` are read."""
        return torch.cat(pool_boxes([seen.maps[index] for index in self.stages], boxes, size, self.bins))

    def project(self, pooled: Tensor) -> Tensor:
        """See :meth:`ObjectReader.project`.

        All boxes are in one tensor: DeepSpeed hangs a backward hook on each tensor that a module returns; one per
        picture would let processes whose batches hold different numbers of pictures gather their shards of ZeRO-3 in
        different orders.
        """
        assert self.model is not None
        tokens = self.model(pooled.to(self.model[0].weight.dtype))
        if self.token_norm is None:
            return tokens
        return (F.normalize(tokens.float(), dim=-1) * self.token_norm).to(tokens.dtype)
