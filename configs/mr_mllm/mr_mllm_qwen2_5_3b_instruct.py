# MR-MLLM with Qwen2.5-3B, stage B: refinement and added biases beside what stage A trained.
#   xtuner train configs/mr_mllm/mr_mllm_qwen2_5_3b_instruct.py --deepspeed deepspeed_zero2 --seed 2024
from mmengine.config import read_base

with read_base():
    from .._base_.detectors import detr_r50
    from .._base_.llms import qwen2_5_3b
    from .._base_.mr_mllm import mr_mllm_instruct
    from .._base_.runtime import *

globals().update(mr_mllm_instruct(qwen2_5_3b, detector=detr_r50, stage1="mr_mllm_qwen2_5_3b_pretrain"))
del mr_mllm_instruct, qwen2_5_3b, detr_r50
