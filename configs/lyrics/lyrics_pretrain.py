# Lyrics, stage 1: pictures and captions with items; EVA ViT-g and Grounding DINO, no LLM, so that all share it.
#   NPROC_PER_NODE=8 xtuner train configs/lyrics/lyrics_pretrain.py --deepspeed deepspeed_zero2 --seed 0
from mmengine.config import read_base

with read_base():
    from .._base_.llms import vicuna_13b
    from .._base_.lyrics import paper_lyrics_pretrain
    from .._base_.runtime import *

globals().update(paper_lyrics_pretrain(vicuna_13b, gpus=8))
del paper_lyrics_pretrain, vicuna_13b
