# Table 5 of the paper in miniature, stage 1: visual tokens read boxes, and the LLM gets no tokens of boxes (F-to-B).
#   xtuner train configs/ablations/mg_llava_nano_pretrain_boxes_into_picture.py --seed 0
from mmengine.config import read_base

with read_base():
    from .._base_.ablations import nano_ablation
    from .._base_.runtime import *

globals().update(nano_ablation("pretrain", "boxes_into_picture"))
del nano_ablation
