# The miniature with clips beside its pictures, stage 2: three frames of each clip; runs on a CPU.
#   xtuner train configs/video/mg_llava_nano_instruct_clips.py --seed 0
from mmengine.config import read_base

with read_base():
    from .._base_.runtime import *
    from .._base_.video import nano_clips

globals().update(nano_clips())
del nano_clips
