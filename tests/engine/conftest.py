"""Runs of the toy model, in this process and through the real `xtuner train`."""

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.runner import Runner

from mg_llava.engine.checkpoints import SafeCheckpointHook
from tests import forked
from tests.run import forget_runs, read_losses, run_xtuner

HERE = Path(__file__).parent
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
        try:
            runner.train()
        finally:  # as the end of a process does, wait for what is being written
            for hook in runner.hooks:
                if isinstance(hook, SafeCheckpointHook):
                    hook._thread.shutdown()
        return runner, read_losses(self.work_dir)


@pytest.fixture
def runs(tmp_path):
    """Runs in this process; what mmengine keeps globally is forgotten afterwards."""
    yield ToyRuns(tmp_path)
    forget_runs()


def launch(work_dir, *arguments, command=False):
    """Run ``xtuner train`` on the toy config in two processes; by its console command and torchrun where asked for."""
    if command:
        return run_xtuner("train", CONFIG, "--work-dir", work_dir, *arguments, processes=2)
    return forked.train(CONFIG, "--work-dir", work_dir, *arguments, processes=2)
