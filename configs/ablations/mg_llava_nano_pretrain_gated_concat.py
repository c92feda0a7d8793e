# Beside Table 5 of the paper in miniature, stage 1: both convolved streams side by side, with a gate.
#   xtuner train configs/ablations/mg_llava_nano_pretrain_gated_concat.py --seed 0
from mmengine.config import read_base

with read_base():
    from .._base_.ablations import nano_ablation
    from .._base_.runtime import *

globals().update(nano_ablation("pretrain", "gated_concat"))
del nano_ablation
