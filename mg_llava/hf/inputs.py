"""What a model is given, and what it gives back: boxes, caches, ids.

Shapes: B rows, T text ids, n boxes of a picture.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def checked_boxes(boxes: Sequence[Tensor] | None, pictures: int) -> list[Tensor]:
    """Boxes ``(n, 4)`` of each picture.

    Raises:
        ValueError: Others than one set for each, or numbers that are not finite.
    """
    if boxes is None:
        raise ValueError(
            f"{pictures} pictures but no boxes; give a list of {pictures} tensors (n, 4), as the processor does"
        )
    if len(boxes) != pictures:
        raise ValueError(f"{pictures} pictures but {len(boxes)} sets of boxes; give one, maybe empty, for each")
    checked = [torch.as_tensor(item, dtype=torch.float32).reshape(-1, 4) for item in boxes]
    for picture, item in enumerate(checked):
        if not item.isfinite().all():
            raise ValueError(f"boxes of picture {picture} must be finite numbers, found {item.tolist()}")
    return checked


def is_filled(cache: Any) -> bool:
    """True for a cache that holds something."""
    if cache is None:
        return False
    if hasattr(cache, "get_seq_length"):
        return int(cache.get_seq_length()) > 0
    return len(cache) > 0


def with_prompt(input_ids: Tensor, new: Tensor) -> Tensor:
    """``(B, T)`` and ``(B * k, new)`` to ``(B * k, T + new)``: k sequences for each row."""
    prompts = input_ids.repeat_interleave(len(new) // len(input_ids), dim=0)
    return torch.cat([prompts.to(new.device), new], dim=1)
