# MG-LLaVA Vicuna-7B for videos, stage 2: 665K pictures and 100K videos; full tuning in place of adapters.
#   NPROC_PER_NODE=8 NNODES=2 xtuner train configs/video/mg_llava_vicuna7b_instruct_video.py \
#       --deepspeed deepspeed_zero2 --seed 2024
from mmengine.config import read_base

with read_base():
    from .._base_.runtime import *
    from .._base_.video import video_instruct

globals().update(video_instruct())
del video_instruct
