"""Gradient accumulation over micro-batches, fully tuned and with LoRA."""

from typing import Any

import pytest
import torch
from mmengine.optim import OptimWrapper

from mg_llava.data.collate import collate
from tests import toy


def step(model: Any, batches: list[dict], counts: int) -> list[dict[str, torch.Tensor]]:
    """Train on each batch; the trained weights after each."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    wrapper = OptimWrapper(torch.optim.SGD(parameters, lr=0.1), accumulative_counts=counts)
    wrapper.initialize_count_status(model, 0, len(batches))
    states = []
    for batch in batches:
        model.train_step({"data": batch}, wrapper)
        states.append(
            {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}
        )
    return states


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_two_micro_batches_make_one_step(toy_paths: dict[str, str], tuning: str) -> None:
    """Of the mean loss of both; nothing moves after the first."""
    instances = toy.make_batch([(8, 1), (8, 1), (8, 1), (8, 1)])  # as many labels in each half
    halves = [collate(instances[:2])["data"], collate(instances[2:])["data"]]
    whole = collate(instances)["data"]
    llm = toy.model_config(toy_paths, tuning)["llm"]
    if tuning == "lora":
        llm["lora"] = {"r": 4, "lora_dropout": 0.0}
    model = toy.build_model(toy_paths, llm=llm)
    before = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}
    first, second = step(model, halves, counts=2)
    assert all(torch.equal(first[name], value) for name, value in before.items())
    assert any(not torch.equal(second[name], value) for name, value in before.items() if name.startswith("llm."))
    together = step(toy.build_model(toy_paths, llm=llm), [whole], counts=1)[-1]
    for name, value in together.items():
        torch.testing.assert_close(second[name], value, rtol=1e-4, atol=1e-5, msg=name)
