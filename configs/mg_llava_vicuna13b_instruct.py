# MG-LLaVA Vicuna-13B, stage 2: 1.38M instructions, batch 128 on 16 GPUs (the paper's schedule).
# The reference's script has 8 per device too; its published file, iteration 21000, is of 64 in all (8 GPUs).
#   NNODES=2 NODE_RANK=0 ADDR=10.0.0.1 PORT=29500 NPROC_PER_NODE=8 xtuner train \
#       configs/mg_llava_vicuna13b_instruct.py --deepspeed deepspeed_zero2 --seed 2024
from mmengine.config import read_base

with read_base():
    from ._base_.llms import vicuna_13b
    from ._base_.paper import paper_instruct
    from ._base_.runtime import *

globals().update(paper_instruct(vicuna_13b, gpus=16, stage1="mg_llava_vicuna13b_pretrain"))
del paper_instruct, vicuna_13b
