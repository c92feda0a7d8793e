"""Runs training steps of a case and says what they took, part by part."""

import contextlib
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from mg_llava.models.interfaces import ObjectReader, Seen
from mg_llava.planning.gpus import GPUS
from mg_llava.profiling._measure import use
from mg_llava.profiling._reference import ReferenceStep, reference_batch
from mg_llava.profiling._sizes import Case, build_model, make_batches
from mg_llava.profiling._stock import stock_batch

PARTS = ("transport", "encoders", "fusion", "boxes", "llm", "optimizer")
"""Parts of a step. ``fusion`` has the projector with it, ``boxes`` their projector; ``llm`` is also what puts tokens
into its sequence, and the loss."""


class Clock:
    """Time by part, between marks; on a GPU without waiting for it."""

    def __init__(self, device: str) -> None:
        self.cuda = torch.device(device).type == "cuda"
        self.marks: list[tuple[str, Any]] = []

    def mark(self, part: str) -> None:
        """Count the time since the last mark for ``part``."""
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append((part, event))
        else:
            self.marks.append((part, time.perf_counter()))

    def seconds(self) -> dict[str, float]:
        """Seconds by part; forgets the marks."""
        if self.cuda:
            torch.cuda.synchronize()
        total: dict[str, float] = defaultdict(float)
        for (_, before), (part, after) in zip(self.marks, self.marks[1:], strict=False):
            total[part] += before.elapsed_time(after) / 1000 if self.cuda else after - before
        self.marks.clear()
        return dict(total)


class Stepper:
    """A model with its optimizer, and one training step of it.

    Args:
        case: What to build.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        if torch.device(case.device).type == "cpu":
            torch.set_num_threads(case.threads)
        self.model = build_model(case)
        self.forward: Callable[[dict[str, Any]], Tensor] = (
            ReferenceStep(self.model)
            if case.way == "reference"
            else lambda data: self.model(data, mode="loss")["loss"]
        )
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        rate = 1e-3 if case.llm_trains == "nothing" else 2e-5
        fused = case.is_on("fused_optimizer") or None
        self.optimizer = torch.optim.AdamW(self.trained, lr=rate, weight_decay=0, fused=fused)
        self.clock = Clock(case.device)
        self.in_forward = False
        self.backward_in = "llm"
        """Part that the backward pass is in."""
        for entry, module in () if case.way == "stock" else self.model.named_parts():
            if isinstance(module, ObjectReader):
                self._watch(module.model, "boxes")
                self._watch_pooling(module)
            elif entry.role != "llm":
                self._watch(module, "encoders" if entry.role == "encoder" else "fusion")

    def _watch(self, module: nn.Module, part: str) -> None:
        """Mark when a part begins and ends in the forward pass, and when the backward pass comes to it."""

        def enter_backward(*_: Any) -> None:
            self.clock.mark(self.backward_in)
            self.backward_in = part

        def begin(*_: Any) -> None:
            if self.in_forward:
                self.clock.mark("llm")
            else:  # checkpointing runs it again
                enter_backward()

        def end(_: nn.Module, __: Any, output: Any) -> None:
            if self.in_forward:
                self.clock.mark(part)
            tokens = output.tokens if isinstance(output, Seen) else output
            if isinstance(tokens, Tensor) and tokens.requires_grad:
                tokens.register_hook(enter_backward)

        module.register_forward_pre_hook(begin)
        module.register_forward_hook(end)

    def _watch_pooling(self, reader: Any) -> None:
        """Count the pooling of boxes, which is no module of its own, as boxes."""
        pool = reader.pool

        def pooled(*arguments: Any) -> Tensor:
            self.clock.mark("llm")
            output = pool(*arguments)
            self.clock.mark("boxes")
            return output

        reader.pool = pooled

    def transport(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch as workers send it; on a GPU in pinned memory."""
        if self.case.way == "stock":
            batch = stock_batch(batch, self.model.visual_encoder.config.image_size)
        elif not self.case.is_on("uint8"):
            batch = reference_batch(batch, self.model.visual_encoder.spec.image_size)
            if self.case.way != "reference":
                batch["canvas"] = torch.stack(batch.pop("pixel_values_aux"))
        return tree_map_only(Tensor, Tensor.pin_memory, batch) if self.clock.cuda else batch

    def step(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """One step on a batch of ``transport``; gives ``loss`` and ``gradient_norm``, without waiting for a GPU."""
        self.clock.mark("")
        data = tree_map_only(Tensor, lambda tensor: tensor.to(self.case.device, non_blocking=True), batch)
        self.clock.mark("transport")
        with self._forward_pass():
            loss = self.forward(data)
        self.clock.mark("llm")
        self.backward_in = "llm"
        loss.backward()
        self.clock.mark(self.backward_in)
        norm = nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.clock.mark("optimizer")
        return {"loss": loss.detach(), "gradient_norm": norm.detach()}

    @contextlib.contextmanager
    def _forward_pass(self) -> Iterator[None]:
        self.in_forward = True
        kind = torch.device(self.case.device).type
        with torch.autocast(kind, torch.bfloat16, enabled=self.clock.cuda or self.case.autocast):
            yield
        self.in_forward = False


def measure_steps(settings: dict[str, Any], warmup: int, steps: int) -> dict[str, Any]:
    """Measure so many steps of a case, given as plain values, after some; for ``run_child``.

    Returns:
        ``seconds`` and ``cpu_seconds`` of a step, ``peak_mb``, ``extra_mb`` above the weights, ``parts`` (seconds of
        a step by part), ``losses`` and ``gradient_norms`` of all steps.
    """
    case = Case(**settings)
    stepper = Stepper(case)
    batches = [stepper.transport(batch) for batch in make_batches(case, stepper.model, warmup + steps)]
    warm = [use(partial(stepper.step, batch), case.device) for batch in batches[:warmup]]
    stepper.clock.seconds()
    measured, usage = use(lambda: [stepper.step(batch) for batch in batches[warmup:]], case.device)
    taken, usages = [*(step for step, _ in warm), *measured], [*(item for _, item in warm), usage]
    parts = stepper.clock.seconds()
    return {
        "seconds": usage.seconds / steps,
        "cpu_seconds": usage.cpu_seconds / steps,
        "peak_mb": max(item.peak_mb for item in usages),
        "extra_mb": max(item.extra_mb for item in usages),
        "parts": {part: parts.get(part, 0.0) / steps for part in PARTS},
        "losses": [float(step["loss"]) for step in taken],
        "gradient_norms": [float(step["gradient_norm"]) for step in taken],
    }


def measure_points(settings: dict[str, Any], points: list[dict[str, Any]], count: int) -> list[dict[str, float]]:
    """Measure one model with several batches, each with other values of its case; for ``run_child``.

    Returns:
        For each point ``seconds`` and ``cpu_seconds`` of the fastest of ``count`` steps, ``peak_mb``, and the ``loss``
        of the first one.
    """
    case = Case(**settings)
    stepper = Stepper(case)
    results = []
    for point in points:
        changed = Case(**{**settings, **point})
        batches = [stepper.transport(batch) for batch in make_batches(changed, stepper.model, 1 + count)]
        steps, usages = zip(*(use(partial(stepper.step, batch), case.device) for batch in batches), strict=True)
        stepper.clock.seconds()
        results.append(
            {
                "seconds": min(usage.seconds for usage in usages[1:]),
                "cpu_seconds": min(usage.cpu_seconds for usage in usages[1:]),
                "peak_mb": max(usage.peak_mb for usage in usages),
                "loss": float(steps[0]["loss"]),
            }
        )
    return results


def describe_device(device: str, threads: int) -> dict[str, Any]:
    """Describe a device and measure its speed; for ``run_child``.

    Returns:
        ``name``; ``measured``, operations per second of large matrix products in the encoders' dtype; ``published``,
        what the maker says of 16-bit products, or ``None``.
    """
    if torch.device(device).type != "cuda":
        return {"name": f"{device}, {threads} threads", "measured": _matmul_rate(device, threads), "published": None}
    name = torch.cuda.get_device_name()
    known = [gpu.flops for kind, gpu in GPUS.items() if kind.split("-")[0] in re.split(r"[ -]", name)]
    return {"name": name, "measured": _matmul_rate(device, threads), "published": known[0] if known else None}


def _matmul_rate(device: str, threads: int) -> float:
    cuda = torch.device(device).type == "cuda"
    if not cuda:
        torch.set_num_threads(threads)
    side, dtype = (8192, torch.bfloat16) if cuda else (1536, torch.float32)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = min(use(lambda: a @ b, device)[1].seconds for _ in range(12))
    return 2 * side**3 / best
