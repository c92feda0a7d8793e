# TinyGroundingGPT in miniature, stage 3: global alignment; runs on a CPU.
#   xtuner train configs/tiny_grounding/grounding_nano_global_alignment.py --seed 0
from mmengine.config import read_base

with read_base():
    from .._base_.runtime import *
    from .._base_.tiny_grounding import nano_grounding

globals().update(nano_grounding("global_alignment", before="grounding_nano_local_alignment"))
del nano_grounding
