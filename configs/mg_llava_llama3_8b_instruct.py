# MG-LLaVA Llama-3-8B, stage 2: 1.38M instructions, batch 128 on 8 GPUs (the paper's schedule).
# The reference's script has lr 1e-5 and 4 per device, accumulated twice on 8 GPUs, so 64 in all.
#   NPROC_PER_NODE=8 xtuner train configs/mg_llava_llama3_8b_instruct.py --deepspeed deepspeed_zero2 --seed 2024
from mmengine.config import read_base

with read_base():
    from ._base_.llms import llama3_8b
    from ._base_.paper import paper_instruct
    from ._base_.runtime import *

globals().update(paper_instruct(llama3_8b, gpus=8, stage1="mg_llava_llama3_8b_pretrain", accumulative_counts=2))
del paper_instruct, llama3_8b
