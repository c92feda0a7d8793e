"""Losses and gradient norms: logged without waiting for the device in every step, and never nan or inf unseen."""

import functools
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from mmengine.dist import all_reduce, get_rank, get_world_size
from mmengine.hooks import LoggerHook, RuntimeInfoHook
from mmengine.logging import print_log
from torch import Tensor

from mg_llava.engine.hooks import is_checkpoint_due, unwrap_model
from mg_llava.registry import HOOKS

GRADIENT = "grad_norm"
"""Name of the norm in the log, as mmengine has it."""


class NonFiniteError(FloatingPointError):
    """Training gave nan or inf; the message says where and what to do."""


class _Step(NamedTuple):
    """Values of one step, on their device."""

    where: str
    values: dict[str, Any]


@HOOKS.register_module()
class LossHook(RuntimeInfoHook):
    """Gives losses and gradient norms to the log, as mmengine's hook and optimizer wrapper do.

    mmengine reads each as soon as it is there, so that the host waits for the device and the next step begins with an
    empty queue. Here they stay on the device until the ``LoggerHook`` writes or a checkpoint is due. Then steps whose
    loss or gradient is nan or inf are named with their samples, and several in a row stop the training before anything
    is saved. In float16 gradients are not judged: its dynamic loss scale makes some of them inf on purpose.

    Args:
        patience: Bad steps in a row that stop the training.

    Raises:
        ValueError: If ``patience`` is not positive.
    """

    def __init__(self, patience: int = 3) -> None:
        if patience < 1:
            raise ValueError(f"patience must be at least 1, found {patience}")
        self.patience = patience
        self._kept: list[_Step] = []
        self._bad: list[str] = []
        self._norm: Any = None

    def before_train(self, runner: Any) -> None:
        """Forget an earlier training, and keep what clipping says of gradients."""
        super().before_train(runner)
        self._kept, self._bad, self._norm = [], [], None
        wrapper = runner.optim_wrapper
        if hasattr(wrapper, "clip_func") and not isinstance(wrapper.clip_func, functools.partial):
            wrapper.clip_func = functools.partial(self._clip, wrapper.clip_func)

    def _clip(self, clip: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Clip, and keep the norm from mmengine, which would read it at once."""
        self._norm = clip(*args, **kwargs)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Keep the values of a step; hand them on where they are logged or saved.

        Raises:
            NonFiniteError: After ``patience`` bad steps in a row.
        """
        # copies: what a step gives may be changed in place by the next one
        values = {key: v.detach().clone() if isinstance(v, Tensor) else v for key, v in (outputs or {}).items()}
        norm, self._norm = self._norm, None
        if norm is None and hasattr(runner.model, "get_global_grad_norm"):
            norm = runner.model.get_global_grad_norm()  # DeepSpeed's
        if norm is not None:
            values[GRADIENT] = norm
        self._kept.append(_Step(_describe(runner.iter + 1, data_batch), values))
        interval = min((hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)), default=1)
        is_end = self.end_of_epoch(runner.train_dataloader, batch_idx) or self.is_last_train_iter(runner)
        if is_end or self.every_n_inner_iters(batch_idx, interval) or is_checkpoint_due(runner):
            self._hand_on(runner)

    def _hand_on(self, runner: Any) -> None:
        steps, self._kept = self._kept, []
        tensors = [v.float().mean() for step in steps for v in step.values.values() if isinstance(v, Tensor)]
        read = iter(torch.stack(tensors).tolist() if tensors else ())
        for step in steps:
            values = {name: next(read) if isinstance(v, Tensor) else v for name, v in step.values.items()}
            for name, value in values.items():
                runner.message_hub.update_scalar(f"train/{name}", value)
            self._judge(step.where, values, runner)

    def _judge(self, where: str, values: Mapping[str, Any], runner: Any) -> None:
        bad = {"gradient" if name == GRADIENT else "loss" for name, v in values.items() if not math.isfinite(v)}
        if _scales_dynamically(runner):
            bad.discard("gradient")
        if not bad:
            self._bad = []
            return
        self._bad.append(where)
        print_log(f"{where}: the {' and the '.join(sorted(bad)[::-1])} is nan or inf", "current", logging.ERROR)
        if len(self._bad) >= self.patience:
            last = runner.message_hub.runtime_info.get("last_ckpt") or "there is none yet"
            raise NonFiniteError(
                f"nan or inf in {len(self._bad)} steps in a row; the first was {self._bad[0]}. Train again from a "
                f"checkpoint before it (last saved: {last}), look at these samples, and lower the learning rate; "
                f"LossHook(patience={self.patience}) sets how many steps in a row may fail"
            )


def _scales_dynamically(runner: Any) -> bool:
    """Tell whether inf gradients are part of the method: float16 with a loss scale that is searched for."""
    if hasattr(runner, "strategy"):
        return bool(getattr(runner.strategy, "config", {}).get("fp16", {}).get("enabled"))
    return getattr(runner.optim_wrapper, "cast_dtype", None) == torch.float16


def _describe(number: int, batch: Any) -> str:
    data = batch.get("data") if isinstance(batch, Mapping) else None
    ids = [repr(str(name)) for name in data.get("ids") or ()] if isinstance(data, Mapping) else []
    where = f" in process {get_rank()}" if get_world_size() > 1 else ""
    return f"step {number}{where}{' with the samples ' if ids else ''}{', '.join(ids)}"


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
