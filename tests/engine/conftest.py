"""Runs of the toy model, in this process and through the real `xtuner train`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.visualization import Visualizer

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
CONFIG = HERE / "launch_config.py"


class ToyRuns:
    """Trains the toy model in this process, each run in a folder of its own."""

    def __init__(self, folder):
        self.folders = (folder / f"run{number}" for number in range(100))
        self.work_dir = None

    def build(self, resume=None, **options):
        """Runner of the toy config with options changed."""
        config = Config.fromfile(CONFIG)
        config.merge_from_dict(options)
        self.work_dir = next(self.folders)
        config.work_dir = str(self.work_dir)
        config.experiment_name = self.work_dir.name
        if resume is not None:
            config.resume, config.load_from = True, str(resume)
        return Runner.from_cfg(config)

    def train(self, resume=None, **options):
        """The runner after training, and the losses by iteration."""
        runner = self.build(resume, **options)
        runner.train()
        return runner, read_losses(self.work_dir)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Runs in this process; what mmengine keeps globally is forgotten afterwards."""
    monkeypatch.setattr("mmengine.runner.loops.time.sleep", lambda seconds: None)  # between two epochs
    yield ToyRuns(tmp_path)
    for manager in (DefaultScope, MessageHub, MMLogger, Visualizer):
        manager._instance_dict.clear()


def read_log(work_dir):
    """Records of the run's json log that have a loss."""
    file = next(Path(work_dir).glob("*/vis_data/scalars.json"))
    return [record for record in map(json.loads, file.read_text().splitlines()) if "loss" in record]


def read_losses(work_dir):
    """Loss by iteration."""
    return {record["step"]: record["loss"] for record in read_log(work_dir)}


def launch(work_dir, *arguments, processes=2):
    """Run ``xtuner train`` on the toy config; `xtuner` hides the exit status, so callers check the results."""
    bin_folder = Path(sys.executable).parent
    environment = dict(os.environ)
    environment |= {
        "PATH": f"{bin_folder}{os.pathsep}{environment['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "NPROC_PER_NODE": str(processes),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [str(bin_folder / "xtuner"), "train", str(CONFIG), "--launcher", "pytorch", "--work-dir", str(work_dir)]
    done = subprocess.run(
        [*command, *arguments], env=environment, capture_output=True, text=True, timeout=400, cwd=REPOSITORY
    )
    return done.stdout + done.stderr
