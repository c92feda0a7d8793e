"""Steps whose loss or gradient is nan or inf are named, and stop the run after a bounded number."""

import logging

import pytest
import torch
from mmengine.hooks import Hook, LoggerHook

from mg_llava.engine.losses import LossHook, NonFiniteError
from mg_llava.registry import HOOKS
from tests.engine.launch_toy import ToyModel

BAD = {"nan": float("nan"), "inf": float("inf"), "-inf": -float("inf")}


@HOOKS.register_module()
class BadStep(Hook):
    """Gives some steps a bad loss, or a bad gradient with a good loss; weights stay as they are."""

    def __init__(self, steps, value, of="loss"):
        self.steps, self.value, self.of = steps, value, of

    def before_train(self, runner):
        model = runner.model
        forward = type(model).forward

        def bad(data, data_samples=None, mode="loss"):
            loss = forward(model, data, data_samples, mode)["loss"]
            if runner.iter + 1 not in self.steps:
                return {"loss": loss}
            if self.of == "gradient":
                loss.register_hook(lambda gradient: gradient * self.value)
                return {"loss": loss}
            return {"loss": loss + loss.new_tensor(self.value)}  # its gradient is that of the loss

        model.forward = bad


def hooks(steps, value, patience=3, of="loss", log=1):
    """Settings of a run with bad steps."""
    bad = {"type": "tests.engine.test_finite.BadStep", "steps": steps, "value": value, "of": of}
    return {
        "custom_hooks": [bad],
        "default_hooks.runtime_info.patience": patience,
        "default_hooks.logger.interval": log,
    }


def errors(work_dir):
    """Lines of the log about bad steps."""
    log = next(work_dir.glob("*/*.log")).read_text()
    return [line[line.index("step ") :] for line in log.splitlines() if "ERROR" in line]


@pytest.mark.parametrize("name", BAD)
def test_run_stops_after_patience(runs, name):
    with pytest.raises(NonFiniteError, match="nan or inf in 3 steps in a row; the first was step 2"):
        runs.train(**hooks([2, 3, 4, 5], BAD[name]))
    assert errors(runs.work_dir) == [f"step {step}: the loss is nan or inf" for step in (2, 3, 4)]


def test_single_bad_steps_are_named_and_do_not_stop(runs):
    runs.train(**hooks([1, 3, 5], BAD["nan"], patience=2))
    assert errors(runs.work_dir) == [f"step {step}: the loss is nan or inf" for step in (1, 3, 5)]


def test_last_step_counts(runs):
    with pytest.raises(NonFiniteError, match="the first was step 5"):
        runs.train(**hooks([5], BAD["nan"], patience=1))


@pytest.mark.parametrize(("log", "save", "seen"), [(4, 100, 4), (100, 3, 3), (100, 100, 5)])
def test_bad_steps_are_seen_where_the_log_is_written_and_before_anything_is_saved(runs, monkeypatch, log, save, seen):
    done = []
    step = ToyModel.train_step
    monkeypatch.setattr(ToyModel, "train_step", lambda self, *a, **k: done.append(1) or step(self, *a, **k))
    with pytest.raises(NonFiniteError, match="the first was step 2"):
        runs.train(**hooks([2], BAD["nan"], patience=1, log=log), **{"default_hooks.checkpoint.interval": save})
    assert len(done) == seen and not list(runs.work_dir.glob("iter_*"))


def test_bad_gradient_of_a_good_loss_is_named(runs):
    model = {"default_hooks.checkpoint.interval": -1, "default_hooks.checkpoint.save_last": False}
    with pytest.raises(NonFiniteError, match="the first was step 2"):
        runs.train(**hooks([2], BAD["inf"], patience=1, of="gradient"), **model)
    assert errors(runs.work_dir)[0] == "step 2: the gradient is nan or inf"


def test_samples_are_named(caplog):
    hook = LossHook(patience=2)
    runner = _runner()
    with caplog.at_level(logging.ERROR), pytest.raises(NonFiniteError, match=r"'coco_7', 'gqa_12'"):
        _give(hook, runner, *[{"loss": torch.tensor(BAD["inf"])}] * 2, ids=["coco_7", "gqa_12"])


@pytest.mark.parametrize("outputs", [None, {}, {"loss": 1.5}, {"count": torch.tensor(3)}])
def test_outputs_without_losses_pass(outputs):
    hook, runner = LossHook(patience=1), _runner()
    _give(hook, runner, *[outputs] * 3)
    assert hook._bad == [] and runner.seen == [
        ("train/" + k, float(v)) for _ in range(3) for k, v in (outputs or {}).items()
    ]


def test_float16_gradients_may_overflow():
    """A dynamic loss scale searches for the largest scale without inf; that is no fault."""
    hook, runner = LossHook(patience=1), _runner()
    runner.model.get_global_grad_norm = lambda: BAD["inf"]
    runner.optim_wrapper.cast_dtype = torch.float16
    _give(hook, runner, *[{"loss": torch.tensor(1.0)}] * 3)
    runner.optim_wrapper.cast_dtype = torch.bfloat16
    with pytest.raises(NonFiniteError):
        _give(hook, runner, {"loss": torch.tensor(1.0)})


def test_patience_is_checked():
    with pytest.raises(ValueError, match="patience must be at least 1, found 0"):
        LossHook(patience=0)


def _give(hook, runner, *outputs, ids=()):
    """Steps of a run that logs each of them."""
    for runner.iter, output in enumerate(outputs):
        hook.after_train_iter(runner, runner.iter, {"data": {"ids": ids}}, output)


def _runner():
    from types import SimpleNamespace as Holder

    seen = []
    hub = Holder(update_scalar=lambda name, value: seen.append((name, value)), runtime_info={})
    wrapper = Holder(cast_dtype=None)
    logger = LoggerHook(interval=1)
    loader = [0] * 9
    return Holder(
        iter=0,
        model=Holder(),
        optim_wrapper=wrapper,
        message_hub=hub,
        hooks=[logger],
        train_dataloader=loader,
        max_iters=9,
        seen=seen,
    )
