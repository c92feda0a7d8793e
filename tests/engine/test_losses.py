"""Losses reach the log as with mmengine's hook, and between two lines of the log nothing waits for the device."""

import pytest
import torch
from mmengine.hooks import RuntimeInfoHook

from mg_llava.engine.losses import LossHook
from mg_llava.engine.resume import TrainLoop
from tests.models.test_waiting import NoReads
from tests.run import read_log

TIMES = {"time", "data_time", "samples_per_s", "tokens_per_s", "memory"}


def options(interval, iterations, window=1, save=100, kind="mg_llava.LossHook"):
    """Options of a run that logs every few iterations."""
    return {
        "default_hooks.runtime_info": {"type": kind},
        "default_hooks.logger.interval": interval,
        "default_hooks.checkpoint.interval": save,
        "custom_hooks": [
            {"type": "mg_llava.GateMonitorHook", "interval": interval},
            {"type": "mg_llava.ThroughputHook", "interval": interval},
        ],
        "train_cfg.max_iters": iterations,
        "log_processor.window_size": window,
    }


@pytest.mark.parametrize(("interval", "iterations", "window"), [(1, 5, 1), (2, 7, 2), (3, 7, 5)])
def test_log_is_that_of_mmengines_hook(runs, interval, iterations, window):
    logs = []
    for kind in ("RuntimeInfoHook", "mg_llava.LossHook"):
        runs.train(**options(interval, iterations, window, kind=kind))
        logs.append([{k: v for k, v in line.items() if k not in TIMES} for line in read_log(runs.work_dir)])
    assert logs[0] == logs[1] and len(logs[0]) >= iterations // interval


def test_checkpoint_between_two_lines_has_all_losses(runs):
    histories = []
    for kind in ("RuntimeInfoHook", "mg_llava.LossHook"):
        runs.train(**options(4, 4, save=3, kind=kind))
        saved = torch.load(runs.work_dir / "iter_3.pth", weights_only=False)["message_hub"]
        histories.append(saved["log_scalars"]["train/loss"].data[0].tolist())
    assert len(histories[0]) == 3 and histories[0] == pytest.approx(histories[1], rel=1e-6)


@pytest.mark.parametrize("counts", [1, 2])
@pytest.mark.parametrize("kind", ["RuntimeInfoHook", "mg_llava.LossHook"])
def test_steps_that_read_values(runs, kind, counts, monkeypatch):
    """Forward, backward, clipping, update and hooks read nothing where nothing is logged; mmengine's in every step."""
    waited = []
    runner = runs.build(**options(4, 8, kind=kind), **{"optim_wrapper.accumulative_counts": counts})
    run_iter = TrainLoop.run_iter

    def watched(self, batch):
        step = self._iter + 1
        with Reads() as reads, monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "tolist", lambda tensor: reads.names.append("tolist") or tolist(tensor))
            run_iter(self, batch)
        if reads.names:
            waited.append(step)

    tolist = torch.Tensor.tolist  # on the host this is no operation
    monkeypatch.setattr(TrainLoop, "run_iter", watched)
    runner.train()
    # an epoch ends after 6 iterations, and may be logged
    assert waited == ([1, 2, 3, 4, 5, 6, 7, 8] if kind == "RuntimeInfoHook" else [4, 6, 8])
    history = runner.message_hub.get_scalar("train/grad_norm").data[0]
    assert len(history) == 8 // counts and all(history > 0)


class Reads(NoReads):
    """Notes reads instead of failing."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        try:
            return super().__torch_dispatch__(func, types, args, kwargs)
        except AssertionError as error:
            self.names.append(str(error))
            return func(*args, **(kwargs or {}))


def test_kinds_of_output(runs):
    """Numbers pass as they are, and an earlier training leaves nothing; clipping is wrapped once."""
    assert issubclass(LossHook, RuntimeInfoHook) and LossHook.priority == RuntimeInfoHook.priority
    runner, _ = runs.train(**options(2, 2))
    hook = next(hook for hook in runner.hooks if isinstance(hook, LossHook))
    hook.after_train_iter(runner, 6, None, {"number": 2, "loss": torch.tensor(3.0)})
    hook._hand_on(runner)
    hub = runner.message_hub
    assert (hub.get_scalar("train/number").current(), hub.get_scalar("train/loss").current()) == (2, 3.0)
    hook.after_train_iter(runner, 6, None, {"number": 2})
    hook.before_train(runner)
    assert not hook._kept and runner.optim_wrapper.clip_func.args == (torch.nn.utils.clip_grad_norm_,)
