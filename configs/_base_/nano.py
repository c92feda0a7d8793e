"""Settings that the nano runs share; they name smaller things and run the same code."""

nano_settings = dict(
    context_length=256,
    dataloader_num_workers=1,
    precision="float32",
    save_steps=100000,
    save_total_limit=1,
    betas=(0.9, 0.98),
    warmup_ratio=0.05,
    gradient_checkpointing=False,
    # batches are grouped by text and pictures, as in all runs that were measured
    dataset=dict(long_text_margin=None, count_boxes=False),
)
