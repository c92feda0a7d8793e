# TinyGroundingGPT with Qwen2.5-3B, stage 1: objects and relations, on 8 GPUs.
#   NPROC_PER_NODE=8 xtuner train configs/tiny_grounding/grounding_qwen2_5_3b_object_pretrain.py \
#       --deepspeed deepspeed_zero2 --seed 2024
from mmengine.config import read_base

with read_base():
    from .._base_.llms import qwen2_5_3b
    from .._base_.runtime import *
    from .._base_.tiny_grounding import object_pretrain, qwen_grounding

globals().update(object_pretrain(qwen_grounding(qwen2_5_3b), gpus=8))
del object_pretrain, qwen_grounding, qwen2_5_3b
