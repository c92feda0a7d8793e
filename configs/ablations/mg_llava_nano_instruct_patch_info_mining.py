# Table 5 of the paper in miniature, stage 2: tokens read the cells of their patches in all stages.
#   xtuner train configs/ablations/mg_llava_nano_instruct_patch_info_mining.py --seed 0
from mmengine.config import read_base

with read_base():
    from .._base_.ablations import nano_ablation
    from .._base_.runtime import *

globals().update(nano_ablation("instruct", "patch_info_mining"))
del nano_ablation
