# Table 5 of the paper in miniature, stage 1: tokens read the cells of their patches in all stages.
#   xtuner train configs/ablations/mg_llava_nano_pretrain_patch_info_mining.py --seed 0
from mmengine.config import read_base

with read_base():
    from .._base_.ablations import nano_ablation
    from .._base_.runtime import *

globals().update(nano_ablation("pretrain", "patch_info_mining"))
del nano_ablation
