"""Facts of a run that belong together: stored in its checkpoints, and compared when one is resumed."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.dist import get_world_size
from mmengine.logging import print_log
from torch import nn

from mg_llava.data.samplers import LengthGroupedSampler
from mg_llava.engine.hooks import unwrap_model
from mg_llava.models.weights.checkpoint import open_training_checkpoint

FACTS_KEY = "run_facts"
TRAINED = "trained part "
WEIGHTING = "loss weighting (train_cfg.loss_weighting)"

RunFacts = dict[str, str | int | float | bool | None]
"""Plain values by what they are, as messages name them."""


class ResumeError(ValueError):
    """A checkpoint that this run cannot go on from; the message lists all that differs and the ways out."""


def describe_run(runner: Any) -> RunFacts:
    """The facts of a run whose model, optimizer and schedulers are built."""
    loop, loader = runner.train_loop, runner.train_dataloader
    facts: RunFacts = dict(_trained(unwrap_model(runner.model)))
    facts |= _data(loader)
    facts["steps in all (train_cfg)"] = loop.max_iters
    facts |= _precision(runner)
    facts[WEIGHTING] = loop.loss_weighting if _has_shared_steps(facts) else "tokens"
    facts |= _optimizer(runner.optim_wrapper)
    for number, scheduler in enumerate(runner.param_schedulers or ()):
        for key, value in _plain(scheduler.state_dict()).items():
            if key not in ("last_step", "verbose") and not key.startswith("_"):
                facts[f"param_scheduler {number} ({type(scheduler).__name__}) {key}"] = value
    return facts


def check_resume(runner: Any, path: str) -> None:
    """Whether a run may go on from a checkpoint.

    Raises:
        FileNotFoundError: There is none.
        CheckpointError: It is damaged or of another kind.
        ResumeError: It is of a run with other settings.
    """
    if not path:
        raise ResumeError(f"{runner.work_dir}/last_checkpoint is empty; give the checkpoint: --resume .../iter_N.pth")
    if "://" in path:
        return
    checkpoint = open_training_checkpoint(path)
    hub = checkpoint.extra.get("message_hub")
    info = hub.get("runtime_info") if isinstance(hub, Mapping) else None
    stored = info.get(FACTS_KEY) if isinstance(info, Mapping) else None
    current = describe_run(runner)
    if isinstance(stored, Mapping):
        # before there was a choice
        earlier = {WEIGHTING: "micro_batches" if _has_shared_steps(current) else "tokens"}
        kept = {name: value for name, value in stored.items() if name in current or name not in _SHARES}
        lines = differences({**earlier, **kept}, current)
    else:
        print_log(f"{path} does not say with which settings it was trained; they are not compared", "current", 30)
        names = {name for name, p in unwrap_model(runner.model).named_parameters() if p.requires_grad}
        absent = sorted(names - set(checkpoint.tensors))
        lines = [f"{len(absent)} trained tensors are not in it, e.g. {absent[0]}"] if absent else []
    if lines:
        raise ResumeError(_refusal(path, lines))


def _has_shared_steps(facts: RunFacts) -> bool:
    """Whether a step has several micro-batches or processes; the tokens of a lone batch weigh the same anyhow."""
    return get_world_size() * int(facts["gradient accumulation"] or 1) > 1


def differences(stored: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """One line for each fact that is not the same."""
    names = [name for name in {**stored, **current} if stored.get(name) != current.get(name)]
    return [f"{name}: {_show(stored, name)} in the checkpoint, {_show(current, name)} here" for name in names]


def _show(facts: Mapping[str, Any], name: str) -> str:
    return "nothing" if facts.get(name) is None else str(facts[name])


def _refusal(path: str, lines: list[str]) -> str:
    stage = any(line.startswith(TRAINED) or "trained tensors" in line for line in lines)
    other = " (it looks like one of another stage)" if stage else ""
    return "\n  ".join(
        [
            f"{path} cannot be resumed with these settings{other}:",
            *lines,
            "To go on with that run, set these back. To start a new run from its weights, with a schedule of its own, "
            f"leave out --resume and give --cfg-options model.pretrained_pth={Path(path)}",
        ]
    )


def _trained(model: nn.Module) -> Iterator[tuple[str, str]]:
    """For each part what of it is trained, as a text that changes with the names and sizes of its parameters."""
    parts: dict[str, list[tuple[str, int]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            size = getattr(parameter, "ds_numel", parameter.numel())  # whole where ZeRO-3 has split it
            parts.setdefault(name.split(".", 1)[0], []).append((name, size))
    for part, found in parts.items():
        digest = hashlib.blake2b(repr(sorted(found)).encode(), digest_size=4).hexdigest()
        yield TRAINED + part, f"{len(found)} tensors with {sum(size for _, size in found):,} numbers ({digest})"


def _data(loader: Any) -> RunFacts:
    sampler = loader.batch_sampler.sampler if loader.batch_sampler is not None else loader.sampler
    processes = get_world_size()
    kind = type(sampler).__name__
    facts: RunFacts = {
        "samples in a step (batch size x processes)": (loader.batch_size or 0) * processes,
        "records": _length(loader.dataset),
        "steps in an epoch": _length(loader),
        "order of samples": kind,
    }
    by_tokens = hasattr(loader.batch_sampler, "tokens")
    if by_tokens or not isinstance(sampler, DefaultSampler | InfiniteSampler | LengthGroupedSampler):
        facts |= dict(zip(_SHARES, (loader.batch_size, processes), strict=True))  # the others know the product alone
    if not isinstance(sampler, DefaultSampler | InfiniteSampler):
        facts |= {f"{kind} {key}": value for key, value in _plain(vars(sampler)).items() if key in _SAMPLER_SETTINGS}
    if by_tokens:
        facts["tokens in a batch"] = loader.batch_sampler.tokens
    return facts


_SHARES = ("batch size", "processes")
_SAMPLER_SETTINGS = ("group_size", "round_up", "shuffle")


def _length(sized: Any) -> int | None:
    try:
        return len(sized)
    except TypeError:
        return None


def _precision(runner: Any) -> RunFacts:
    strategy = getattr(runner, "strategy", None)
    if strategy is None:
        cast = getattr(runner.optim_wrapper, "cast_dtype", None)
        return {
            "precision": str(cast or torch.float32).removeprefix("torch."),
            "gradient accumulation": runner.optim_wrapper._accumulative_counts,
            "DeepSpeed": "no",
        }
    config = strategy.config
    names = {"bf16": "bfloat16", "fp16": "float16"}
    precision = next((name for key, name in names.items() if config.get(key, {}).get("enabled")), "float32")
    return {
        "precision": precision,
        "gradient accumulation": config["gradient_accumulation_steps"],
        "DeepSpeed": f"ZeRO-{config.get('zero_optimization', {}).get('stage', 0)}",
        "processes": get_world_size(),
    }


def _optimizer(wrapper: Any) -> RunFacts:
    """Kind and settings, each with its values in all groups of parameters."""
    optimizer = getattr(wrapper.optimizer, "optimizer", wrapper.optimizer)  # within DeepSpeed's
    facts: RunFacts = {"optimizer": type(optimizer).__name__}
    for name, key in (("learning rate", "initial_lr"), ("weight decay", "weight_decay"), ("betas", "betas")):
        values = {
            repr(group.get(key, group["lr"] if key == "initial_lr" else None)) for group in optimizer.param_groups
        }
        facts[name] = ", ".join(sorted(values))
    return facts


def _plain(values: Mapping[str, Any]) -> RunFacts:
    return {key: value for key, value in values.items() if isinstance(value, str | int | float | bool)}
