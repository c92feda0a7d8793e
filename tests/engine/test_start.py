"""The framework's start leaves every tensor as it was built and loaded."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine._strategy.base import BaseStrategy
from mmengine.runner import Runner

from mg_llava.registry import MODELS
from tests import toy
from tests.contract import cases

LORA = {
    "plain": {"r": 8},
    "rslora": {"r": 16, "use_rslora": True},
    "dora": {"r": 4, "use_dora": True},
    "gaussian": {"r": 4, "init_lora_weights": "gaussian"},
    "one layer": {"r": 4, "target_modules": ["q_proj"]},
    "whole head": {"r": 4, "modules_to_save": ["lm_head"]},
    "on embeddings": {"r": 4, "target_modules": ["q_proj", "embed_tokens"]},
}
STARTS = {
    "Runner": Runner._init_model_weights,
    "DeepSpeed": lambda holder: BaseStrategy._init_model_weights(holder, holder.model),
}


def tensors_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all parameters and buffers."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in named}


def build(paths: dict[str, str], tuning: str, **changes: Any) -> torch.nn.Module:
    llm = toy.model_config(paths, tuning)["llm"] | changes.pop("llm", {})
    return MODELS.build(toy.model_config(paths, tuning, llm=llm, **changes))


def assert_starts_change_nothing(model: torch.nn.Module) -> None:
    """Each start in turn, on the model that the one before has left as it was."""
    before = tensors_of(model)
    for name, start in STARTS.items():
        start(SimpleNamespace(model=model, dispatch_kwargs={}))
        after = tensors_of(model)
        assert before.keys() == after.keys()
        assert [key for key in before if not torch.equal(before[key], after[key])] == [], name


@pytest.mark.parametrize("with_checkpoint", [False, True])
@pytest.mark.parametrize(
    ("tuning", "settings"),
    [
        ("frozen", {}),
        ("full", {}),
        ("full", {"freeze_embeddings": True}),
        *[("lora", {"lora": settings}) for settings in LORA.values()],
    ],
    ids=["frozen", "full", "full without embeddings", *LORA],
)
def test_start_changes_nothing(toy_paths, tmp_path, with_checkpoint, tuning, settings):
    changes: dict[str, Any] = {"llm": settings}
    if with_checkpoint:
        donor = build(toy_paths, tuning, llm=settings)
        for parameter in donor.parameters():
            if parameter.requires_grad:  # as a training leaves them: nothing is zero any more
                torch.nn.init.normal_(parameter, std=0.1)
        torch.save(donor.state_dict(), tmp_path / "earlier.pth")
        changes["pretrained_pth"] = str(tmp_path / "earlier.pth")
    model = build(toy_paths, tuning, **changes)
    assert_starts_change_nothing(model)
    if with_checkpoint:
        after = tensors_of(model)
        stored = torch.load(tmp_path / "earlier.pth", weights_only=True)
        assert all(torch.equal(after[name], tensor) for name, tensor in stored.items())


@pytest.fixture(scope="module")
def case_paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return cases.write_all(tmp_path_factory.mktemp("start"))


@pytest.mark.parametrize("tuning", ["frozen", "full", "lora"])
@pytest.mark.parametrize("system", ["MGLLaVA", "MRMLLM"])
def test_start_changes_no_system(case_paths, tuning, system):
    config = cases.SYSTEMS[system](case_paths)
    assert_starts_change_nothing(MODELS.build({**config, "llm": {**config["llm"], "tuning": tuning}}))


def test_fresh_adapters_add_nothing(toy_paths):
    """The first output with adapters is that of the LLM itself."""
    model = build(toy_paths, "lora")
    Runner._init_model_weights(SimpleNamespace(model=model))
    assert all(not parameter.any() for name, parameter in model.named_parameters() if "lora_B" in name)


@pytest.mark.parametrize("settings", LORA.values(), ids=LORA)
def test_other_parts_do_not_depend_on_adapters(toy_paths, settings):
    """A seed gives the same projectors with and without adapters, so that runs differ in what they compare alone."""
    found = []
    for tuning, llm in (("full", {}), ("lora", {"lora": settings})):
        torch.manual_seed(5)
        model = build(toy_paths, tuning, llm=llm)
        found.append({name: tensor for name, tensor in tensors_of(model).items() if not name.startswith("llm.")})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
