# MG-LLaVA Vicuna-7B with SigLIP-SO400M, stage 2: 1.38M instructions, batch 128 on 8 GPUs.
# 384 px in the low-resolution tower, 864 px in the other: 27 x 27 visual tokens.
#   NPROC_PER_NODE=8 xtuner train configs/variants/mg_llava_vicuna7b_instruct_siglip.py \
#       --deepspeed deepspeed_zero2 --seed 2024
from mmengine.config import read_base

with read_base():
    from .._base_.llms import vicuna_7b
    from .._base_.paper import paper_instruct
    from .._base_.runtime import *
    from .._base_.vision import siglip_so400m_384_convnext_l_864

globals().update(
    paper_instruct(
        vicuna_7b, gpus=8, stage1="mg_llava_vicuna7b_pretrain_siglip", vision=siglip_so400m_384_convnext_l_864
    )
)
del paper_instruct, vicuna_7b, siglip_so400m_384_convnext_l_864
