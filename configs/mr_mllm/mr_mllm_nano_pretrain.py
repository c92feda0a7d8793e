# MR-MLLM in miniature, stage A, on scenes whose digits ascend from left to right; runs on a CPU.
#   python data/nano/lawful.py && xtuner train configs/mr_mllm/mr_mllm_nano_pretrain.py --seed 0
from mmengine.config import read_base

with read_base():
    from .._base_.mr_mllm import nano_mr_mllm_pretrain
    from .._base_.runtime import *

globals().update(nano_mr_mllm_pretrain())
del nano_mr_mllm_pretrain
