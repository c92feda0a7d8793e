"""Where and how precisely networks compute."""

import contextlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def pick_device(device: "str | torch.device" = "auto") -> "torch.device":
    """A device; ``auto`` is the CUDA device of this process's local rank where there is CUDA, else the CPU.

    Raises:
        ValueError: There is no such device.
    """
    import torch

    if device == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {str(device)!r} is not there ({reason}); allowed: auto, cpu, cuda:0, ...") from error
    return found


def autocast(device: "torch.device", dtype: str = "auto") -> contextlib.AbstractContextManager[Any]:
    """Mixed precision for a block: ``bfloat16``, ``float16``, ``float32`` for none; ``auto`` is bfloat16 on CUDA.

    Raises:
        ValueError: The dtype is unknown.
    """
    import torch

    if dtype == "auto":
        dtype = "bfloat16" if device.type == "cuda" else "float32"
    if dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"dtype is {dtype!r}; allowed: 'auto', 'float32', 'bfloat16', 'float16'")
    if dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, getattr(torch, dtype))
