# MG-LLaVA Yi-1.5-34B with LoRA, stage 2: 1.38M instructions, batch 128 on 8 GPUs.
# Full tuning takes 32 GPUs of 80 GiB; adapters, with the weights split by ZeRO-3, fit on 8 of 40 GiB.
#   NPROC_PER_NODE=8 xtuner train configs/variants/mg_llava_yi34b_instruct_lora.py \
#       --deepspeed deepspeed_zero3 --seed 2024
from mmengine.config import read_base

with read_base():
    from .._base_.llms import yi_34b
    from .._base_.paper import lora, paper_instruct
    from .._base_.runtime import *

globals().update(paper_instruct(yi_34b, gpus=8, stage1="mg_llava_yi34b_pretrain", accumulative_counts=4, **lora))
del lora, paper_instruct, yi_34b
