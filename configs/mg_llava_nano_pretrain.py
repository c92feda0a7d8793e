# The embedded default, stage 1: captions of pictures with handwritten digits; runs on a CPU.
#   python data/nano/make_data.py && xtuner train configs/mg_llava_nano_pretrain.py --seed 0
from mmengine.config import read_base

with read_base():
    from ._base_.data.nano import nano_stage1
    from ._base_.llms import nano as nano_llm
    from ._base_.nano import nano_settings
    from ._base_.recipe import pretrain
    from ._base_.runtime import *
    from ._base_.vision import nano as nano_vision

globals().update(
    pretrain(
        llm_name_or_path=nano_llm["path"],
        prompt_template=nano_llm["template"],
        vision=nano_vision,
        data=nano_stage1,
        batch_size=16,
        lr=4e-3,
        max_epochs=2,
        **nano_settings,
    )
)
del nano_stage1, nano_llm, nano_settings, pretrain, nano_vision
