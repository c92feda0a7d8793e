# MG-LLaVA Vicuna-7B with ResNet-50 of timm, stage 2: 1.38M instructions, batch 128 on 8 GPUs.
#   NPROC_PER_NODE=8 xtuner train configs/variants/mg_llava_vicuna7b_instruct_resnet50.py \
#       --deepspeed deepspeed_zero2 --seed 2024
from mmengine.config import read_base

with read_base():
    from .._base_.llms import vicuna_7b
    from .._base_.paper import paper_instruct
    from .._base_.runtime import *
    from .._base_.vision import clip_l_336_resnet50_768

globals().update(
    paper_instruct(vicuna_7b, gpus=8, stage1="mg_llava_vicuna7b_pretrain_resnet50", vision=clip_l_336_resnet50_768)
)
del paper_instruct, vicuna_7b, clip_l_336_resnet50_768
