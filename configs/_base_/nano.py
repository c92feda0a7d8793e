"""Settings that the nano runs share; they name smaller things and run the same code."""

nano_settings = dict(
    context_length=256,
    dataloader_num_workers=1,
    precision="float32",
    save_steps=100000,
    save_total_limit=1,
    weight_decay=0,
    dataset=dict(long_text_margin=None),
)
