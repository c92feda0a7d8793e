# MG-LLaVA Phi-3-mini-4k, stage 2: 1.38M instructions, batch 128 on 8 GPUs (the paper's schedule).
# The reference's script has 8 per device on 8 GPUs, so 64 in all.
#   NPROC_PER_NODE=8 xtuner train configs/mg_llava_phi3_instruct.py --deepspeed deepspeed_zero2 --seed 2024
from mmengine.config import read_base

with read_base():
    from ._base_.llms import phi3_mini
    from ._base_.paper import paper_instruct
    from ._base_.runtime import *

globals().update(paper_instruct(phi3_mini, gpus=8, stage1="mg_llava_phi3_pretrain"))
del paper_instruct, phi3_mini
