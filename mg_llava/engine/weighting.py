"""How much each micro-batch counts in the gradient of a step that several micro-batches or processes share."""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

import torch
from mmengine.dist import all_reduce, get_comm_device, get_world_size
from torch import Tensor

from mg_llava.batch import send

LossWeighting = Literal["tokens", "micro_batches"]
"""Each labeled token of a step counts the same, or each micro-batch, however many labeled tokens it has."""


def check_weighting(weighting: str) -> None:
    """Refuse an unknown way.

    Raises:
        ValueError: Names the known ones.
    """
    if weighting not in get_args(LossWeighting):
        raise ValueError(f"loss_weighting is {weighting!r}; known: {', '.join(get_args(LossWeighting))}")


class WeightedBatches:
    """Iterator over batches that reads all of a step before it gives the first, and tells each its weights.

    mmengine and DeepSpeed give the mean of the gradients of micro-batches and processes. A micro-batch of ``n`` of
    the ``N`` items that a loss has in the whole step gets the weight ``n / N`` times the number of micro-batches, so
    that the mean is the gradient of one large batch. Items are counted on the CPU and summed on the device, so that
    nothing waits. Where all weights are 1 batches pass as they are.

    Args:
        inner: Endless iterator over batches.
        model: The system; asked for its ``loss_counts``.
        weighting: What counts the same.
        accumulation: Micro-batches of a step.
        start: Micro-batches that were trained before; the first calls, which skip them, are passed on.
        end: Micro-batches of the run; the last step may have fewer.
        divides_alike: The framework divides an incomplete last step as any other, as DeepSpeed does.
    """

    def __init__(
        self,
        inner: Iterator[Any],
        model: Any,
        weighting: LossWeighting,
        accumulation: int,
        start: int,
        end: int,
        divides_alike: bool,
    ) -> None:
        self._inner, self._model, self._weighting = inner, model, weighting
        self._accumulation, self._end, self._divides_alike = accumulation, end, divides_alike
        self._skips, self._place = start, start
        self._step: deque[Any] = deque()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._skips:
            self._skips -= 1
            return next(self._inner)
        if not self._step:
            size = min(self._accumulation - self._place % self._accumulation, max(1, self._end - self._place))
            batches = [next(self._inner) for _ in range(size)]
            self._step.extend(map(_with_weights, batches, self._weights(batches)))
            self._place += size
        return self._step.popleft()

    def _weights(self, batches: list[Any]) -> list[Any]:
        """For each batch a number for each loss; None where the framework weighs them right."""
        divisor, processes = self._accumulation if self._divides_alike else len(batches), get_world_size()
        losses = len(self._model.losses)
        if self._weighting == "micro_batches":
            return [None if divisor == len(batches) else [divisor / len(batches)] * losses] * len(batches)
        if divisor == processes == 1:
            return [None]
        counts = [self._model.loss_counts(batch["data"]) for batch in batches]
        if processes > 1:
            return list(_shared_weights(torch.tensor(counts), divisor * processes))
        totals = [max(sum(column), 1) for column in zip(*counts, strict=True)]
        weights = [[n * divisor / total for n, total in zip(row, totals, strict=True)] for row in counts]
        return [None if set(row) == {1.0} else row for row in weights]


def _shared_weights(counts: Tensor, shares: int) -> Tensor:
    """``(micro-batches, losses)`` weights on the device, from counts of this process."""
    counts = send(counts, get_comm_device())
    totals = counts.sum(dim=0)
    all_reduce(totals)
    return counts * shares / totals.clamp(min=1)


def _with_weights(batch: Mapping[str, Any], weights: Any) -> Mapping[str, Any]:
    return batch if weights is None else {**batch, "data": {**batch["data"], "loss_weights": weights}}
