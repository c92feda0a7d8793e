# MG-LLaVA Yi-1.5-34B, stage 2: 1.38M instructions, batch 128 on 32 GPUs (the paper's schedule).
# The reference's script is the same.
#   NNODES=4 NODE_RANK=0 ADDR=10.0.0.1 PORT=29500 NPROC_PER_NODE=8 xtuner train \
#       configs/mg_llava_yi34b_instruct.py --deepspeed deepspeed_zero3 --seed 2024
from mmengine.config import read_base

with read_base():
    from ._base_.llms import yi_34b
    from ._base_.paper import paper_instruct
    from ._base_.runtime import *

globals().update(paper_instruct(yi_34b, gpus=32, stage1="mg_llava_yi34b_pretrain"))
del paper_instruct, yi_34b
