"""Losses, gradients and weights that are nan or inf: said at once, and never saved as good."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.dist import all_reduce, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.logging import print_log
from torch import Tensor

from mg_llava.engine.hooks import unwrap_model
from mg_llava.registry import HOOKS

GRADIENT_NORM = "train/grad_norm"
"""Scalar of mmengine's message hub."""


class NonFiniteError(FloatingPointError):
    """Training gave nan or inf; the message says where and what to do."""


@dataclass(frozen=True)
class _Step:
    """What one step gave, on its way from the device."""

    number: int
    ids: tuple[str, ...]
    is_finite: dict[str, Tensor]
    """CPU bools by name, complete when ``copied`` is."""
    copied: Any
    """CUDA event, or None."""


@HOOKS.register_module()
class FiniteHook(Hook):
    """Names steps whose loss or gradient is nan or inf, with their samples, and stops after several in a row.

    A step is looked at during the next one, so that nothing waits for the device. Gradients are looked at where they
    are clipped, or by DeepSpeed; not in float16, where a dynamic loss scale makes some of them inf on purpose.

    Args:
        patience: Such steps in a row that stop the training.

    Raises:
        ValueError: If ``patience`` is not positive.
    """

    priority = "ABOVE_NORMAL"

    def __init__(self, patience: int = 3) -> None:
        if patience < 1:
            raise ValueError(f"patience must be at least 1, found {patience}")
        self.patience = patience
        self._pending: _Step | None = None
        self._bad: list[_Step] = []
        self._norms = 0

    def before_train(self, runner: Any) -> None:
        """Forget an earlier training."""
        self._pending, self._bad = None, []
        self._norms = len(_norms(runner))

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Look at the step before this one.

        Raises:
            NonFiniteError: After ``patience`` bad steps in a row.
        """
        self._look(runner)
        flags = {}
        if (loss := _all_finite(outputs)) is not None:
            flags["loss"] = loss
        if (norm := self._gradient_norm(runner)) is not None:
            flags["gradient"] = torch.isfinite(norm) if isinstance(norm, Tensor) else torch.tensor(math.isfinite(norm))
        self._pending = _start_copy(runner.iter + 1, _ids(data_batch), flags)

    def after_train(self, runner: Any) -> None:
        """Look at the last step; errors as for :meth:`after_train_iter`."""
        self._look(runner)

    def _look(self, runner: Any) -> None:
        step, self._pending = self._pending, None
        if step is None:
            return
        if step.copied is not None:
            step.copied.synchronize()
        bad = [name for name, is_finite in step.is_finite.items() if not is_finite]
        if not bad:
            self._bad = []
            return
        self._bad.append(step)
        print_log(f"{_describe(step)}: the {' and the '.join(bad)} is nan or inf", "current", logging.ERROR)
        if len(self._bad) >= self.patience:
            raise NonFiniteError(
                f"nan or inf in {len(self._bad)} steps in a row; the first was {_describe(self._bad[0])}. Train again "
                f"from a checkpoint before it (last saved: {_last_checkpoint(runner)}), look at these samples, and "
                f"lower the learning rate; FiniteHook(patience={self.patience}) sets how many steps in a row may fail"
            )

    def _gradient_norm(self, runner: Any) -> Any:
        """The norm of this step's gradient where one was taken, a number or a tensor; else None."""
        if _scales_dynamically(runner):
            return None
        norms = _norms(runner)
        if len(norms) > self._norms:
            self._norms = len(norms)
            return float(norms[-1])
        engine = getattr(runner.model, "get_global_grad_norm", None)
        return engine() if engine is not None else None


def _norms(runner: Any) -> Sequence[float]:
    history = runner.message_hub.log_scalars.get(GRADIENT_NORM)
    return () if history is None else history.data[0]


def _scales_dynamically(runner: Any) -> bool:
    """Tell whether inf gradients are part of the method: float16 with a loss scale that is searched for."""
    if hasattr(runner, "strategy"):
        return bool(getattr(runner.strategy, "config", {}).get("fp16", {}).get("enabled"))
    return getattr(runner.optim_wrapper, "cast_dtype", None) == torch.float16


def _all_finite(outputs: Any) -> Tensor | None:
    """A bool on the losses' device; None where a step gave none."""
    losses = [value.detach() for value in (outputs or {}).values() if isinstance(value, Tensor)]
    losses = [value for value in losses if value.is_floating_point()]
    return torch.stack([torch.isfinite(value).all() for value in losses]).all() if losses else None


def _start_copy(number: int, ids: Sequence[str], flags: Mapping[str, Tensor]) -> _Step:
    """Begin to copy flags to the host, without waiting."""
    found: dict[str, Tensor] = {}
    event = None
    for name, flag in flags.items():
        if flag.device.type == "cuda":
            found[name] = torch.empty((), dtype=torch.bool, pin_memory=True)
            found[name].copy_(flag, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        else:
            found[name] = flag
    return _Step(number, tuple(ids), found, event)


def _ids(batch: Any) -> Sequence[str]:
    data = batch.get("data") if isinstance(batch, Mapping) else None
    return [str(name) for name in data.get("ids") or ()] if isinstance(data, Mapping) else []


def _describe(step: _Step) -> str:
    where = f" in process {get_rank()}" if get_world_size() > 1 else ""
    samples = f" with the samples {', '.join(map(repr, step.ids))}" if step.ids else ""
    return f"step {step.number}{where}{samples}"


def _last_checkpoint(runner: Any) -> str:
    return str(runner.message_hub.runtime_info.get("last_ckpt") or "there is none yet")


@torch.no_grad()
def nonfinite_parameters(model: Any) -> list[str]:
    """Names of the trained parameters that hold nan or inf in any process; all processes must ask."""
    trained = [(name, p) for name, p in unwrap_model(model).named_parameters() if p.requires_grad]
    if not trained:
        return []
    # ZeRO-3 leaves each process a part of a parameter
    own: list[Tensor] = [torch.isfinite(getattr(p, "ds_tensor", p)).all() for _, p in trained]
    flags = torch.stack(own).to(torch.int32)
    all_reduce(flags, op="min")
    return [name for (name, _), is_finite in zip(trained, flags.tolist(), strict=True) if not is_finite]
