# Lyrics in miniature, stage 1: captions with items; runs on a CPU.
#   python data/nano/make_data.py && xtuner train configs/lyrics/lyrics_nano_pretrain.py --seed 0
from mmengine.config import read_base

with read_base():
    from .._base_.lyrics import nano_lyrics_pretrain
    from .._base_.runtime import *

globals().update(nano_lyrics_pretrain())
del nano_lyrics_pretrain
