# Ablation of the embedded default, stage 2: objects added, no Conv-Gate; the budget is the full model's.
#   xtuner train configs/ablations/mg_llava_nano_instruct_objects.py --seed 0
from mmengine.config import read_base

with read_base():
    from .._base_.nano import nano_instruct
    from .._base_.runtime import *

globals().update(nano_instruct(stage1="mg_llava_nano_pretrain_objects", model=dict(fusion=None)))
del nano_instruct
