"""Tells flash attention where the rows of a training step begin and end, so that no layer has to look for it.

transformers finds the sequences in rows by a mask or by positions that begin at 0 again: on the device, in each layer,
and the host waits for what is found. The data side knows their lengths.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mg_llava.batch import send

_ROWS = "_rows_of_step"


class _Rows:
    """The positions of the step at hand, and what attention is told with them."""

    def __init__(self) -> None:
        self.positions: Tensor | None = None
        self.arguments: dict[str, Any] = {}

    def add(self, _: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """A hook before attention; other calls, as in generation, have other positions."""
        positions = kwargs.get("position_ids")
        # layers that are computed again in the backward pass get another object with the same memory
        if self.positions is None or positions is None or positions.data_ptr() != self.positions.data_ptr():
            return None
        return args, {**kwargs, **self.arguments}


def uses_flash(llm: Any) -> bool:
    """Whether an LLM computes flash attention as transformers does."""
    whole = llm.get_base_model() if hasattr(llm, "get_base_model") else llm
    is_flash = getattr(whole.config, "_attn_implementation", None) == "flash_attention_2"
    return is_flash and type(whole).__module__.startswith("transformers.models.")


def tell_rows(llm: Any, positions: Tensor, lengths: Sequence[int]) -> None:
    """Say how long the sequences of the next step are.

    Args:
        llm: An LLM that :func:`uses_flash`.
        positions: ``(R, M)`` int64, the positions with which it will be called.
        lengths: Of all sequences in ``R * M``, one after the other, stretches of padding included.
    """
    rows = getattr(llm, _ROWS, None)
    if rows is None:
        rows = _Rows()
        object.__setattr__(llm, _ROWS, rows)
        for name, module in llm.named_modules():
            if name.endswith("self_attn"):
                module.register_forward_pre_hook(rows.add, with_kwargs=True)
    lengths = [length for length in lengths if length]
    ends = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    begins, longest = send(ends, positions.device), max(lengths)
    rows.positions = positions
    rows.arguments = {
        "cu_seq_lens_q": begins,
        "cu_seq_lens_k": begins,
        "max_length_q": longest,
        "max_length_k": longest,
    }
