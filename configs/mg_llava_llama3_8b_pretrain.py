# MG-LLaVA Llama-3-8B, stage 1: 1.26M captions, batch 256 on 8 GPUs (the paper's schedule).
# The reference's script has 16 per device on 8 GPUs, so 128, but names a checkpoint of 256 in all.
#   NPROC_PER_NODE=8 xtuner train configs/mg_llava_llama3_8b_pretrain.py --deepspeed deepspeed_zero2 --seed 2024
from mmengine.config import read_base

with read_base():
    from ._base_.llms import llama3_8b
    from ._base_.paper import paper_pretrain
    from ._base_.runtime import *

globals().update(paper_pretrain(llama3_8b, gpus=8, accumulative_counts=2))
del paper_pretrain, llama3_8b
