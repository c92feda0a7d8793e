# MG-LLaVA Yi-1.5-34B, stage 1: 1.26M captions, batch 256 on 32 GPUs (the paper's schedule).
# The reference's script has lr 2e-3 and 16 per device, so 512 in all.
#   NNODES=4 NODE_RANK=0 ADDR=10.0.0.1 PORT=29500 NPROC_PER_NODE=8 xtuner train \
#       configs/mg_llava_yi34b_pretrain.py --deepspeed deepspeed_zero3 --seed 2024
from mmengine.config import read_base

with read_base():
    from ._base_.llms import yi_34b
    from ._base_.paper import paper_pretrain
    from ._base_.runtime import *

globals().update(paper_pretrain(yi_34b, gpus=32))
del paper_pretrain, yi_34b
