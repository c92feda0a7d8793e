"""Settings that the nano runs share; they name smaller things and run the same code."""

from mg_llava.data.box_augment import BoxAugmentation

nano_settings = dict(
    context_length=256,
    dataloader_num_workers=1,
    precision="float32",
    save_steps=100000,
    save_total_limit=1,
    betas=(0.9, 0.98),
    warmup_ratio=0.05,
    gradient_checkpointing=False,
    # half of the pictures come without boxes: with all of them the model reads boxes alone, and the map stays unused;
    # batches are grouped by text and pictures, as in all runs that were measured
    dataset=dict(box_augmentation=dict(type=BoxAugmentation, drop_all=0.5), long_text_margin=None, count_boxes=False),
)
