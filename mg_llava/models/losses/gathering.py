"""Rows of all processes, side by side.

Shapes: N rows of this process, M of all, in the order of the processes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmengine.dist import all_gather, get_rank, get_world_size
from torch import Tensor


class Gathered(NamedTuple):
    """Tensors of all processes."""

    tensors: list[Tensor]
    """``(M, ...)`` each; rows of this process have their gradients, others have none."""
    first: int
    """Number of the first row of this process."""


def gather_rows(tensors: Sequence[Tensor]) -> Gathered:
    """Bring tensors ``(N, ...)`` of all processes together.

    Processes may have other numbers of rows, and rows of other lengths (the second dimension), which are padded with
    zeros; other dimensions are equal. Sizes are exchanged first, for which the host waits.
    """
    if get_world_size() == 1:
        return Gathered(list(tensors), 0)
    rows = len(tensors[0])
    lengths = [tensor.shape[1] if tensor.ndim > 1 else 0 for tensor in tensors]
    sizes = torch.tensor([rows, *lengths], device=tensors[0].device)
    every = torch.stack(all_gather(sizes)).tolist()  # of each process
    counts, most = [own[0] for own in every], [max(column) for column in zip(*every, strict=True)]
    found = [_gather(tensor, counts, most[0], length) for tensor, length in zip(tensors, most[1:], strict=True)]
    return Gathered(found, sum(counts[: get_rank()]))


def _gather(own: Tensor, counts: Sequence[int], rows: int, length: int) -> Tensor:
    padded = own.detach()
    if own.ndim > 1 and own.shape[1] < length:
        padded = F.pad(padded, (0, 0) * (own.ndim - 2) + (0, length - own.shape[1]))
    mine = padded
    if len(padded) < rows:
        padded = F.pad(padded, (0, 0) * (own.ndim - 1) + (0, rows - len(padded)))
    is_bool = padded.dtype == torch.bool
    others = all_gather((padded.byte() if is_bool else padded).contiguous())
    cut = [other[:count].to(own.dtype) for other, count in zip(others, counts, strict=True)]
    if own.requires_grad and own.ndim > 1 and own.shape[1] == mine.shape[1]:
        cut[get_rank()] = own
    return torch.cat(cut)
