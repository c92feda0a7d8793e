# MG-LLaVA Qwen2.5-0.5B, stage 1: 1.26M captions, batch 256 on 8 GPUs.
#   NPROC_PER_NODE=8 xtuner train configs/mg_llava_qwen2_5_0_5b_pretrain.py --deepspeed deepspeed_zero2 --seed 2024
from mmengine.config import read_base

with read_base():
    from ._base_.llms import qwen2_5_0_5b
    from ._base_.paper import paper_pretrain
    from ._base_.runtime import *

globals().update(paper_pretrain(qwen2_5_0_5b, gpus=8))
del paper_pretrain, qwen2_5_0_5b
