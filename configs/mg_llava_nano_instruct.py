# The embedded default, stage 2: questions about pictures with handwritten digits; runs on a CPU.
#   xtuner train configs/mg_llava_nano_instruct.py --seed 0
from mmengine.config import read_base

with read_base():
    from ._base_.data.nano import nano_stage2
    from ._base_.llms import nano as nano_llm
    from ._base_.nano import nano_settings
    from ._base_.recipe import instruct
    from ._base_.runtime import *
    from ._base_.vision import nano as nano_vision

globals().update(
    instruct(
        llm_name_or_path=nano_llm["path"],
        prompt_template=nano_llm["template"],
        vision=nano_vision,
        data=nano_stage2,
        pretrained_pth="./work_dirs/mg_llava_nano_pretrain",
        batch_size=16,
        lr=1e-3,
        max_epochs=2,
        **nano_settings,
    )
)
del nano_stage2, nano_llm, nano_settings, instruct, nano_vision
