# MG-LLaVA Vicuna-7B for videos, stage 2: 665K pictures and 100K videos; adapters on a 4-bit LLM as in the reference.
#   NPROC_PER_NODE=8 NNODES=2 xtuner train configs/video/mg_llava_vicuna7b_instruct_video_qlora.py \
#       --deepspeed deepspeed_zero2 --seed 2024
from mmengine.config import read_base

with read_base():
    from .._base_.runtime import *
    from .._base_.video import video_instruct

globals().update(video_instruct(tuning="qlora", lora=dict(r=512, lora_alpha=256, lora_dropout=0.05)))
del video_instruct
