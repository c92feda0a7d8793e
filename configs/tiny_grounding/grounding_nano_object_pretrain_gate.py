# TinyGroundingGPT in miniature, stage 1 with both encoders, through the Conv-Gate; runs on a CPU.
#   xtuner train configs/tiny_grounding/grounding_nano_object_pretrain_gate.py --seed 0
from mmengine.config import read_base

with read_base():
    from .._base_.runtime import *
    from .._base_.tiny_grounding import nano_grounding

globals().update(nano_grounding("object_pretrain", gate=True))
del nano_grounding
