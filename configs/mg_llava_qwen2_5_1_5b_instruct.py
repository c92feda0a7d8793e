# MG-LLaVA Qwen2.5-1.5B, stage 2: 1.38M instructions, batch 128 on 8 GPUs.
#   NPROC_PER_NODE=8 xtuner train configs/mg_llava_qwen2_5_1_5b_instruct.py --deepspeed deepspeed_zero2 --seed 2024
from mmengine.config import read_base

with read_base():
    from ._base_.llms import qwen2_5_1_5b
    from ._base_.paper import paper_instruct
    from ._base_.runtime import *

globals().update(paper_instruct(qwen2_5_1_5b, gpus=8, stage1="mg_llava_qwen2_5_1_5b_pretrain"))
del paper_instruct, qwen2_5_1_5b
