"""Importing this prepares several processes, or DeepSpeed, on CPU; the runtime config does, as it must happen early.

It stands outside of ``mg_llava.engine`` so that reading a config elsewhere does not load the training stack.
"""

import os
import sys

if "LOCAL_RANK" in os.environ or any(argument.startswith("--deepspeed") for argument in sys.argv):
    from mg_llava.engine.launch import prepare_cpu_launch

    prepare_cpu_launch()
