# Beside Table 5 of the paper in miniature, stage 2: a gate for each channel of a picture.
#   xtuner train configs/ablations/mg_llava_nano_instruct_gate_per_channel.py --seed 0
from mmengine.config import read_base

with read_base():
    from .._base_.ablations import nano_ablation
    from .._base_.runtime import *

globals().update(nano_ablation("instruct", "gate_per_channel"))
del nano_ablation
