"""Builder functions of the two stages: the only place where the parts of a training run are wired.

A leaf config calls one of them with its settings. Plain inheritance would be unsafe: nested dicts of a base are
copied, so that changing ``llm`` in a leaf would leave the old one in ``model`` and in the dataset.
"""

from mmengine.config import read_base
from mmengine.dataset import DefaultSampler
from mmengine.hooks import DistSamplerSeedHook, IterTimerHook, LoggerHook, ParamSchedulerHook
from mmengine.optim import AmpOptimWrapper, CosineAnnealingLR, OptimWrapper
from torch.optim import AdamW
from transformers import AutoTokenizer

from mg_llava.data import LengthGroupedSampler, LLaVADataset, MixtureDataset, PictureProcessor
from mg_llava.data.collate import collate  # the package's attribute of this name is the module
from mg_llava.engine import (
    DataReportHook,
    FeatureCacheHook,
    FiniteHook,
    GateMonitorHook,
    LossHook,
    RandomStateHook,
    SafeCheckpointHook,
    SampleGenerationHook,
    ThroughputHook,
    TrainLoop,
    WarmupLR,
)
from mg_llava.models import ConvGateFusion, MGLLaVA, MLPProjector, RoIAlignBoxProjector, build_language_model

with read_base():
    from .evaluation import evaluate_on


def pretrain(*, batch_size, lr=1e-3, tuning="frozen", **settings):
    """Stage 1: captions train the fusion and both projectors; LLM and encoders are frozen."""
    sampler = dict(type=DefaultSampler, shuffle=True)
    return _stage(batch_size=batch_size, lr=lr, tuning=tuning, sampler=sampler, pretrained_pth=None, **settings)


def instruct(*, batch_size, pretrained_pth, lr=2e-5, tuning="full", accumulative_counts=1, **settings):
    """Stage 2: instructions train the LLM as well; starts from the checkpoint of stage 1."""
    sampler = dict(type=LengthGroupedSampler, per_device_batch_size=batch_size * accumulative_counts)
    return _stage(
        batch_size=batch_size,
        lr=lr,
        tuning=tuning,
        sampler=sampler,
        pretrained_pth=pretrained_pth,
        accumulative_counts=accumulative_counts,
        **settings,
    )


def _stage(
    *,
    llm_name_or_path,
    prompt_template,
    vision,
    data,
    batch_size,
    lr,
    tuning,
    sampler,
    pretrained_pth,
    context_length=2048,
    accumulative_counts=1,
    dataloader_num_workers=4,
    max_epochs=1,
    weight_decay=0,
    betas=(0.9, 0.999),
    max_norm=1,
    warmup_ratio=0.03,
    save_steps=500,
    save_total_limit=2,
    evaluation_freq=500,
    evaluation_samples=(),
    precision="bfloat16",
    gradient_checkpointing=True,
    fused_optimizer=True,
    model_options=None,
    llm=None,
    trust_remote_code=False,
    fusion="conv_gate",
    box_projector="roi_align",
    picture=None,
    dataset=None,
    log_interval=10,
    seed=None,
    evaluation=None,
):
    """All keys of a run. ``fusion=None`` and ``box_projector=None`` leave a branch out; dicts replace one.

    ``data`` is one source, or ``dict(sources=[...])`` with what all of them share; ``dataset`` changes settings of it.
    ``evaluation`` has the settings of ``evaluate_on``, for ``xtuner test``: ``dict(benchmarks=["pope"])``.
    ``gradient_checkpointing`` is True, False or ``"selective"`` (in between); ``model_options`` are arguments of
    the model, such as ``dict(packing=4096, compile_vision=True, losses=[dict(type=LanguageLoss, kernel="liger")])``.
    ``published_samples`` in ``data`` is for plans alone (``tools/plan.py``), while the files are not there.
    """
    tokenizer = dict(
        type=AutoTokenizer.from_pretrained, pretrained_model_name_or_path=llm_name_or_path, padding_side="right"
    )
    llm = dict(llm or {})
    if trust_remote_code:  # of the LLM's folder
        tokenizer["trust_remote_code"] = llm["trust_remote_code"] = True
    picture_processor = dict(type=PictureProcessor, image_size=vision["image_size"])
    picture_processor.update(picture or {})
    branches = dict(conv_gate=dict(type=ConvGateFusion), roi_align=dict(type=RoIAlignBoxProjector))
    model = dict(
        type=MGLLaVA,
        llm=dict(
            type=build_language_model,
            path=llm_name_or_path,
            tuning=tuning,
            gradient_checkpointing=gradient_checkpointing,
        ),
        low_res_encoder=dict(vision["low_res_encoder"]),
        high_res_encoder=dict(vision["high_res_encoder"]),
        fusion=branches[fusion] if isinstance(fusion, str) else fusion,
        box_projector=branches[box_projector] if isinstance(box_projector, str) else box_projector,
        projector=dict(type=MLPProjector),
        pretrained_pth=pretrained_pth,
        **(model_options or {}),
    )
    if model["fusion"] is None and model["box_projector"] is None:
        model["high_res_encoder"] = None
    model["llm"].update(llm)
    for part in ("llm", "low_res_encoder", "high_res_encoder"):
        if model[part] is not None:
            model[part].setdefault("dtype", "auto" if precision == "bfloat16" else precision)

    data = dict(data)
    published_samples = data.pop("published_samples", None)
    train_dataset = dict(
        type=MixtureDataset if "sources" in data else LLaVADataset,
        tokenizer=tokenizer,
        template=prompt_template,
        picture_processor=picture_processor,
        tokens=dict(per_canvas=vision["visual_tokens"], per_box=0 if box_projector is None else 1),
        budget=dict(context_length=context_length, max_length=context_length - vision["visual_tokens"]),
        **data,
    )
    for name, value in (dataset or {}).items():
        is_group = isinstance(value, dict) and "type" not in value
        train_dataset[name] = {**train_dataset.get(name, {}), **value} if is_group else value
    train_dataloader = dict(
        batch_size=batch_size,
        num_workers=dataloader_num_workers,
        pin_memory=True,
        persistent_workers=dataloader_num_workers > 0,
        dataset=train_dataset,
        sampler=sampler,
        collate_fn=dict(type=collate),
    )

    optim_wrapper = dict(
        type=OptimWrapper if precision == "float32" else AmpOptimWrapper,
        optimizer=dict(type=AdamW, lr=lr, betas=betas, weight_decay=weight_decay),
        clip_grad=dict(max_norm=max_norm, error_if_nonfinite=False),
        accumulative_counts=accumulative_counts,
    )
    if fused_optimizer:
        optim_wrapper["optimizer"]["fused"] = True
    if precision != "float32":
        optim_wrapper.update(dtype=precision, loss_scale="dynamic" if precision == "float16" else 1.0)
    warmup = warmup_ratio * max_epochs
    param_scheduler = [
        dict(type=WarmupLR, start_factor=1e-5, by_epoch=True, begin=0, end=warmup, convert_to_iter_based=True),
        dict(
            type=CosineAnnealingLR,
            eta_min=0.0,
            by_epoch=True,
            begin=warmup,
            end=max_epochs,
            convert_to_iter_based=True,
        ),
    ]

    custom_hooks = [
        dict(type=RandomStateHook),
        dict(type=GateMonitorHook, interval=log_interval),
        dict(type=ThroughputHook, interval=log_interval),
        dict(type=DataReportHook),
        dict(type=FeatureCacheHook),
        dict(type=FiniteHook),
    ]
    if evaluation_samples:
        custom_hooks.append(
            dict(
                type=SampleGenerationHook,
                tokenizer=tokenizer,
                template=prompt_template,
                picture_processor=picture_processor,
                samples=list(evaluation_samples),
                every_n_iters=evaluation_freq,
            )
        )
    default_hooks = dict(
        runtime_info=dict(type=LossHook),
        timer=dict(type=IterTimerHook),
        logger=dict(type=LoggerHook, log_metric_by_epoch=False, interval=log_interval),
        param_scheduler=dict(type=ParamSchedulerHook),
        checkpoint=dict(
            type=SafeCheckpointHook,
            by_epoch=False,
            interval=save_steps,
            max_keep_ckpts=save_total_limit,
            save_optimizer=True,
        ),
        sampler_seed=dict(type=DistSamplerSeedHook),
    )
    extra = dict(published_samples=published_samples) if published_samples else {}
    if evaluation:
        parts = dict(prompt_template=prompt_template, tokenizer=tokenizer, picture_processor=picture_processor)
        extra.update(evaluate_on(**parts, **evaluation))
    return dict(
        **extra,
        prompt_template=prompt_template,
        tokenizer=tokenizer,
        picture_processor=picture_processor,
        model=model,
        train_dataloader=train_dataloader,
        optim_wrapper=optim_wrapper,
        param_scheduler=param_scheduler,
        train_cfg=dict(type=TrainLoop, max_epochs=max_epochs),
        custom_hooks=custom_hooks,
        default_hooks=default_hooks,
        randomness=dict(seed=seed, deterministic=False),
    )
