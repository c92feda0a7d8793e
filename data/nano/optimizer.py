"""Optimizer of the pretraining scripts: Muon for the inner matrices, AdamW for the rest, warm-up and cosine.

Muon steps along the orthogonalized momentum (a Newton-Schulz iteration). On models this small it needs about half the
steps of AdamW, and these models are pretrained on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
MOMENTUM = 0.95
WEIGHT_DECAY = 0.02


@torch.no_grad()
def orthogonalize(gradient: Tensor, iterations: int = 5) -> Tensor:
    """Nearest (semi-)orthogonal matrix, roughly; inner axes of a convolution are flattened."""
    matrix = gradient.flatten(1)
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    x = x.T if tall else x
    return (x * max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5).reshape(gradient.shape)


class Optimizer:
    """Muon for ``matrices``, AdamW for all other parameters of ``module``, one schedule for both.

    Args:
        module: what is trained.
        matrices: parameters for Muon.
        steps: length of the schedule.
        lr: peak rate of AdamW.
        matrix_lr: peak rate of Muon.
        warmup: steps of linear warm-up.
    """

    def __init__(
        self,
        module: nn.Module,
        matrices: Iterable[nn.Parameter],
        steps: int,
        lr: float,
        matrix_lr: float,
        warmup: int = 50,
    ):
        self.matrices = list(matrices)
        chosen = {id(parameter) for parameter in self.matrices}
        self.rest = [parameter for parameter in module.parameters() if id(parameter) not in chosen]
        self.adamw = torch.optim.AdamW(self.rest, lr=lr, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY)
        self.momentum = [torch.zeros_like(parameter) for parameter in self.matrices]
        self.steps, self.lr, self.matrix_lr, self.warmup, self.step_index = steps, lr, matrix_lr, warmup, 0

    def _rate(self) -> float:
        progress = max(0, self.step_index - self.warmup) / max(1, self.steps - self.warmup)
        return min(1.0, (self.step_index + 1) / self.warmup) * 0.5 * (1 + math.cos(math.pi * progress))

    def step(self, loss: Tensor) -> None:
        """Backward pass and one update."""
        for parameter in (*self.rest, *self.matrices):
            parameter.grad = None
        loss.backward()
        rate = self._rate()
        nn.utils.clip_grad_norm_(self.rest, 1.0)
        for group in self.adamw.param_groups:
            group["lr"] = self.lr * rate
        self.adamw.step()
        with torch.no_grad():
            for parameter, momentum in zip(self.matrices, self.momentum, strict=True):
                if parameter.grad is None:
                    continue
                momentum.mul_(MOMENTUM).add_(parameter.grad)
                update = orthogonalize(parameter.grad + MOMENTUM * momentum)
                parameter.mul_(1 - self.matrix_lr * rate * WEIGHT_DECAY).add_(update, alpha=-self.matrix_lr * rate)
        self.step_index += 1
