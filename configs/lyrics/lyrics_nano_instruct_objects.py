# Lyrics in miniature, stage 2: objects added to BLIP-2.
#   xtuner train configs/lyrics/lyrics_nano_instruct_objects.py --seed 0
from mmengine.config import read_base

with read_base():
    from .._base_.lyrics import nano_lyrics_row
    from .._base_.runtime import *

globals().update(nano_lyrics_row("instruct", "objects"))
del nano_lyrics_row
