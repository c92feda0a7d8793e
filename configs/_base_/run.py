"""A run of any system: data, optimizer, schedule and hooks. Builder functions, as those of the systems.

``system`` is what a builder of ``systems/`` gives, ``data`` one source, or ``dict(sources=[...])`` with what all of
them share. Settings have XTuner's names; each belongs to one of the functions below.
"""

from mmengine.config import read_base
from mmengine.dataset import DefaultSampler
from mmengine.hooks import DistSamplerSeedHook, IterTimerHook, LoggerHook, ParamSchedulerHook
from mmengine.optim import AmpOptimWrapper, CosineAnnealingLR, OptimWrapper
from torch.optim import AdamW

from mg_llava.data import LengthGroupedSampler, LLaVADataset, MixtureDataset, TokenBatchSampler
from mg_llava.data.collate import collate  # the package's attribute of this name is the module
from mg_llava.engine import (
    DataReportHook,
    FeatureCacheHook,
    GateMonitorHook,
    LossHook,
    RandomStateHook,
    SafeCheckpointHook,
    SampleGenerationHook,
    ThroughputHook,
    TrainLoop,
    WarmupLR,
)
from mg_llava.engine.curves import CurvesVisualizer
from mg_llava.models import GatedPrompts
from mg_llava.models.counting import count_tokens

with read_base():
    from .evaluation import evaluate_on


def pretrain(system, data, *, lr=1e-3, tuning="frozen", **settings):
    """Stage 1: captions train what connects; LLM and encoders are frozen."""
    sampler = dict(type=DefaultSampler, shuffle=True)
    return stage(system, data, lr=lr, tuning=tuning, sampler=sampler, pretrained_pth=None, **settings)


def instruct(system, data, *, batch_size, pretrained_pth, lr=2e-5, tuning="full", accumulative_counts=1, **settings):
    """Stage 2: instructions train the LLM as well; starts from the checkpoint of stage 1."""
    sampler = dict(type=LengthGroupedSampler, per_device_batch_size=batch_size * accumulative_counts)
    own = dict(lr=lr, tuning=tuning, batch_size=batch_size, accumulative_counts=accumulative_counts)
    return stage(system, data, sampler=sampler, pretrained_pth=pretrained_pth, **own, **settings)


def stage(system, data, *, precision="bfloat16", seed=None, evaluation=None, **settings):
    """All keys of a run; each of ``settings`` goes to the function that has an argument of its name.

    ``evaluation`` has the settings of ``evaluate_on``, for ``xtuner test``: ``dict(benchmarks=["pope"])``.
    """
    settings.update(system=system, data=data, precision=precision)
    arguments = {build: build.__code__.co_varnames[: build.__code__.co_argcount] for build in _BUILDERS}
    known = {name for names in arguments.values() for name in names}
    unknown = sorted(set(settings) - known)
    if unknown:
        moved = [f"{name} is now {_MOVED[name]}" for name in unknown if name in _MOVED]
        known_ones = f"known: {', '.join(sorted(known - {'system', 'data'}))}"
        raise TypeError("; ".join([f"unknown settings {', '.join(unknown)}", *moved, known_ones]))
    own = {name: value for name, value in system.items() if name != "extra"}  # of the data set
    keys = dict(**own, randomness=dict(seed=seed, deterministic=False))
    for build, names in arguments.items():
        keys.update(build(**{name: settings[name] for name in names if name in settings}))
    if evaluation:
        shared = ("prompt_template", "tokenizer", "picture_processor", "prompt_parts")
        text = {name: system[name] for name in shared if name in system}
        keys.update(evaluate_on(**text, **evaluation))
    return keys


def train_model(system, precision, pretrained_pth, tuning, gradient_checkpointing=True, lora=None, prompts=None):
    """The model with its precision and the weights that it starts from.

    ``tuning`` is that of the LLM, or ``"gated_prompts"``: prompts in the layers of the frozen LLM. ``lora`` and
    ``prompts`` are settings of either. ``gradient_checkpointing`` is True, False or ``"selective"`` (in between).
    """
    model = dict(system["model"], pretrained_pth=pretrained_pth)
    dtype = "auto" if precision == "bfloat16" else precision
    for name, part in model.items():
        if part is not None and (name in _SIGHTED or name.endswith("encoder")):
            model[name] = {"dtype": dtype, **part}
    if prompts is not None and tuning != "gated_prompts":
        raise TypeError(f"prompts are settings of tuning='gated_prompts', but tuning={tuning!r}")
    if tuning == "gated_prompts":
        tuning, model["prompts"] = "frozen", dict(type=GatedPrompts, **(prompts or {}))
    if model["llm"] is not None:
        model["llm"].update(tuning=tuning, gradient_checkpointing=gradient_checkpointing)
        if lora is not None:
            model["llm"]["lora"] = lora
    return dict(model=model)


def load_data(
    system,
    data,
    batch_size,
    sampler,
    context_length=2048,
    dataloader_num_workers=4,
    dataset=None,
    batch_tokens=None,
):
    """The data, with as many tokens for a picture as the model says; ``dataset`` changes settings of all sources.

    With ``batch_tokens`` a batch has as many samples as fit into this number of tokens, ``batch_size`` at most.

    ``published_samples`` in ``data`` is for plans alone (``tools/plan.py``), while the files are not there.
    """
    source = dict(data)
    extra = {name: source.pop(name) for name in ("published_samples",) if name in source}
    train_dataset = dict(
        type=MixtureDataset if "sources" in source else LLaVADataset,
        tokenizer=system["tokenizer"],
        template=system["prompt_template"],
        picture_processor=system["picture_processor"],
        tokens=dict(type=count_tokens, model={**system["model"], "llm": None}),
        budget=dict(context_length=context_length, spare_picture=True),
        **source,
    )
    boxes = dict(prompt=system.get("prompt_parts"), extra=system.get("extra"))
    if any(boxes.values()):
        own = {name: value for name, value in boxes.items() if value}
        train_dataset["boxes"] = {**train_dataset.get("boxes", {}), **own}
    for name, value in (dataset or {}).items():
        is_group = isinstance(value, dict) and "type" not in value
        train_dataset[name] = {**train_dataset.get(name, {}), **value} if is_group else value
    loader = dict(
        batch_size=batch_size,
        num_workers=dataloader_num_workers,
        pin_memory=True,
        persistent_workers=dataloader_num_workers > 0,
        dataset=train_dataset,
        sampler=sampler,
        collate_fn=dict(type=collate),
    )
    if batch_tokens is not None:
        loader["sampler"] = dict(type=LengthGroupedSampler, per_device_batch_size=batch_size)
        loader["batch_sampler"] = dict(type=TokenBatchSampler, tokens=batch_tokens)
    return dict(**extra, train_dataloader=loader)


def optimize(
    precision,
    lr,
    betas=(0.9, 0.999),
    weight_decay=0,
    max_norm=1,
    accumulative_counts=1,
    fused_optimizer=True,
    lr_mult=None,
):
    """AdamW with clipped gradients; ``lr_mult`` has factors of the learning rate by key of a part."""
    fused = dict(fused=True) if fused_optimizer else {}
    wrapper = dict(
        type=OptimWrapper if precision == "float32" else AmpOptimWrapper,
        optimizer=dict(type=AdamW, lr=lr, betas=betas, weight_decay=weight_decay, **fused),
        clip_grad=dict(max_norm=max_norm, error_if_nonfinite=False),
        accumulative_counts=accumulative_counts,
    )
    if lr_mult is not None:
        factors = {key: dict(lr_mult=value) for key, value in lr_mult.items()}
        wrapper["paramwise_cfg"] = dict(custom_keys=factors, bypass_duplicate=True)  # of an LLM with tied embeddings
    if precision != "float32":
        wrapper.update(dtype=precision, loss_scale="dynamic" if precision == "float16" else 1.0)
    return dict(optim_wrapper=wrapper)


def schedule(max_epochs=1, warmup_ratio=0.03, loss_weighting="tokens", min_lr=0.0):
    """Linear warmup for a share of all steps, then a cosine to ``min_lr``.

    Labeled tokens of a step weigh the same in its gradient, however they are spread over micro-batches and processes;
    with ``loss_weighting="micro_batches"`` micro-batches of processes do, as in the reference.
    """
    warmup, steps = warmup_ratio * max_epochs, dict(by_epoch=True, convert_to_iter_based=True)
    return dict(
        train_cfg=dict(type=TrainLoop, max_epochs=max_epochs, loss_weighting=loss_weighting),
        param_scheduler=[
            dict(type=WarmupLR, start_factor=1e-5, begin=0, end=warmup, **steps),
            dict(type=CosineAnnealingLR, eta_min=min_lr, begin=warmup, end=max_epochs, **steps),
        ],
    )


def watch(
    system,
    log_interval=10,
    save_steps=500,
    save_total_limit=2,
    evaluation_freq=500,
    evaluation_samples=(),
    curves=None,
):
    """Hooks: what is logged and saved, and which questions are answered during training.

    ``curves`` shows what is logged in ``"tensorboard"``, ``"wandb"`` or ``"swanlab"``.
    """
    custom_hooks = [
        dict(type=RandomStateHook),
        dict(type=GateMonitorHook, interval=log_interval),
        dict(type=ThroughputHook, interval=log_interval),
        dict(type=DataReportHook),
        dict(type=FeatureCacheHook),
    ]
    if evaluation_samples:
        answer = dict(
            type=SampleGenerationHook,
            tokenizer=system["tokenizer"],
            template=system["prompt_template"],
            picture_processor=system["picture_processor"],
            samples=list(evaluation_samples),
            every_n_iters=evaluation_freq,
        )
        custom_hooks.append(answer)
    save = dict(type=SafeCheckpointHook, by_epoch=False, save_optimizer=True)
    default_hooks = dict(
        runtime_info=dict(type=LossHook),
        timer=dict(type=IterTimerHook),
        logger=dict(type=LoggerHook, log_metric_by_epoch=False, interval=log_interval),
        param_scheduler=dict(type=ParamSchedulerHook),
        checkpoint=dict(**save, interval=save_steps, max_keep_ckpts=save_total_limit),
        sampler_seed=dict(type=DistSamplerSeedHook),
    )
    shown = {} if curves is None else dict(visualizer=dict(type=CurvesVisualizer, curves=curves))
    return dict(custom_hooks=custom_hooks, default_hooks=default_hooks, **shown)


_SIGHTED = ("llm", "detector", "segmenter")
"""Parts with a dtype beside those whose names end with ``encoder``."""

_ROW = "a key of the LLM's row, the builder's first argument: {**nano, '%s': ...}"
_PART = "an argument of the system: model=dict(%s=...)"
_MOVED = {
    **{name: _ROW % name for name in ("llm_name_or_path", "prompt_template", "trust_remote_code")},
    **{name: _PART % name for name in ("fusion", "box_projector", "projector", "merger", "picture")},
    "model_options": "model=dict(...)",
    "vision": "an argument of paper_pretrain and paper_instruct, or of the system's builder",
}

_BUILDERS = (train_model, load_data, optimize, schedule, watch)
