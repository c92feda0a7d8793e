# Lyrics in miniature, stage 1: the miniature's BLIP-2: no objects, no items.
#   xtuner train configs/lyrics/lyrics_nano_pretrain_blip2.py --seed 0
from mmengine.config import read_base

with read_base():
    from .._base_.lyrics import nano_lyrics_row
    from .._base_.runtime import *

globals().update(nano_lyrics_row("pretrain", "blip2"))
del nano_lyrics_row
