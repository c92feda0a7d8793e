# MG-LLaVA Vicuna-7B for videos, stage 1: 558K pictures and 703K videos, 8 frames each.
#   NPROC_PER_NODE=8 xtuner train configs/video/mg_llava_vicuna7b_pretrain_video.py \
#       --deepspeed deepspeed_zero2 --seed 2024
from mmengine.config import read_base

with read_base():
    from .._base_.runtime import *
    from .._base_.video import video_pretrain

globals().update(video_pretrain())
del video_pretrain
