"""Losses reach the log as with mmengine's hook, and between two lines of the log nothing waits for the device."""

import pytest
import torch
from mmengine.hooks import RuntimeInfoHook

from mg_llava.engine.losses import LossHook
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
        "optim_wrapper.clip_grad": None,  # mmengine's clipping reads the norm in each iteration
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


def _refuse(tensor):
    raise AssertionError("a list of values waits for the device")


@pytest.mark.parametrize("kind", ["RuntimeInfoHook", "mg_llava.LossHook"])
def test_reads_of_an_iteration(runs, kind, monkeypatch):
    """Of the hooks of a run, mmengine's alone reads in every iteration; ours where the log is written."""
    waited = []
    runner = runs.build(**options(4, 8, kind=kind))
    call = type(runner).call_hook

    def watched(self, name, **settings):
        if name not in ("before_train_iter", "after_train_iter"):
            return call(self, name, **settings)
        try:
            with NoReads(), monkeypatch.context() as patch:
                patch.setattr(torch.Tensor, "tolist", _refuse)  # on the host this is no operation
                return call(self, name, **settings)
        except AssertionError:
            waited.append(self.iter + 1)
        return None

    monkeypatch.setattr(type(runner), "call_hook", watched)
    runner.train()
    # an epoch ends after 6 iterations, and may be logged
    assert waited == ([1, 2, 3, 4, 5, 6, 7, 8] if kind == "RuntimeInfoHook" else [4, 6, 8])


def test_kinds_of_output(runs):
    """Numbers pass as they are, and an earlier training leaves nothing."""
    assert issubclass(LossHook, RuntimeInfoHook) and LossHook.priority == RuntimeInfoHook.priority
    runner, _ = runs.train(**options(2, 2))
    hook = next(hook for hook in runner.hooks if isinstance(hook, LossHook))
    hook._kept = [("number", 2), ("loss", torch.tensor(3.0))]
    hook._hand_on(runner)
    hub = runner.message_hub
    assert (hub.get_scalar("train/number").current(), hub.get_scalar("train/loss").current()) == (2, 3.0)
    hook._kept = [("number", 2)]
    hook.before_train(runner)
    assert not hook._kept
