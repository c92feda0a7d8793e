"""Learning-rate schedules for runs of any length."""

from typing import Any

from mmengine.optim import LinearLR

from mg_llava.registry import PARAM_SCHEDULERS


@PARAM_SCHEDULERS.register_module()
class WarmupLR(LinearLR):
    """Linear warm-up over a share of an epoch, two iterations at least.

    mmengine's ``LinearLR`` refuses a share that rounds to zero iterations, as 3 % of a short run does, and with one
    iteration never leaves its first factor.
    """

    @classmethod
    def build_iter_from_epoch(
        cls, *args: Any, begin: float = 0, end: float = 1, epoch_length: int = 1, **kwargs: Any
    ) -> "WarmupLR":
        """Build an iteration-based warm-up from ``begin`` and ``end`` in epochs of ``epoch_length`` iterations."""
        kwargs.pop("by_epoch", None)
        first = int(begin * epoch_length)
        return cls(*args, begin=first, end=max(int(end * epoch_length), first + 2), by_epoch=False, **kwargs)
