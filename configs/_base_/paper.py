"""The paper's two stages of MG-LLaVA. A leaf says the LLM, the number of GPUs and what it changes."""

from mmengine.config import read_base

with read_base():
    from .data.paper import stage1, stage2
    from .run import instruct, pretrain
    from .systems.mg_llava import mg_llava
    from .vision import clip_l_336_convnext_l_768

# adapters on every linear layer of the LLM, in place of full tuning
lora = dict(lr=2e-4, tuning="lora", lora=dict(r=128, lora_alpha=256))
qlora = {**lora, "tuning": "qlora"}


def paper_pretrain(llm, *, gpus, vision=clip_l_336_convnext_l_768, model=None, accumulative_counts=1, **settings):
    """Stage 1: batch 256 on all GPUs together. ``model`` are more arguments of ``mg_llava``."""
    batch = dict(batch_size=256 // (gpus * accumulative_counts), accumulative_counts=accumulative_counts)
    return pretrain(mg_llava(llm, vision, **(model or {})), **{"data": stage1, **batch, **settings})


def paper_instruct(
    llm, *, gpus, stage1, vision=clip_l_336_convnext_l_768, model=None, accumulative_counts=1, **settings
):
    """Stage 2: batch 128 on all GPUs together, from the newest checkpoint in the work directory of ``stage1``."""
    batch = dict(batch_size=128 // (gpus * accumulative_counts), accumulative_counts=accumulative_counts)
    start = dict(pretrained_pth=f"./work_dirs/{stage1}", save_steps=1000, save_total_limit=1)
    return instruct(mg_llava(llm, vision, **(model or {})), **{"data": stage2, **start, **batch, **settings})
