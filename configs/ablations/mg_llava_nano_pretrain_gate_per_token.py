# Beside Table 5 of the paper in miniature, stage 1: a gate for each token.
#   xtuner train configs/ablations/mg_llava_nano_pretrain_gate_per_token.py --seed 0
from mmengine.config import read_base

with read_base():
    from .._base_.ablations import nano_ablation
    from .._base_.runtime import *

globals().update(nano_ablation("pretrain", "gate_per_token"))
del nano_ablation
