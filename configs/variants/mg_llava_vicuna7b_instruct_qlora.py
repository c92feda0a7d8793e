# MG-LLaVA Vicuna-7B with QLoRA, stage 2: 1.38M instructions, batch 128 on 8 GPUs.
# Adapters on the LLM in 4-bit NF4 (bitsandbytes, CUDA). ZeRO-3 cannot split 4-bit weights: use ZeRO-1 or 2.
#   NPROC_PER_NODE=8 xtuner train configs/variants/mg_llava_vicuna7b_instruct_qlora.py \
#       --deepspeed deepspeed_zero2 --seed 2024
from mmengine.config import read_base

with read_base():
    from .._base_.llms import vicuna_7b
    from .._base_.paper import paper_instruct, qlora
    from .._base_.runtime import *

globals().update(paper_instruct(vicuna_7b, gpus=8, stage1="mg_llava_vicuna7b_pretrain", **qlora))
del qlora, paper_instruct, vicuna_7b
