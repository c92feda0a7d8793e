# MG-LLaVA Vicuna-13B, stage 1: 1.26M captions, batch 256 on 16 GPUs (the paper's schedule).
# The reference's script starts 8 GPUs, but names a checkpoint that only 16 of them give.
#   NNODES=2 NODE_RANK=0 ADDR=10.0.0.1 PORT=29500 NPROC_PER_NODE=8 xtuner train \
#       configs/mg_llava_vicuna13b_pretrain.py --deepspeed deepspeed_zero2 --seed 2024
from mmengine.config import read_base

with read_base():
    from ._base_.llms import vicuna_13b
    from ._base_.paper import paper_pretrain
    from ._base_.runtime import *

globals().update(paper_pretrain(vicuna_13b, gpus=16))
del paper_pretrain, vicuna_13b
