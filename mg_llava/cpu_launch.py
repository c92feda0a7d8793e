"""Importing this prepares a process for a run; the runtime config does, as it must happen before anything is loaded.

It makes ``torch.load`` safe, for XTuner and mmengine open checkpoints with it, looks at what ``xtuner`` was asked for,
and prepares several processes, or DeepSpeed, on CPU. It stands outside of ``mg_llava.engine`` so that reading a config
elsewhere does not load the training stack.
"""

import os
import sys

from mg_llava.models.weights.guard import guard_torch_load

guard_torch_load()

if os.path.basename(sys.argv[0]) in ("train.py", "test.py"):
    from mg_llava.engine.command import prepare_command

    prepare_command()

if "LOCAL_RANK" in os.environ or any(argument.startswith("--deepspeed") for argument in sys.argv):
    from mg_llava.engine.launch import prepare_cpu_launch

    prepare_cpu_launch()
