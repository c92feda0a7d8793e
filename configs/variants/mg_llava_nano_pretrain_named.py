# The miniature with a name before each box token, stage 1: captions, and questions that name boxes; runs on a CPU.
#   xtuner train configs/variants/mg_llava_nano_pretrain_named.py --seed 0
from mmengine.config import read_base

with read_base():
    from .._base_.nano import nano_named_pretrain
    from .._base_.runtime import *

globals().update(nano_named_pretrain())
del nano_named_pretrain
