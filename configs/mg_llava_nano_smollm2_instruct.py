# The miniature with SmolLM2-135M and its real weights for the LLM, stage 2; tools/convert_gguf.py makes them a folder.
#   xtuner train configs/mg_llava_nano_smollm2_instruct.py --seed 0
from mmengine.config import read_base

with read_base():
    from ._base_.llms import smollm2_135m
    from ._base_.nano import nano_instruct
    from ._base_.runtime import *

globals().update(nano_instruct(smollm2_135m, stage1="mg_llava_nano_smollm2_pretrain", batch_size=4, lr=2e-5))
del nano_instruct, smollm2_135m
