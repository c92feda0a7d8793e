# MG-LLaVA Vicuna-7B with LoRA, stage 2: 1.38M instructions, batch 128 on 8 GPUs.
# Adapters on every linear layer of the LLM; fusion and projectors are trained whole, as in full tuning.
#   NPROC_PER_NODE=8 xtuner train configs/variants/mg_llava_vicuna7b_instruct_lora.py \
#       --deepspeed deepspeed_zero2 --seed 2024
from mmengine.config import read_base

with read_base():
    from .._base_.llms import vicuna_7b
    from .._base_.paper import lora, paper_instruct
    from .._base_.runtime import *

globals().update(paper_instruct(vicuna_7b, gpus=8, stage1="mg_llava_vicuna7b_pretrain", **lora))
del lora, paper_instruct, vicuna_7b
