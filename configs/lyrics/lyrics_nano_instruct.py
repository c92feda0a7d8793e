# Lyrics in miniature, stage 2: questions; runs on a CPU.
#   python data/nano/make_data.py && xtuner train configs/lyrics/lyrics_nano_instruct.py --seed 0
from mmengine.config import read_base

with read_base():
    from .._base_.lyrics import nano_lyrics_instruct
    from .._base_.runtime import *

globals().update(nano_lyrics_instruct())
del nano_lyrics_instruct
