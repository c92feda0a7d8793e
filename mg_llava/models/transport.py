"""Brings a batch to the model's device in as few copies as it has dtypes."""

from typing import Any

from mmengine.model import BaseDataPreprocessor
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from mg_llava.batch import send_together
from mg_llava.registry import MODELS

_LARGE = 1 << 20
"""Bytes from which on a tensor is copied alone: to join it with others on the host would take longer than a copy."""


@MODELS.register_module()
class JoinedTransport(BaseDataPreprocessor):
    """Moves batches from pinned memory without waiting; small tensors of a dtype travel together."""

    def __init__(self) -> None:
        super().__init__(non_blocking=True)

    def cast_data(self, data: Any) -> Any:
        """A batch with its tensors on the device, which are views where they came together; all else as it was."""
        leaves, structure = tree_flatten(data)
        groups: dict[Any, list[int]] = {}
        for place, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor) and leaf.device != self.device:
                groups.setdefault(place if leaf.nbytes >= _LARGE else leaf.dtype, []).append(place)
        for places in groups.values():
            sent = send_together([leaves[place] for place in places], self.device)
            for place, tensor in zip(places, sent, strict=True):
                leaves[place] = tensor
        return tree_unflatten(leaves, structure)
