# MR-MLLM with Llama-3-8B, stage A: all that prompts the frozen LLM; other detectors: detector=deformable_detr.
#   xtuner train configs/mr_mllm/mr_mllm_llama3_8b_pretrain.py --deepspeed deepspeed_zero2 --seed 2024
from mmengine.config import read_base

with read_base():
    from .._base_.detectors import detr_r50
    from .._base_.llms import llama3_8b
    from .._base_.mr_mllm import mr_mllm_pretrain
    from .._base_.runtime import *

globals().update(mr_mllm_pretrain(llama3_8b, detector=detr_r50))
del mr_mllm_pretrain, llama3_8b, detr_r50
