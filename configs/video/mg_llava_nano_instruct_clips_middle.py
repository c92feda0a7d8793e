# The miniature with clips beside its pictures, stage 2: the middle frame of each clip alone; runs on a CPU.
#   xtuner train configs/video/mg_llava_nano_instruct_clips_middle.py --seed 0
from mmengine.config import read_base

with read_base():
    from .._base_.runtime import *
    from .._base_.video import nano_clips

globals().update(nano_clips("middle", frames=1))
del nano_clips
