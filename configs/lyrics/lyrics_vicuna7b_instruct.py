# Lyrics with Vicuna-7B, stage 2: instructions, LoRA on q, k and v.
#   NPROC_PER_NODE=8 xtuner train configs/lyrics/lyrics_vicuna7b_instruct.py --deepspeed deepspeed_zero2 --seed 0
from mmengine.config import read_base

with read_base():
    from .._base_.llms import vicuna_7b
    from .._base_.lyrics import paper_lyrics_instruct
    from .._base_.runtime import *

globals().update(paper_lyrics_instruct(vicuna_7b, gpus=8))
del paper_lyrics_instruct, vicuna_7b
