"""Logging of losses that does not wait for the device in every iteration."""

from typing import Any

import torch
from mmengine.hooks import LoggerHook, RuntimeInfoHook
from torch import Tensor

from mg_llava.registry import HOOKS


@HOOKS.register_module()
class LossHook(RuntimeInfoHook):
    """As mmengine's hook, which gives losses to the log, but reads them when they are logged.

    mmengine's reads each loss as soon as its iteration ends, so that the host waits for the device and the next
    iteration begins with an empty queue. Here they stay where they are until the ``LoggerHook`` writes or a checkpoint
    is made, and are read all at once. What is logged is the same.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[str, Any]] = []

    def before_train(self, runner: Any) -> None:
        """Forget an earlier training."""
        super().before_train(runner)
        self._kept = []

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Keep the losses of an iteration; hand them on where they are logged."""
        for name, value in (outputs or {}).items():
            # a copy: what a step gives may be changed in place by the next one
            self._kept.append((name, value.detach().clone() if isinstance(value, Tensor) else value))
        interval = min((hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)), default=1)
        is_end = self.end_of_epoch(runner.train_dataloader, batch_idx) or self.is_last_train_iter(runner)
        if is_end or self.every_n_inner_iters(batch_idx, interval):
            self._hand_on(runner)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Let the checkpoint have all losses up to now."""
        if self._kept:
            self._hand_on(runner)
            checkpoint["message_hub"] = runner.message_hub.state_dict()

    def _hand_on(self, runner: Any) -> None:
        tensors = [value.float().mean() for _, value in self._kept if isinstance(value, Tensor)]
        read = iter(torch.stack(tensors).tolist() if tensors else ())
        for name, value in self._kept:
            runner.message_hub.update_scalar(f"train/{name}", next(read) if isinstance(value, Tensor) else value)
        self._kept.clear()
