"""Steps whose loss or gradient is nan or inf are named, and stop the run after a bounded number."""

import logging

import pytest
import torch
from mmengine.hooks import Hook

from mg_llava.engine.finite import FiniteHook, NonFiniteError
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


def hooks(steps, value, patience=3, of="loss"):
    """Settings of a run with bad steps."""
    bad = {"type": "tests.engine.test_finite.BadStep", "steps": steps, "value": value, "of": of}
    return {"custom_hooks": [bad, {"type": "mg_llava.FiniteHook", "patience": patience}]}


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


def test_bad_gradient_of_a_good_loss_is_named(runs):
    model = {"default_hooks.checkpoint.interval": -1, "default_hooks.checkpoint.save_last": False}
    with pytest.raises(NonFiniteError, match="the first was step 2"):
        runs.train(**hooks([2], BAD["inf"], patience=1, of="gradient"), **model)
    assert errors(runs.work_dir)[0] == "step 2: the gradient is nan or inf"


def test_samples_are_named(caplog):
    hook = FiniteHook(patience=2)
    batch = {"data": {"ids": ["coco_7", "gqa_12"]}}
    runner = _runner()
    with caplog.at_level(logging.ERROR), pytest.raises(NonFiniteError, match=r"'coco_7', 'gqa_12'"):
        for runner.iter in range(4):
            hook.after_train_iter(runner, runner.iter, batch, {"loss": torch.tensor(BAD["inf"])})


@pytest.mark.parametrize("outputs", [None, {}, {"loss": 1.5}, {"count": torch.tensor(3)}])
def test_outputs_without_losses_pass(outputs):
    hook, runner = FiniteHook(patience=1), _runner()
    for runner.iter in range(3):
        hook.after_train_iter(runner, runner.iter, {"data": {}}, outputs)
    assert hook._bad == []


def test_step_is_read_during_the_next_one():
    """Nothing is asked of a step's tensors while they may still be computed."""
    hook, runner = FiniteHook(patience=1), _runner()
    hook.after_train_iter(runner, 0, {}, {"loss": torch.tensor(BAD["nan"])})
    with pytest.raises(NonFiniteError):
        hook.after_train_iter(runner, 1, {}, {"loss": torch.tensor(1.0)})


def test_float16_gradients_may_overflow():
    """A dynamic loss scale searches for the largest scale without inf; that is no fault."""
    hook, runner = FiniteHook(patience=1), _runner()
    runner.optim_wrapper.cast_dtype = torch.float16
    runner.message_hub.log_scalars["train/grad_norm"].data[0].append(BAD["inf"])
    for runner.iter in range(3):
        hook.after_train_iter(runner, runner.iter, {}, {"loss": torch.tensor(1.0)})
    runner.optim_wrapper.cast_dtype = torch.bfloat16
    hook.after_train_iter(runner, 3, {}, {"loss": torch.tensor(1.0)})
    with pytest.raises(NonFiniteError):
        hook.after_train_iter(runner, 4, {}, {"loss": torch.tensor(1.0)})


def test_patience_is_checked():
    with pytest.raises(ValueError, match="patience must be at least 1, found 0"):
        FiniteHook(patience=0)


def _runner():
    from types import SimpleNamespace as Holder

    hub = Holder(log_scalars={"train/grad_norm": Holder(data=([], []))}, runtime_info={})
    return Holder(iter=0, model=ToyModel(), optim_wrapper=Holder(cast_dtype=None), message_hub=hub)
