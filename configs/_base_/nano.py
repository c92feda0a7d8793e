"""The two stages of the miniature: smaller numbers for the same code. A leaf says only what it changes."""

from mmengine.config import read_base

with read_base():
    from .data.grounding import grounding
    from .data.nano import nano_stage1, nano_stage2
    from .evaluation import nano_evaluation
    from .llms import nano as nano_llm
    from .run import instruct, pretrain
    from .systems.mg_llava import mg_llava
    from .vision import nano as nano_vision

from mg_llava.data.boxes.augment import BoxAugmentation

nano_settings = dict(
    batch_size=16,
    context_length=256,
    dataloader_num_workers=0,  # pictures are small, and two trainings share two cores
    precision="float32",
    save_steps=100000,
    save_total_limit=1,
    betas=(0.9, 0.98),
    warmup_ratio=0.05,
    gradient_checkpointing=False,
    fused_optimizer=False,  # as in all runs that were measured
    evaluation=nano_evaluation,
    # half of the pictures come without boxes: with all of them the model reads boxes alone, and the map stays unused;
    # batches are grouped by text and pictures, and boxes drawn once, as in all runs that were measured
    dataset=dict(
        draw=dict(anew=False),
        boxes=dict(box_augmentation=dict(type=BoxAugmentation, drop_all=0.5), count_boxes=False),
        budget=dict(long_text_margin=None),
    ),
)


def nano_pretrain(llm=nano_llm, *, model=None, **changes):
    """Stage 1 of the miniature. ``model`` are more arguments of ``mg_llava``."""
    settings = {**nano_settings, "data": nano_stage1, "lr": 4e-3, "max_epochs": 3}
    return pretrain(mg_llava(llm, nano_vision, **(model or {})), **{**settings, **changes})


def nano_instruct(llm=nano_llm, *, stage1="mg_llava_nano_pretrain", model=None, **changes):
    """Stage 2 of the miniature, which starts from the checkpoint in the work directory of ``stage1``."""
    settings = {**nano_settings, "data": nano_stage2, "lr": 1e-3, "pretrained_pth": f"./work_dirs/{stage1}"}
    return instruct(mg_llava(llm, nano_vision, **(model or {})), **{**settings, **changes})


def nano_named_pretrain(**changes):
    """Stage 1 of the miniature with named boxes: captions, and questions that name boxes."""
    return nano_pretrain(**{**_with_names(nano_stage1, "captions", "named"), "max_epochs": 2, **changes})


def nano_named(**changes):
    """Stage 2 of the miniature with named boxes: its own questions, and half as many records that name boxes."""
    named = _with_names(nano_stage2, "instructions", "named_lists")
    return nano_instruct(**{"stage1": "mg_llava_nano_pretrain_named", **named, **changes})


def _with_names(files, name, about):
    """Settings with names before box tokens, and two thirds of the pictures about which named questions are asked."""
    named = dict(grounding(about, "named_boxes"), boxes=dict(box_augmentation=None), draw=dict(repeat=2 / 3))
    model = dict(picture=dict(regions=dict(names="obj{}")))
    return dict(model=model, data=dict(sources=[dict(files, name=name), named]), context_length=384)
