# Table 5 of the paper, stage 2: boxes by the names of COCO's 80 classes.
#   NPROC_PER_NODE=8 xtuner train configs/ablations/mg_llava_vicuna7b_instruct_coco80.py \
#       --deepspeed deepspeed_zero2 --seed 2024
from mmengine.config import read_base

with read_base():
    from .._base_.ablations import vicuna7b_ablation
    from .._base_.runtime import *

globals().update(vicuna7b_ablation("instruct", "coco80"))
del vicuna7b_ablation
