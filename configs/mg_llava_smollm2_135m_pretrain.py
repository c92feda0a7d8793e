# MG-LLaVA SmolLM2-135M, stage 1: 1.26M captions, batch 256 on 8 GPUs.
# tools/convert_gguf.py makes the LLM's folder from a package of PyPI.
#   NPROC_PER_NODE=8 xtuner train configs/mg_llava_smollm2_135m_pretrain.py --deepspeed deepspeed_zero2 --seed 2024
from mmengine.config import read_base

with read_base():
    from ._base_.llms import smollm2_135m
    from ._base_.paper import paper_pretrain
    from ._base_.runtime import *

globals().update(paper_pretrain(smollm2_135m, gpus=8))
del paper_pretrain, smollm2_135m
