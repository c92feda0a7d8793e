"""A resumed run equals an uninterrupted one, whatever the place of the checkpoint."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.runner import loops

from mg_llava.engine.resume import get_random_state, set_random_state
from tests.engine import launch_toy
from tests.engine.launch_toy import Killed, scramble_random_state

WITH_DROPOUT = {"model.dropout": 0.3}
BY_TOKENS = {
    "train_dataloader.batch_size": 6,
    "train_dataloader.sampler": {
        "_delete_": True,
        "type": "mg_llava.LengthGroupedSampler",
        "per_device_batch_size": 6,
    },
    "train_dataloader.batch_sampler": {"type": "mg_llava.TokenBatchSampler", "tokens": 40},
}


@pytest.mark.parametrize(
    ("checkpoint", "options"),
    [
        ("iter_2.pth", {}),
        ("iter_4.pth", {}),
        ("iter_4.pth", {"train_dataloader.num_workers": 2, "train_dataloader.persistent_workers": True}),
        ("iter_4.pth", {"train_dataloader.batch_size": 3}),  # written at the end of an epoch of 4 batches
        ("iter_4.pth", {"train_dataloader.batch_size": 5}),  # second epoch, whose last batch is short
        ("iter_2.pth", {"train_dataloader.sampler.type": "InfiniteSampler"}),
        ("iter_2.pth", BY_TOKENS),
        ("iter_4.pth", BY_TOKENS),  # in the second epoch, of 3 batches
    ],
)
def test_resumed_losses_are_equal(runs, checkpoint, options):
    options = WITH_DROPOUT | {"train_dataloader.batch_size": 2, "train_cfg.max_iters": 7} | options
    runner, whole = runs.train(**options)
    scramble_random_state()
    resumed_runner, rest = runs.train(resume=f"{runner.work_dir}/{checkpoint}", **options)
    start = int(checkpoint[5])
    assert rest == {step: loss for step, loss in whole.items() if step > start}
    assert len(rest) == 7 - start
    for name, tensor in runner.model.state_dict().items():
        assert torch.equal(tensor, resumed_runner.model.state_dict()[name])


def test_no_pause_between_epochs_without_workers(runs, monkeypatch):
    """Twelve samples in batches of four; mmengine waits for workers of the last epoch, here for none."""
    monkeypatch.setattr(loops, "time", SimpleNamespace(sleep=lambda seconds: pytest.fail("waits for nothing")))
    _, losses = runs.train(**{"train_dataloader.batch_size": 4, "train_cfg.max_iters": 7})
    assert len(losses) == 7


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("checkpoint", [4, 6, 8])
def test_data_knows_its_epoch(runs, checkpoint, workers):
    """Twelve samples in batches of two: steps 7 to 12 are of the second epoch, also after a resume."""
    drawn = {
        "train_dataloader.dataset.type": "tests.engine.launch_toy.DrawnData",
        "train_dataloader.num_workers": workers,
        "train_dataloader.persistent_workers": workers > 0,
        "train_cfg.max_iters": 13,
        "default_hooks.checkpoint.max_keep_ckpts": -1,
    }
    runner, whole = runs.train(**drawn)
    plain = runs.train(**{**drawn, "train_dataloader.dataset.type": "tests.engine.launch_toy.ToyData"})[1]
    assert [whole[step] == plain[step] for step in (6, 7)] == [True, False]
    assert runner.train_dataloader.dataset.epoch == 2
    _, rest = runs.train(resume=f"{runner.work_dir}/iter_{checkpoint}.pth", **drawn)
    assert rest == {step: loss for step, loss in whole.items() if step > checkpoint}


def test_killed_run_goes_on(runs):
    _, whole = runs.train(**WITH_DROPOUT)
    hooks = [{"type": "mg_llava.RandomStateHook"}, {"type": "tests.engine.launch_toy.KillHook"}]
    with pytest.raises(Killed):
        runs.train(custom_hooks=hooks, **WITH_DROPOUT)
    scramble_random_state()
    _, rest = runs.train(resume=runs.work_dir / "iter_2.pth", **WITH_DROPOUT)
    assert rest == {step: loss for step, loss in whole.items() if step > 2}


def test_skipped_data_is_not_loaded(runs, monkeypatch):
    runner, _ = runs.train()
    loaded = []
    original = launch_toy.ToyData.__getitem__
    monkeypatch.setattr(launch_toy.ToyData, "__getitem__", lambda self, i: loaded.append(i) or original(self, i))
    runs.train(resume=f"{runner.work_dir}/iter_4.pth")
    assert len(loaded) == 2  # one batch


def test_random_state_round_trip():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    state = get_random_state()
    first = draw()
    scramble_random_state()
    set_random_state(state)
    assert draw() == first


def test_loop_leaves_random_numbers_alone(runs):
    """Initial weights of a seed must not depend on whether the loop was built before the model."""
    runner = runs.build()
    before = torch.get_rng_state()
    runner.build_train_loop(runner._train_loop)
    assert torch.equal(before, torch.get_rng_state())


def test_checkpoint_without_random_state_is_reported(runs):
    runner, whole = runs.train(custom_hooks=[], **WITH_DROPOUT)
    _, rest = runs.train(resume=f"{runner.work_dir}/iter_4.pth", **WITH_DROPOUT)
    log = next(runs.work_dir.glob("*/*.log")).read_text()
    assert "has no random state for this process" in log
    assert rest[5] != whole[5]
