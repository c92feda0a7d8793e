"""Importing this prepares several processes on CPU; the runtime config imports it, as it must happen early.

It stands outside of ``mg_llava.engine`` so that reading a config elsewhere does not load the training stack.
"""

import os

if "LOCAL_RANK" in os.environ:
    from mg_llava.engine.distributed import prepare_cpu_launch

    prepare_cpu_launch()
