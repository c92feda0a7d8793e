# MR-MLLM with Vicuna-7B, stage B: refinement and added biases beside what stage A trained.
#   xtuner train configs/mr_mllm/mr_mllm_vicuna7b_instruct.py --deepspeed deepspeed_zero2 --seed 2024
from mmengine.config import read_base

with read_base():
    from .._base_.detectors import detr_r50
    from .._base_.llms import vicuna_7b
    from .._base_.mr_mllm import mr_mllm_instruct
    from .._base_.runtime import *

globals().update(mr_mllm_instruct(vicuna_7b, detector=detr_r50, stage1="mr_mllm_vicuna7b_pretrain"))
del mr_mllm_instruct, vicuna_7b, detr_r50
