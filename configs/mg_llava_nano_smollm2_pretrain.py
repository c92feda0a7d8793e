# The miniature with SmolLM2-135M and its real weights for the LLM, stage 1; tools/convert_gguf.py makes them a folder.
#   xtuner train configs/mg_llava_nano_smollm2_pretrain.py --seed 0
from mmengine.config import read_base

with read_base():
    from ._base_.llms import smollm2_135m
    from ._base_.nano import nano_pretrain
    from ._base_.runtime import *

globals().update(nano_pretrain(smollm2_135m, batch_size=4, lr=1e-3))
del nano_pretrain, smollm2_135m
