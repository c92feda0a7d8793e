"""Train by a config: XTuner's ``train`` with the Python that runs this, and its exit status.

Arguments and environment are those of ``xtuner train``: NPROC_PER_NODE, NNODES, NODE_RANK, ADDR, PORT.

Examples:
    mg-llava train configs/mg_llava_nano_pretrain.py --seed 2024
    NPROC_PER_NODE=8 mg-llava train CONFIG.py --deepspeed deepspeed_zero2 --seed 2024
    srun -N 2 --gres=gpu:8 --ntasks-per-node=8 mg-llava train CONFIG.py --launcher slurm
    mg-llava train CONFIG.py --resume work_dirs/CONFIG/iter_1000.pth
"""

import importlib.util
import itertools
import os
import sys
from pathlib import Path

from mg_llava.commands import _script
from mg_llava.engine.command import LAUNCHER

AFTER = _script.AFTER


def main() -> int:
    """Be the training, or what starts it in several processes."""
    sys.argv[1:] = command("train", sys.argv[1:])
    os.environ.pop(LAUNCHER, None)
    if sys.argv[1] == "torch.distributed.run":
        os.environ[LAUNCHER] = str(os.getpid())
    return _script.main()


def command(script: str, given: list[str]) -> list[str]:
    """The program of one of XTuner's scripts, in as many processes as the environment says, and its arguments.

    Raises:
        ValueError: XTuner is not installed.
    """
    spec = importlib.util.find_spec("xtuner")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("xtuner is not installed; pip install xtuner==0.2.0")
    file = str(Path(spec.submodule_search_locations[0], "tools", f"{script}.py"))
    nodes, processes = os.environ.get("NNODES", "1"), os.environ.get("NPROC_PER_NODE", "1")
    is_slurm = "--launcher=slurm" in given or ("--launcher", "slurm") in itertools.pairwise(given)
    if is_slurm or (nodes, processes) == ("1", "1"):
        return [file, *given]
    places = [f"--nnodes={nodes}", f"--nproc_per_node={processes}", f"--node_rank={os.environ.get('NODE_RANK', '0')}"]
    if nodes == "1" and "PORT" not in os.environ:
        places.append("--standalone")  # any free port
    else:
        address, port = os.environ.get("ADDR", "127.0.0.1"), os.environ.get("PORT", "29500")
        places += [f"--master_addr={address}", f"--master_port={port}"]
    each = ["-m", _script.__name__, file]
    return ["torch.distributed.run", *places, *each, *given, "--launcher", "pytorch"]
