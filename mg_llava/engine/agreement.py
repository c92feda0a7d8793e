"""Settings that follow from others, where the command line changes one of them alone."""

import copy
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from torch import nn

from mg_llava.data.config import load_config
from mg_llava.engine.command import command_line, is_training_command
from mg_llava.engine.hooks import nested_datasets
from mg_llava.tokens import tokens_without_embeddings

_PRECISIONS = {"bfloat16": "bf16", "float16": "fp16"}
"""Names of configs with those of DeepSpeed's settings."""

_TO_ZERO = ("CosineAnnealing", "Poly")
"""Schedules that end at ``eta_min``, by the beginning of their classes' names."""


def warn(text: str) -> None:
    """Write a warning to the log."""
    print_log(text, "current", logging.WARNING)


def fit_schedule(schedulers: Any, max_iters: int, max_epochs: float | None, epoch_length: int) -> Any:
    """Stretch a schedule to the length of the run, where ``train_cfg`` alone was changed.

    A schedule in epochs follows ``max_epochs``. Any that would end at a learning rate of zero before the run does is
    stretched; others are left alone, as ending early can be meant.

    Args:
        schedulers: Configs of schedulers; anything else is returned as it is.
        max_iters: Steps of the run.
        max_epochs: Its epochs, where it is stated in epochs.
        epoch_length: Steps of an epoch.
    """
    if not isinstance(schedulers, Sequence) or not all(isinstance(item, Mapping) for item in schedulers):
        return schedulers
    by_epoch = [item for item in schedulers if item.get("by_epoch", True)]
    timed = [item for item in schedulers if isinstance(item.get("end"), int | float)]
    if not timed or len({item.get("by_epoch", True) for item in timed}) > 1:
        return schedulers
    last = max(timed, key=lambda item: item["end"])
    run = (max_epochs if max_epochs is not None else max_iters / epoch_length) if by_epoch else max_iters
    freezes = last["end"] < run and _ends_at_zero(last)
    follows = bool(by_epoch) and max_epochs is not None and last["end"] > run
    if not (freezes or follows) or last["end"] <= 0:
        return schedulers
    factor = run / last["end"]
    unit = "epochs" if by_epoch else "steps"
    warn(f"param_scheduler is for {last['end']:g} {unit} and train_cfg for {run:g}; the schedule is stretched to that")
    return [_scaled(item, factor, whole=not by_epoch) if item in timed else item for item in schedulers]


def _ends_at_zero(scheduler: Mapping[str, Any]) -> bool:
    name = _class_name(scheduler["type"])
    return name.startswith(_TO_ZERO) and not scheduler.get("eta_min") and not scheduler.get("eta_min_ratio")


def _scaled(scheduler: dict[str, Any], factor: float, whole: bool) -> dict[str, Any]:
    scaled = copy.deepcopy(scheduler)
    for key in ("begin", "end", "T_max"):
        if scaled.get(key) is not None:
            scaled[key] = round(scaled[key] * factor) if whole else scaled[key] * factor
    return scaled


def _class_name(kind: Any) -> str:
    return kind.rsplit(".", 1)[-1] if isinstance(kind, str) else kind.__name__


def fit_sampler(dataloader: Any, accumulative_counts: int) -> Any:
    """Let a sampler that groups samples by length make groups of what a device sees between two updates."""
    if not isinstance(dataloader, Mapping) or not isinstance(dataloader.get("sampler"), Mapping):
        return dataloader
    sampler = dataloader["sampler"]
    wanted = dataloader.get("batch_size", 1) * accumulative_counts
    found = sampler.get("per_device_batch_size", wanted)
    if found == wanted:
        return dataloader
    warn(f"the sampler has per_device_batch_size={found}, but batch size x accumulation is {wanted}; it gets that")
    changed = copy.deepcopy(dataloader)
    changed["sampler"]["per_device_batch_size"] = wanted
    return changed


def fit_deepspeed(runner: Any) -> None:
    """Hand on what XTuner drops of ``optim_wrapper`` with ``--deepspeed``: groups, clipping and precision.

    Raises:
        ValueError: DeepSpeed cannot do what the config says.
    """
    if not hasattr(runner, "strategy") or not is_training_command() or not isinstance(runner.optim_wrapper, dict):
        return
    arguments = command_line()
    config = load_config(arguments.config, arguments.cfg_options)
    stated, wrapper = config.optim_wrapper, runner.optim_wrapper
    if _class_name(stated.type) == "DeepSpeedOptimWrapper":
        return
    for key in ("paramwise_cfg", "constructor"):
        if stated.get(key) is not None:
            wrapper[key] = stated[key]
    settings = runner.strategy.config
    settings["gradient_clipping"] = _clipping(stated.get("clip_grad"))
    fit_precision(settings, stated)
    if hasattr(runner.strategy, "hf_deepspeed_config"):
        # what transformers builds LLMs with under ZeRO-3
        runner.strategy.hf_deepspeed_config = type(runner.strategy.hf_deepspeed_config)(settings)


def send_contiguous_weights(runner: Any) -> None:
    """Let DeepSpeed wrap weights that are stored channel by channel: it sends their bytes, and refuses other layouts.

    Frozen weights that it leaves whole get their layout back.
    """
    strategy: Any = getattr(runner, "strategy", None)
    if type(strategy).__name__ != "DeepSpeedStrategy":
        return
    wrap = strategy._wrap_model

    def wrap_contiguous(model: nn.Module) -> nn.Module:
        moved = [parameter for parameter in model.parameters() if not parameter.is_contiguous()]
        for parameter in moved:
            parameter.data = parameter.data.contiguous()
        wrapped = wrap(model)
        for parameter in moved:
            if not parameter.requires_grad and parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        return wrapped

    strategy._wrap_model = wrap_contiguous


def _clipping(clip: Mapping[str, Any] | None) -> float:
    """DeepSpeed's number for a ``clip_grad``; 0 for none."""
    if not clip:
        return 0.0
    if clip.get("type", "norm") != "norm" or clip.get("norm_type", 2) != 2 or "max_norm" not in clip:
        raise ValueError(f"clip_grad={dict(clip)}: DeepSpeed clips by the 2-norm alone; use dict(max_norm=...)")
    return float(clip["max_norm"])


def fit_precision(settings: dict[str, Any], stated: Mapping[str, Any]) -> None:
    """Let DeepSpeed's settings, which are changed, train in the precision of ``optim_wrapper``."""
    is_amp = _class_name(stated["type"]).startswith("Amp")
    name = str(stated.get("dtype") or "float16").removeprefix("torch.") if is_amp else "float32"
    wanted = _PRECISIONS.get(name)
    enabled = [key for key in _PRECISIONS.values() if settings.get(key, {}).get("enabled")]
    if enabled == ([wanted] if wanted else []):
        return
    if wanted == "bf16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        warn("the config says bfloat16, which this GPU does not have; DeepSpeed trains in float16")
        return
    warn(f"DeepSpeed's settings say {' and '.join(enabled) or 'float32'}, the config {name}: it trains in {name}")
    for key in _PRECISIONS.values():
        if key in settings or key == wanted:
            settings[key] = {**settings.get(key, {}), "enabled": key == wanted}


def warn_about_rounding(model: nn.Module, wrapper: Any) -> None:
    """Warn when most updates of low-precision weights would be rounded away.

    An update of Adam is at most about the learning rate; a weight moves by no less than half the distance to its
    neighbour. DeepSpeed keeps float32 copies, plain optimizers do not.
    """
    optimizer = wrapper.optimizer
    if not _class_name(type(optimizer)).startswith("Adam"):
        return
    rates = {
        id(p): float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups for p in group["params"]
    }
    low = [p for p in model.parameters() if p.requires_grad and p.dtype in (torch.bfloat16, torch.float16)]
    shares = list(_stuck_shares(low, rates))
    if not shares:
        return
    stuck = sum(share * size for share, size in shares) / sum(size for _, size in shares)
    if stuck > 0.5:
        warn(
            f"{stuck:.0%} of the trained {str(low[0].dtype).removeprefix('torch.')} weights are too large to move by "
            f"the learning rate {max(rates.values()):g}: steps are rounded away. Keep float32 weights "
            "(model.llm.dtype=float32; autocast still computes in low precision), use --deepspeed deepspeed_zero2, "
            "which keeps float32 copies, or tuning='lora'"
        )


@torch.no_grad()
def _stuck_shares(parameters: Iterable[nn.Parameter], rates: Mapping[int, float]) -> Iterable[tuple[float, int]]:
    """For each parameter the share of its values that a step cannot move, from a sample, and its size."""
    for parameter in parameters:
        values = parameter.detach().flatten()
        sample = values[:: max(1, len(values) // 4096)].abs()
        _, exponent = torch.frexp(sample.float())
        spacing = torch.ldexp(torch.tensor(torch.finfo(parameter.dtype).eps / 2, device=sample.device), exponent)
        rate = rates.get(id(parameter), 0.0)
        if len(sample) and rate > 0:
            yield float((spacing / 2 > rate).float().mean()), parameter.numel()


def check_vocabulary(model: nn.Module, dataset: Any) -> None:
    """Stop before an id of a text would be looked up in word embeddings that do not have it.

    Args:
        model: The system.
        dataset: A data set, or one that is made of others.

    Raises:
        ValueError: Names both numbers, tokens and the fix.
    """
    llm: Any = getattr(model, "llm", None)
    for part in nested_datasets(dataset):
        tokenizer = getattr(part, "tokenizer", None)
        if llm is None or tokenizer is None:
            continue
        rows: int | None = getattr(llm.get_input_embeddings(), "num_embeddings", None)
        problem = None if rows is None else tokens_without_embeddings(tokenizer, rows)
        if problem:
            raise ValueError(f"{getattr(part, 'name', type(part).__name__)}: {problem}")


def fit_intervals(runner: Any, accumulative_counts: int) -> None:
    """Write checkpoints after updates: between two of them a checkpoint would lack the gradients so far."""
    for hook in runner.hooks:
        is_by_step = isinstance(hook, CheckpointHook) and not hook.by_epoch and hook.interval > 0
        if is_by_step and hook.interval % accumulative_counts:
            wanted = hook.interval + -hook.interval % accumulative_counts
            warn(
                f"checkpoints every {hook.interval} steps fall between updates of {accumulative_counts} steps; they "
                f"are written every {wanted} (save_steps)"
            )
            hook.interval = wanted
