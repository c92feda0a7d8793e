# TinyGroundingGPT with Qwen2.5-3B, stage 2: local alignment, on 8 GPUs.
#   NPROC_PER_NODE=8 xtuner train configs/tiny_grounding/grounding_qwen2_5_3b_local_alignment.py \
#       --deepspeed deepspeed_zero2 --seed 2024
from mmengine.config import read_base

with read_base():
    from .._base_.llms import qwen2_5_3b
    from .._base_.runtime import *
    from .._base_.tiny_grounding import local_alignment, qwen_grounding

globals().update(local_alignment(qwen_grounding(qwen2_5_3b), gpus=8, before="grounding_qwen2_5_3b_object_pretrain"))
del local_alignment, qwen_grounding, qwen2_5_3b
