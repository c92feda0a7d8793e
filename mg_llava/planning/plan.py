"""A dry run of a training config: what it trains, computes, needs and lacks."""

import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mg_llava.batch import TokenCount
from mg_llava.models.architectures import ArchitectureError
from mg_llava.models.vision import refuse_features
from mg_llava.planning.checks import count_samples, find_cautions, find_conflicts, find_missing
from mg_llava.planning.feature_cache import DISK, FeaturePlan, plan_feature_cache
from mg_llava.planning.flops import BOXES, TEXT_TOKENS, Flops, Sample, count_flops
from mg_llava.planning.gpus import GPU
from mg_llava.planning.memory import STRATEGIES, Activations, Memory, measure_activations, share_memory, weigh
from mg_llava.planning.skeleton import Skeleton, build_skeleton

OK, IMPOSSIBLE, MISSING = 0, 1, 3
"""Exit statuses of a plan."""


@dataclass(frozen=True)
class Steps:
    """How long an epoch is; None where the number of samples is not known."""

    samples: int | None
    source: str
    total_batch: int
    iterations: int | None
    updates: int | None
    hours_per_epoch: float | None
    epochs: int


@dataclass
class Plan:
    """Everything that is known of a run before it starts.

    Attributes:
        config: Path of the config.
        gpu: Name of the GPU.
        gpus: How many there are.
        mfu: Share of the GPUs' throughput that is used, recomputation not counted as use.
        conflicts: Options that do not go together; the rest is empty where no model could be built.
        missing: Files that are not there.
        notes: What was assumed.
        parameters: All and trained parameters, by part.
        flops: Operations of one sample.
        memory: Memory on one GPU, by DeepSpeed setting.
        activations: What of it are activations.
        fits: DeepSpeed settings that fit, the fastest first.
        steps: Length of an epoch.
        features: What a feature cache takes and saves; None where the number of samples is not known, or where no
            cache can stand for the encoders.
    """

    config: str
    gpu: str
    gpus: int
    mfu: float
    conflicts: list[str] = field(default_factory=list)
    missing: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    parameters: dict[str, dict[str, int]] = field(default_factory=dict)
    flops: Flops | None = None
    memory: list[Memory] = field(default_factory=list)
    activations: Activations | None = None
    fits: list[str] = field(default_factory=list)
    steps: Steps | None = None
    features: FeaturePlan | None = None

    @property
    def status(self) -> int:
        """Exit status: ``OK``, ``IMPOSSIBLE`` or ``MISSING``."""
        if self.conflicts:
            return IMPOSSIBLE
        return MISSING if self.missing else OK

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        memory = [{**asdict(item), "total": item.total} for item in self.memory]
        flops = self.flops and {**asdict(self.flops), "multiply_adds": self.flops.multiply_adds}
        return {**asdict(self), "flops": flops, "memory": memory, "status": self.status}


def make_plan(
    config: Any,
    gpu: GPU,
    gpus: int = 8,
    mfu: float = 0.4,
    deepspeed: str | None = None,
    text_tokens: int | None = None,
    boxes: int = BOXES,
    samples: int | None = None,
    published: str | Path | None = None,
    disk: float = DISK,
    frames: int = 0,
) -> Plan:
    """Plan the run of a config.

    Args:
        config: A training config (``mmengine.Config``).
        gpu: The kind of GPU.
        gpus: How many.
        mfu: Model FLOPs utilization to assume.
        deepspeed: The DeepSpeed setting that must fit; None where any may.
        text_tokens: Text of a typical sample, for time; memory is that of full rows. None takes the paper's, or what
            the context has room for.
        boxes: Box tokens of a typical sample.
        samples: Samples of an epoch, where the data is not here.
        published: Folder with the numbers of models that are not here.
        disk: Bytes per second at which all GPUs together read a feature cache.
        frames: A typical sample is about a video of so many frames; 0 for a picture.

    Raises:
        ConfigError: The config has no model or no training set.
        ValueError: ``gpus``, ``mfu`` or ``deepspeed`` make no sense.
    """
    names = [strategy.name for strategy in STRATEGIES]
    if gpus < 1 or not 0 < mfu <= 1 or deepspeed not in (None, *names):
        raise ValueError(f"gpus must be at least 1, mfu between 0 and 1, deepspeed one of {', '.join(names)}")
    plan = Plan(str(config.filename), gpu.name, gpus, mfu, missing=find_missing(config))
    skeleton = _build(config, plan, published)
    plan.conflicts += find_conflicts(config, skeleton, gpu, deepspeed)
    if skeleton is None:
        return plan
    plan.parameters = {name: _count(part) for name, part in skeleton.parts().items()}
    context = (config.train_dataloader.dataset.get("budget") or {}).get("context_length")
    about = Sample(text_tokens or TEXT_TOKENS, boxes, int(skeleton.model.token_count.per_crop > 0), frames)
    sample = _typical(plan, skeleton.model.token_count, context or math.inf, about)
    plan.flops = count_flops(skeleton, sample)
    _plan_memory(plan, config, skeleton, gpu, deepspeed, context or plan.flops.length)
    plan.steps = _plan_steps(config, plan.flops, gpu, gpus, mfu, samples)
    if plan.steps.hours_per_epoch is None:
        plan.notes.append(f"hours are not known: {plan.steps.source}; give the number of samples")
    refused = refuse_features(skeleton.model)
    if refused:
        plan.notes.append(f"no feature cache: {'; '.join(refused)}")
    elif plan.steps.samples:
        plan.notes.append("for a feature cache: a picture in each sample, encoders at the MFU of all")
        throughput = gpus * gpu.flops * mfu
        plan.features = plan_feature_cache(
            config, skeleton.model, plan.flops, plan.steps.samples, throughput, boxes, disk
        )
    return plan


def _typical(plan: Plan, count: TokenCount, room: float, about: Sample) -> Sample:
    """A typical sample, with an object image where the model reads some, and with the text that there is room for."""
    sample = replace(about, text=int(max(1, min(about.text, room - about.visual(count)))))
    crops = ", and an object image," if sample.crops else ""
    shown = f"{sample.frames} frames of {count.of_frames(1, 0)} tokens, " if sample.frames else ""
    each = " a frame" if sample.frames else ""
    typical = f"{shown}{sample.text} text and {sample.boxes} box tokens{each}{crops} in a typical sample"
    plan.notes += [f"{typical}; memory is that of full rows"]
    return sample


def _build(config: Any, plan: Plan, published: str | Path | None) -> Skeleton | None:
    try:
        skeleton = build_skeleton(config.model, published)
    except ArchitectureError as error:
        plan.conflicts.append(str(error))
        return None
    except (ValueError, TypeError, KeyError, FileNotFoundError) as error:
        plan.conflicts.append(f"the model cannot be built: {error}")
        return None
    plan.notes += [*skeleton.notes, *find_cautions(config, skeleton)]
    return skeleton


def _count(part: Any) -> dict[str, int]:
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in part.parameters()]
    return {"all": sum(size for size, _ in sizes), "trained": sum(size for size, on in sizes if on)}


def _plan_memory(plan: Plan, config: Any, skeleton: Skeleton, gpu: GPU, deepspeed: str | None, length: int) -> None:
    """Fill in the memory and what fits; a conflict where nothing does."""
    weights = weigh(skeleton)
    plan.activations = measure_activations(skeleton, length, config.train_dataloader.batch_size)
    plan.memory = [share_memory(weights, plan.activations.peak, s, plan.gpus) for s in STRATEGIES]
    possible = [item for item in plan.memory if not (skeleton.quantized and "zero3" in item.strategy)]
    if config.optim_wrapper.get("dtype", "float32") not in ("bfloat16", "float16"):
        possible = plan.memory[:1]
    plan.fits = [item.strategy for item in possible if item.total <= gpu.memory]
    wanted = [item for item in possible if deepspeed in (None, item.strategy)]
    if wanted and not any(item.strategy in plan.fits for item in wanted):
        least = min(wanted, key=lambda item: item.total)
        plan.conflicts.append(
            f"{least.strategy} takes {least.total / 2**30:.0f} GiB of {gpu.name}'s {gpu.memory / 2**30:.0f}; use more "
            "GPUs, a smaller batch_size with more accumulative_counts, gradient_checkpointing"
            + (f", or {plan.fits[0]}" if plan.fits else ", or tuning='lora'")
        )


def _plan_steps(config: Any, flops: Flops, gpu: GPU, gpus: int, mfu: float, samples: int | None) -> Steps:
    source = "given"
    if samples is None:
        samples, source = count_samples(config)
    batch, accumulated = config.train_dataloader.batch_size, config.optim_wrapper.get("accumulative_counts", 1)
    total, epochs = batch * accumulated * gpus, config.train_cfg.get("max_epochs", 1)
    if samples is None:
        return Steps(None, source, total, None, None, None, epochs)
    iterations = math.ceil(samples / (batch * gpus))
    hours = samples * sum(flops.training.values()) / (gpus * gpu.flops * mfu) / 3600
    return Steps(samples, source, total, iterations, math.ceil(iterations / accumulated), hours, epochs)
