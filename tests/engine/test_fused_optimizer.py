"""Fused AdamW, as the recipe has it, through mmengine's wrappers and checkpoints of either kind."""

import pytest
import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper
from torch import nn

WRAPPERS = {
    "float32": (OptimWrapper, {}),
    "bfloat16": (AmpOptimWrapper, {"dtype": "bfloat16", "loss_scale": 1.0}),
}


def make(kind, fused):
    """A model and its wrapper."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 1))
    wrapper_class, settings = WRAPPERS[kind]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0, fused=fused)
    clip = {"max_norm": 1.0, "error_if_nonfinite": False}
    return model, wrapper_class(optimizer=optimizer, clip_grad=clip, accumulative_counts=2, **settings)


def train(model, wrapper, first, last):
    """Steps on batches that depend on their number; the losses."""
    wrapper.initialize_count_status(model, first, last)
    losses = []
    for step in range(first, last):
        x = torch.randn(4, 8, generator=torch.Generator().manual_seed(step))
        with wrapper.optim_context(model):
            loss = ((model(x).float() - 1) ** 2).mean()
        wrapper.update_params(loss)
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("kind", WRAPPERS)
def test_steps_are_those_of_the_plain_optimizer(kind, monkeypatch):
    # mmengine refuses mixed precision on a CPU, where all of it works but the scaling of the loss
    monkeypatch.setattr(amp_optimizer_wrapper, "is_cuda_available", lambda: True)
    (plain, plain_wrapper), (fused, fused_wrapper) = make(kind, None), make(kind, True)
    expected, found = train(plain, plain_wrapper, 0, 12), train(fused, fused_wrapper, 0, 12)
    assert found == pytest.approx(expected, rel=1e-5 if kind == "float32" else 2e-2)
    assert expected[-1] < expected[0]


@pytest.mark.parametrize(("before", "after"), [(None, True), (True, True), (True, None)])
def test_training_goes_on_from_a_checkpoint_of_either_kind(before, after):
    whole, whole_wrapper = make("float32", True)
    expected = train(whole, whole_wrapper, 0, 12)
    first, first_wrapper = make("float32", before)
    train(first, first_wrapper, 0, 6)
    second, second_wrapper = make("float32", after)
    second.load_state_dict(first.state_dict())
    second_wrapper.load_state_dict(first_wrapper.state_dict())
    assert train(second, second_wrapper, 6, 12) == pytest.approx(expected[6:], rel=1e-5)
