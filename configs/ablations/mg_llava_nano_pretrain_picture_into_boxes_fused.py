# Beside Table 5 of the paper in miniature, stage 1: boxes read the picture after the fusion (B-to-F of its text).
#   xtuner train configs/ablations/mg_llava_nano_pretrain_picture_into_boxes_fused.py --seed 0
from mmengine.config import read_base

with read_base():
    from .._base_.ablations import nano_ablation
    from .._base_.runtime import *

globals().update(nano_ablation("pretrain", "picture_into_boxes_fused"))
del nano_ablation
