# Table 4 of the paper in miniature, stage 2: the low-resolution encoder alone.
#   xtuner train configs/ablations/mg_llava_nano_instruct_low_only.py --seed 0
from mmengine.config import read_base

with read_base():
    from .._base_.ablations import nano_ablation
    from .._base_.runtime import *

globals().update(nano_ablation("instruct", "low_only"))
del nano_ablation
