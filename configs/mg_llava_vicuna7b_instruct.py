# MG-LLaVA Vicuna-7B, stage 2: 1.38M instructions, batch 128 on 8 GPUs (the paper's schedule).
# The reference's script names a checkpoint of the 665K records of LLaVA-1.5 alone.
#   NPROC_PER_NODE=8 xtuner train configs/mg_llava_vicuna7b_instruct.py --deepspeed deepspeed_zero2 --seed 2024
from mmengine.config import read_base

with read_base():
    from ._base_.llms import vicuna_7b
    from ._base_.paper import paper_instruct
    from ._base_.runtime import *

globals().update(paper_instruct(vicuna_7b, gpus=8, stage1="mg_llava_vicuna7b_pretrain"))
del paper_instruct, vicuna_7b
