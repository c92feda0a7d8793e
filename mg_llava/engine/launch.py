"""Several processes, or DeepSpeed in one, on a machine without a GPU.

Closes the gaps that mmengine, XTuner and DeepSpeed leave there.
"""

import functools
import importlib.util
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from mmengine.device import get_device

from mg_llava.work.processes import free_port

LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SHARED_MEMORY_OP = "deepspeed_shm_comm"


def is_torchrun_process() -> bool:
    """Tell whether this process was started by ``torchrun`` (or sets the same environment variables)."""
    return all(name in os.environ for name in LAUNCHER_VARIABLES)


def is_deepspeed_asked_for() -> bool:
    """Tell whether this is ``xtuner train ... --deepspeed SETTING``; the planner has an option of that name, too."""
    script, *arguments = sys.argv
    return os.path.basename(script) == "train.py" and any(a.split("=")[0] == "--deepspeed" for a in arguments)


def prepare_cpu_launch() -> bool:
    """Make ``xtuner train --launcher pytorch [--deepspeed ...]`` work with the gloo backend where there is no GPU.

    Does nothing on a machine with an accelerator, and in a process that neither ``torchrun`` started nor DeepSpeed
    shall train in. It has to run before the runner is built and before XTuner chooses the precision of DeepSpeed, that
    is while the config is being read.

    Returns:
        Whether something was prepared.
    """
    if get_device() != "cpu" or not (is_torchrun_process() or is_deepspeed_asked_for()):
        return False
    if not is_torchrun_process():
        _be_alone()
    _declare_bf16_support()
    if importlib.util.find_spec("deepspeed") is not None:
        _disable_deepspeed_shared_memory()
        _complete_deepspeed_gathers()
    # mmengine's pytorch launcher calls torch.cuda.set_device whatever the backend; a process group that exists already
    # makes it skip that, and makes DeepSpeed adopt the group instead of starting its own.
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    return True


def _be_alone() -> None:
    """Set what ``torchrun`` would for one process; without it DeepSpeed asks MPI, which is rarely there."""
    os.environ.update(zip(LAUNCHER_VARIABLES, ("0", "0", "1", "127.0.0.1", str(free_port())), strict=True))


def _declare_bf16_support() -> None:
    """Add the ``torch.cpu.is_bf16_supported`` XTuner asks for, so that it picks bf16 (fp16 is refused on CPU)."""
    if not hasattr(torch.cpu, "is_bf16_supported"):
        torch.cpu.is_bf16_supported = lambda: True  # type: ignore[attr-defined]


def _disable_deepspeed_shared_memory() -> None:
    """Keep DeepSpeed from compiling its shared-memory collectives, which needs a C++ compiler; gloo does the work."""
    import deepspeed

    deepspeed.ops.__compatible_ops__[SHARED_MEMORY_OP] = False


def _complete_deepspeed_gathers() -> None:
    """Let DeepSpeed's asynchronous gathers return only when they are done.

    Where ZeRO-3 loads weights it starts one gather per parameter and waits for the last alone: enough on a CUDA
    stream, which keeps the order, but gloo's threads may write a buffer after the weights were loaded into it.
    """
    from deepspeed.comm.torch import TorchBackend

    for name in ("all_gather_into_tensor", "all_gather"):
        method = getattr(TorchBackend, name)
        if not hasattr(method, "completes"):  # once per process
            setattr(TorchBackend, name, _completing(method))


def _completing(gather: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(gather)
    def run(*args: Any, **kwargs: Any) -> Any:
        work = gather(*args, **kwargs)
        if work is not None:
            work.wait()
        return work

    run.completes = True  # type: ignore[attr-defined]
    return run
