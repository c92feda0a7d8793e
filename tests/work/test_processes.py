"""Processes that meet: results and errors reach all of them."""

import os
import subprocess
import sys

import pytest

from mg_llava.work.processes import Processes
from tests.run import free_port

CODE = """
import atexit, os, sys
import torch.distributed as dist
from mg_llava.work.processes import Processes
atexit.register(lambda: print("met" if dist.is_initialized() else "left"))  # the first one is called last
processes = Processes.of_slurm(sys.argv[1]) if sys.argv[2] == "slurm" else Processes()
assert processes.gather(processes.rank * 10) == [0, 10]
assert processes.on_main(lambda: f"of {processes.rank}") == "of 0"
assert processes.together(lambda: processes.rank + 1) == [1, 2]
def fail():
    raise ValueError(f"rank {processes.rank} cannot")
try:
    processes.on_main(fail)
except ValueError as error:
    print(processes.rank, os.environ["LOCAL_RANK"], error, flush=True)
try:
    processes.together(fail if processes.rank == 1 else lambda: 1)
except ValueError as error:
    print(processes.rank, os.environ["LOCAL_RANK"], error, flush=True)
"""


def environment(kind, rank, port):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SLURM") and k not in ("RANK", "WORLD_SIZE")}
    clean["LOCAL_RANK"] = "7"  # left by whoever started srun
    if kind == "slurm":
        return {
            **clean,
            "SLURM_PROCID": str(rank),
            "SLURM_NTASKS": "2",
            "SLURM_JOB_ID": "7",
            "SLURM_LOCALID": str(rank),
        }
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return {**clean, **place, "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torchrun", "slurm"])
def test_results_and_errors_reach_all(tmp_path, kind):
    port = free_port()
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CODE, tmp_path / "work", kind],
            env=environment(kind, rank, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for rank, child in enumerate(children):
        out, err = child.communicate(timeout=120)
        assert child.returncode == 0, err
        assert out.splitlines() == [f"{rank} {rank} rank 0 cannot", f"{rank} {rank} rank 1 cannot", "left"]


MEETINGS = """
import os, sys
from mg_llava.work.processes import Processes
for number in range(60):
    os.environ["SLURM_STEP_ID"] = str(number)
    processes = Processes.of_slurm(sys.argv[1])
    assert processes.gather({"rank": processes.rank, "rest": "x" * 7 * processes.rank}) == [
        {"rank": rank, "rest": "x" * 7 * rank} for rank in range(2)
    ]
    processes._leave()
"""


@pytest.mark.slow
def test_leaving_right_after_the_last_result_ends(tmp_path):
    """Where a thread of gloo has the last reference to a tensor of Python, it waits for whoever waits for it."""
    children = [
        subprocess.Popen([sys.executable, "-c", MEETINGS, tmp_path / "work"], env=environment("slurm", rank, 0))
        for rank in range(2)
    ]
    try:
        assert [child.wait(timeout=600) for child in children] == [0, 0]
    finally:
        for child in children:
            child.kill()


def test_one_process_needs_nobody(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    processes = Processes()
    assert (processes.rank, processes.size, processes.is_main) == (0, 1, True)
    assert processes.gather("x") == ["x"] and processes.on_main(lambda: 3) == 3
    with pytest.raises(KeyError):
        processes.on_main(lambda: {}["absent"])


def test_slurm_without_srun_is_refused(monkeypatch, tmp_path):
    for name in ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        ValueError, match="SLURM_PROCID, SLURM_NTASKS, SLURM_JOB_ID are not set; start the tasks with srun"
    ):
        Processes.of_slurm(tmp_path)
