# The miniature with a name before each box token, stage 2: questions name boxes (obj1, obj2, ...); runs on a CPU.
#   xtuner train configs/variants/mg_llava_nano_instruct_named.py --seed 0
from mmengine.config import read_base

with read_base():
    from .._base_.nano import nano_named
    from .._base_.runtime import *

globals().update(nano_named())
del nano_named
