# MG-LLaVA InternLM2.5-7B, stage 2: 1.38M instructions, batch 128 on 8 GPUs.
#   NPROC_PER_NODE=8 xtuner train configs/mg_llava_internlm2_5_7b_instruct.py --deepspeed deepspeed_zero2 --seed 2024
from mmengine.config import read_base

with read_base():
    from ._base_.llms import internlm2_5_7b
    from ._base_.paper import paper_instruct
    from ._base_.runtime import *

globals().update(paper_instruct(internlm2_5_7b, gpus=8, stage1="mg_llava_internlm2_5_7b_pretrain"))
del paper_instruct, internlm2_5_7b
