# MG-LLaVA Vicuna-7B, stage 1: 1.26M captions, batch 256 on 8 GPUs (the paper's schedule).
#   NPROC_PER_NODE=8 xtuner train configs/mg_llava_vicuna7b_pretrain.py --deepspeed deepspeed_zero2 --seed 2024
from mmengine.config import read_base

with read_base():
    from ._base_.llms import vicuna_7b
    from ._base_.paper import paper_pretrain
    from ._base_.runtime import *

globals().update(paper_pretrain(vicuna_7b, gpus=8))
del paper_pretrain, vicuna_7b
