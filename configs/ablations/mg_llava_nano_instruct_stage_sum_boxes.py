# Beside Table 5 of the paper in miniature, stage 2: box features summed over stages.
#   xtuner train configs/ablations/mg_llava_nano_instruct_stage_sum_boxes.py --seed 0
from mmengine.config import read_base

with read_base():
    from .._base_.ablations import nano_ablation
    from .._base_.runtime import *

globals().update(nano_ablation("instruct", "stage_sum_boxes"))
del nano_ablation
