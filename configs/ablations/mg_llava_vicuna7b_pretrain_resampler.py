# Table 5 of the paper, stage 1: queries read the tokens of both encoders.
#   NPROC_PER_NODE=8 xtuner train configs/ablations/mg_llava_vicuna7b_pretrain_resampler.py \
#       --deepspeed deepspeed_zero2 --seed 2024
from mmengine.config import read_base

with read_base():
    from .._base_.ablations import vicuna7b_ablation
    from .._base_.runtime import *

globals().update(vicuna7b_ablation("pretrain", "resampler"))
del vicuna7b_ablation
