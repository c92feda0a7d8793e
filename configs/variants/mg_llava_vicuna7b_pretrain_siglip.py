# MG-LLaVA Vicuna-7B with SigLIP-SO400M, stage 1: 1.26M captions, batch 256 on 8 GPUs.
# 384 px in the low-resolution tower, 864 px in the other: 27 x 27 visual tokens.
#   NPROC_PER_NODE=8 xtuner train configs/variants/mg_llava_vicuna7b_pretrain_siglip.py \
#       --deepspeed deepspeed_zero2 --seed 2024
from mmengine.config import read_base

with read_base():
    from .._base_.llms import vicuna_7b
    from .._base_.paper import paper_pretrain
    from .._base_.runtime import *
    from .._base_.vision import siglip_so400m_384_convnext_l_864

globals().update(paper_pretrain(vicuna_7b, gpus=8, vision=siglip_so400m_384_convnext_l_864))
del paper_pretrain, vicuna_7b, siglip_so400m_384_convnext_l_864
