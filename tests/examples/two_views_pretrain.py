# TwoViews on the miniature's data, stage 1: the last and an earlier layer of its CLIP.
#   python data/nano/make_data.py && xtuner train configs/two_views_pretrain.py --seed 0
from mmengine.config import read_base

with read_base():
    from ._base_.llms import nano
    from ._base_.nano import nano_settings, nano_stage1
    from ._base_.run import pretrain
    from ._base_.runtime import *
    from ._base_.systems.two_views import two_views

clip = dict(type="mg_llava.CLIPEncoder", path="data/nano/clip")
system = two_views(nano, dict(first_encoder={**clip, "layer": -1}, second_encoder=clip), image_size=56)
globals().update(pretrain(system, nano_stage1, **nano_settings))
del clip, nano, nano_settings, nano_stage1, pretrain, system, two_views
