"""Both stages of Lyrics: as published, but for what the paper does not state, and in miniature.

Learning rates and batches are BLIP-2's. Records are those of MG-LLaVA; boxes come with labels, from
``tools/generate_boxes.py``.
"""

from mmengine.config import read_base

with read_base():
    from .data.nano import nano_stage1, nano_stage2
    from .data.paper import stage1, stage2
    from .llms import nano as nano_llm
    from .nano import nano_settings
    from .run import instruct, pretrain
    from .systems.lyrics import lyrics, lyrics_pretrain
    from .vision import eva_g_grounding_dino
    from .vision import nano as nano_vision

from mg_llava.models import AlignmentLoss, CaptionLoss, RoIAlignBoxProjector

lyrics_lora = dict(r=8, lora_alpha=32, lora_dropout=0.05, target_modules=["q_proj", "k_proj", "v_proj"])
lyrics_bert = "google-bert/bert-base-uncased"
lyrics_parts = dict(pieces=lyrics_bert, mq_former=dict(queries=(32, 64)))
nano_refiner = dict(
    image_size=256,
    visual_encoder=nano_vision["low_res_encoder"],
    detector=nano_vision["high_res_encoder"],
    box_reader=dict(type=RoIAlignBoxProjector),
)
nano_parts = dict(
    pieces="data/nano/pieces",
    mq_former=dict(
        queries=(8, 8),
        **dict(width=64, layers=3, heads=4, intermediate=256, frequency=1, vocabulary=256, positions=256, dropout=0.0),
    ),
)
nano_items = dict(text=dict(style="int100", frame="original"), most=60, most_of_text=40)
nano_bare = {name: part for name, part in nano_refiner.items() if name not in ("detector", "box_reader")}
# what each part adds, of vision, model and losses: BLIP-2, objects, items in captions; Lyrics has masked items too
nano_rows = dict(
    blip2=dict(vision=nano_bare, model=dict(mq_former=dict(nano_parts["mq_former"], queries=(16,)))),
    objects=dict(),
    items=dict(),
    full=dict(),
)
nano_first = dict(
    blip2=dict(losses=(AlignmentLoss, CaptionLoss), items=dict(nano_items, items=False)),
    objects=dict(losses=(AlignmentLoss, CaptionLoss), items=dict(nano_items, items=False)),
    items=dict(losses=(AlignmentLoss, CaptionLoss)),
    full=dict(),
)


def paper_lyrics_pretrain(llm, *, gpus, vision=eva_g_grounding_dino, model=None, accumulative_counts=1, **settings):
    """Stage 1: batch 256 on all GPUs together. ``model`` are more arguments of ``lyrics_pretrain``."""
    batch = dict(batch_size=256 // (gpus * accumulative_counts), accumulative_counts=accumulative_counts)
    rates = dict(lr=1e-4, min_lr=5e-5, warmup_ratio=0.04, max_epochs=10, weight_decay=0.05)
    former = dict(lyrics_parts["mq_former"], bert=lyrics_bert)
    system = lyrics_pretrain(llm, vision, **{**lyrics_parts, "mq_former": former, **(model or {})})
    return pretrain(system, **{"data": stage1, **batch, **rates, **settings})


def paper_lyrics_instruct(llm, *, gpus, vision=eva_g_grounding_dino, model=None, accumulative_counts=1, **settings):
    """Stage 2: batch 128 on all GPUs together; LoRA on the LLM's q, k and v, from the one checkpoint of stage 1."""
    batch = dict(batch_size=128 // (gpus * accumulative_counts), accumulative_counts=accumulative_counts)
    rates = dict(lr=1e-4, lr_mult=dict(mq_former=0.1), tuning="lora", lora=lyrics_lora)
    start = dict(pretrained_pth="./work_dirs/lyrics_pretrain", save_steps=1000, save_total_limit=1)
    parts = {**lyrics_parts, "fresh": ("projector",), **(model or {})}
    return instruct(lyrics(llm, vision, **parts), **{"data": stage2, **batch, **rates, **start, **settings})


def nano_lyrics_pretrain(llm=nano_llm, *, vision=nano_refiner, model=None, **changes):
    """Stage 1 of the miniature, with the exact boxes, which have digits as labels."""
    data = dict(nano_stage1, box_path="data/nano/generated/stage1_exact_boxes.json")
    parts = {**nano_parts, "items": nano_items, **(model or {})}
    own = {**nano_settings, "data": data, "lr": 2e-3, "batch_size": 8, "max_epochs": 4, "dataset": _nano_dataset}
    return pretrain(lyrics_pretrain(llm, vision, **parts), **{**own, "evaluation": None, **changes})


def nano_lyrics_instruct(llm=nano_llm, *, vision=nano_refiner, stage1="lyrics_nano_pretrain", model=None, **changes):
    """Stage 2 of the miniature, from the checkpoint in the work directory of ``stage1``; LoRA on q, k and v."""
    start = dict(pretrained_pth=f"./work_dirs/{stage1}", tuning="lora", lora=dict(lyrics_lora, lora_dropout=0.0))
    own = {**nano_settings, "data": nano_stage2, "lr": 1e-3, "dataset": _nano_dataset, **start}
    parts = {**nano_parts, "fresh": ("projector",), **(model or {})}
    return instruct(lyrics(llm, vision, **parts), **{**own, **changes})


def nano_lyrics_row(stage, row):
    """A stage of a row of the miniature's table; the full model's leaves have no suffix."""
    own, suffix = nano_rows[row], "" if row == "full" else f"_{row}"
    given = dict(vision=own.get("vision", nano_refiner))
    model = own.get("model", {})
    if stage == "pretrain":
        return nano_lyrics_pretrain(model={**model, **nano_first[row]}, **given)
    return nano_lyrics_instruct(model=model, stage1=f"lyrics_nano_pretrain{suffix}", **given)


_nano_dataset = dict(draw=dict(anew=False), boxes=dict(count_boxes=False), budget=dict(long_text_margin=None))
