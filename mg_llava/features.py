"""What the frozen encoders give for a picture, in the form that a feature cache keeps and the model reads.

The data side writes and reads it, the model side makes and takes it; both agree here.

Shapes: N pictures, P low-resolution tokens of C_l channels, last stage of C_h channels on h x h cells, a finer stage
of C_s channels on s x s cells, C_b channels of a pooled box, n boxes of a picture, K objects that a detector finds, of
C_o channels with their box, score and logits.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

FeatureDtype = Literal["float32", "float16", "bfloat16", "int8"]
"""``int8`` keeps 8 bits between the least and the largest value of each channel of a map, and boxes in float16."""

FEATURE_DTYPES: tuple[FeatureDtype, ...] = get_args(FeatureDtype)

_STEPS = 255
_RANGE = "_range"


class Features(NamedTuple):
    """Outputs of the frozen encoders for N pictures."""

    low: Tensor
    """``(N, P, C_l)``"""
    high: Tensor | None
    """``(N, C_h, h, h)`` last stage; ``None`` where no fusion reads it."""
    pooled: Tensor | None
    """``(sum n_i, C_b)`` pooled boxes, picture by picture; ``None`` without an object branch."""
    objects: Tensor | None = None
    """``(N, K, C_o)``, what a detector finds; ``None`` without one."""
    finer: Sequence[Tensor] = ()
    """``(N, C_s, s, s)`` each, the stages before the last, finest first; empty where no fusion reads them."""

    @property
    def maps(self) -> list[Tensor]:
        """All maps that there are, finest first."""
        return [*self.finer, *([] if self.high is None else [self.high])]

    @property
    def tensors(self) -> list[Tensor]:
        """All that there is, in one order."""
        return [self.low, *self.maps, *(item for item in (self.pooled, self.objects) if item is not None)]


class Block(NamedTuple):
    """One array of a picture: ``rows`` x ``channels``; as many rows as boxes where ``rows`` is None."""

    name: str
    rows: int | None
    channels: int
    dtype: torch.dtype

    def shape(self, boxes: int) -> tuple[int, int]:
        """Shape for a picture with this many boxes."""
        return (boxes if self.rows is None else self.rows, self.channels)

    def nbytes(self, boxes: int) -> int:
        """Bytes for a picture with this many boxes."""
        return math.prod(self.shape(boxes)) * self.dtype.itemsize


def blocks_of(
    low: Sequence[int],
    high: Sequence[int] | None,
    pooled: int | None,
    dtype: FeatureDtype,
    objects: Sequence[int] | None = None,
    finer: Sequence[Sequence[int]] = (),
) -> list[Block]:
    """The arrays that are kept of a picture.

    Args:
        low: P and C_l.
        high: h * h and C_h; None where it is not kept.
        pooled: C_b; None where boxes are not kept.
        dtype: How values are kept.
        objects: K and C_o; None without a detector.
        finer: s * s and C_s of each finer stage that is kept, finest first.

    Raises:
        ValueError: The dtype is unknown.
    """
    _check(dtype)
    kept = torch.uint8 if dtype == "int8" else getattr(torch, dtype)
    blocks = [*_map_blocks("low", low, kept), *([] if high is None else _map_blocks("high", high, kept))]
    exact = torch.float16 if dtype == "int8" else kept
    if objects is not None:
        blocks.append(Block("objects", objects[0], objects[1], exact))
    if pooled is not None:
        blocks.append(Block("pooled", None, pooled, exact))
    for number, shape in enumerate(finer):  # last, so that a program that does not know them finds the rest
        blocks += _map_blocks(_finer(number), shape, kept)
    return blocks


def _map_blocks(name: str, shape: Sequence[int], kept: torch.dtype) -> list[Block]:
    """A map of some rows and channels, with the range of each channel where that is needed."""
    ranges = [Block(name + _RANGE, 2, shape[1], torch.float32)] if kept == torch.uint8 else []
    return [Block(name, shape[0], shape[1], kept), *ranges]


def pack_features(features: Features, counts: Sequence[int], dtype: FeatureDtype) -> list[dict[str, Tensor]]:
    """Split features into pictures and bring them into the form that is kept.

    Args:
        features: Of N pictures.
        counts: Boxes of each picture.
        dtype: How values are kept.

    Returns:
        For each picture its arrays by the names of ``blocks_of``, on the CPU.

    Raises:
        ValueError: The dtype is unknown, or a value does not fit into float16.
    """
    _check(dtype)
    maps = {"low": features.low}
    if features.high is not None:
        maps["high"] = _rows(features.high)
    maps |= {_finer(number): _rows(stage) for number, stage in enumerate(features.finer)}
    arrays: dict[str, Tensor] = {}
    for name, values in maps.items():
        if dtype == "int8":
            arrays[name], arrays[name + _RANGE] = _quantize(values)
        else:
            arrays[name] = _cast(values, dtype)
    exact: FeatureDtype = "float16" if dtype == "int8" else dtype
    if features.objects is not None:
        arrays["objects"] = _cast(features.objects, exact)
    pictures = [{name: array[number] for name, array in arrays.items()} for number in range(len(counts))]
    if features.pooled is not None:
        pooled = _cast(features.pooled, exact)
        for picture, own in zip(pictures, pooled.split(list(counts)), strict=True):
            picture["pooled"] = own
    return pictures


def stack(pictures: Sequence[Mapping[str, Tensor]]) -> dict[str, Any]:
    """Arrays of pictures as one batch: maps stacked, pooled boxes one after the other."""
    joined = {name: [picture[name] for picture in pictures] for name in pictures[0]}
    return {name: torch.cat(items) if name == "pooled" else torch.stack(items) for name, items in joined.items()}


def unpack(arrays: Mapping[str, Any]) -> Features:
    """Features of a batch of ``stack``; the inverse of ``pack_features`` up to rounding."""
    high = _map(_dequantize(arrays, "high")) if "high" in arrays else None
    names = itertools.takewhile(arrays.__contains__, map(_finer, itertools.count()))
    finer = [_map(_dequantize(arrays, name)) for name in names]
    return Features(_dequantize(arrays, "low"), high, arrays.get("pooled"), arrays.get("objects"), finer)


def _finer(number: int) -> str:
    """Name of a finer stage by its number, 0 for the finest."""
    return f"finer{number}"


def _rows(stage: Tensor) -> Tensor:
    """``(N, C, s, s)`` to ``(N, s * s, C)``."""
    return stage.permute(0, 2, 3, 1).flatten(1, 2)


def _map(rows: Tensor) -> Tensor:
    """``(N, s * s, C)`` to ``(N, C, s, s)``, in the memory layout in which the encoder gives it."""
    side = math.isqrt(rows.shape[1])
    return rows.unflatten(1, (side, side)).permute(0, 3, 1, 2)


def _check(dtype: str) -> None:
    if dtype not in FEATURE_DTYPES:
        raise ValueError(f"features cannot be kept as {dtype!r}; allowed: {', '.join(FEATURE_DTYPES)}")


def _cast(values: Tensor, dtype: str) -> Tensor:
    cast = values.detach().to(getattr(torch, dtype)).cpu()
    if dtype == "float16" and not cast.isfinite().all():
        largest = values.abs().max().item()
        raise ValueError(f"features of up to {largest:.3g} do not fit into float16; keep them as bfloat16")
    return cast


def _quantize(values: Tensor) -> tuple[Tensor, Tensor]:
    """``(N, R, C)`` to the same in uint8, and ``(N, 2, C)`` least value and step of each channel of each picture."""
    values = values.detach().float()
    least, most = values.aminmax(dim=1, keepdim=True)
    step = (most - least) / _STEPS
    # a channel without spread is its least value, whatever the step
    steps = ((values - least) / torch.where(step > 0, step, 1)).round().clamp(0, _STEPS)
    return steps.to(torch.uint8).cpu(), torch.cat([least, step], dim=1).cpu()


def _dequantize(arrays: Mapping[str, Any], name: str) -> Tensor:
    values = arrays[name]
    if name + _RANGE not in arrays:
        return values
    least, step = arrays[name + _RANGE].split(1, dim=1)  # (N, 1, C) each
    return torch.addcmul(least, values.float(), step)
