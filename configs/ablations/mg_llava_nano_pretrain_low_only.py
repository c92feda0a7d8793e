# Ablation of the embedded default, stage 1: the low-resolution encoder alone; the budget is the full model's.
#   xtuner train configs/ablations/mg_llava_nano_pretrain_low_only.py --seed 0
from mmengine.config import read_base

with read_base():
    from .._base_.nano import nano_pretrain
    from .._base_.runtime import *

globals().update(nano_pretrain(model=dict(fusion=None, box_projector=None)))
del nano_pretrain
