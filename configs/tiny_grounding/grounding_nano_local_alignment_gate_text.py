# TinyGroundingGPT in miniature, stage 2 with both encoders, without object images; runs on a CPU.
#   xtuner train configs/tiny_grounding/grounding_nano_local_alignment_gate_text.py --seed 0
from mmengine.config import read_base

with read_base():
    from .._base_.runtime import *
    from .._base_.tiny_grounding import nano_grounding

globals().update(
    nano_grounding("local_alignment", gate=True, arm="text", before="grounding_nano_object_pretrain_gate")
)
del nano_grounding
