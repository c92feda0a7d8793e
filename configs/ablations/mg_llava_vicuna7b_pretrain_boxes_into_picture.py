# Table 5 of the paper, stage 1: visual tokens read boxes, and the LLM gets no tokens of boxes (F-to-B).
#   NPROC_PER_NODE=8 xtuner train configs/ablations/mg_llava_vicuna7b_pretrain_boxes_into_picture.py \
#       --deepspeed deepspeed_zero2 --seed 2024
from mmengine.config import read_base

with read_base():
    from .._base_.ablations import vicuna7b_ablation
    from .._base_.runtime import *

globals().update(vicuna7b_ablation("pretrain", "boxes_into_picture"))
del vicuna7b_ablation
