# Table 4 of the paper in miniature, stage 2: Conv-Gate added, no objects.
#   xtuner train configs/ablations/mg_llava_nano_instruct_convgate.py --seed 0
from mmengine.config import read_base

with read_base():
    from .._base_.ablations import nano_ablation
    from .._base_.runtime import *

globals().update(nano_ablation("instruct", "convgate"))
del nano_ablation
