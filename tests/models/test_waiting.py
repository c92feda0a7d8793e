"""A training step never waits for the device: no value is read on the host, no shape depends on values.

On a GPU each such read ends the queue of kernels that hides the host's work. Here it is found without one: fake
tensors have no values to read, a watch sees reads of real ones, and the meta device stands for one that is not the
host.
"""

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from mg_llava.data.collate import collate
from mg_llava.planning import build_skeleton
from mg_llava.profiling.launches import faked
from tests import toy
from tests.planning.conftest import load_config

BATCHES = {
    "boxes": ([(14, 1), (6, 0), (19, 2), (9, 1)], 3),
    "no boxes": ([(14, 1), (6, 0)], 0),
    "text": ([(14, 0), (6, 0)], 3),
}
"""Text ids and pictures of each sample, and most boxes of a picture."""

SPLIT = [{"type": "mg_llava.LanguageLoss", "chunk": 2}]
UNSPLIT = [{"type": "mg_llava.LanguageLoss", "chunk": None}]


def make_batch(model: Any, kind: str, canvas: int = toy.CANVAS) -> dict[str, Any]:
    """A batch whose samples are counted, as those of a data set are."""
    samples, boxes = BATCHES[kind]
    return make_full_batch(model, samples, boxes, canvas)


def make_full_batch(
    model: Any, samples: list[tuple[int, int]], boxes: int, canvas: int | None = None
) -> dict[str, Any]:
    """A batch of samples with so many ids and pictures each, and at most so many boxes a picture."""
    count, canvas = model.token_count, canvas or model.canvas_size
    instances = toy.make_batch(samples, boxes_per_image=boxes, canvas=canvas, seed=4)
    return collate([one | {"tokens": [count(1, len(own)) for own in one["boxes"]]} for one in instances])["data"]


def step(model: Any, data: dict[str, Any]) -> None:
    """Forward and backward, and every trained parameter got a gradient."""
    loss = model(data)["loss"]
    loss.backward()
    lacking = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert loss.shape == () and not lacking


# -- fake tensors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"packing": 64},
        {"losses": UNSPLIT},
        {"packing": 64, "losses": SPLIT},
    ],
)
def test_toy_step_on_fake_tensors(toy_paths: dict[str, str], kind: str, settings: dict[str, Any]) -> None:
    model = toy.build_model(toy_paths, "full", **settings).train()
    data = make_batch(model, kind)
    with faked(model) as fake:
        step(model, tree_map_only(Tensor, fake, data))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("boxes", {}),
        ("boxes", {"packing": 4096, "losses": UNSPLIT}),
        ("no boxes", {"packing": 4096}),
        ("text", {"losses": UNSPLIT}),
    ],
)
def test_vicuna_step_on_fake_tensors(kind: str, settings: dict[str, Any]) -> None:
    leaf = load_config("mg_llava_vicuna7b_instruct").model
    model = build_skeleton({**leaf, **settings}).model.train()
    data = make_batch(model, kind, canvas=model.canvas_size)
    with faked(model) as fake, torch.autocast("cpu", torch.bfloat16):
        step(model, tree_map_only(Tensor, fake, data))
    assert sum(p.numel() for p in model.parameters() if p.grad is not None) > 6.7e9


def test_fake_tensors_find_what_depends_on_values() -> None:
    with FakeTensorMode():
        values = torch.ones(3)
        for read, error in (
            (lambda: values[values > 0], DynamicOutputShapeException),
            (lambda: bool(values.isfinite().all()), DataDependentOutputException),
        ):
            with pytest.raises(error):
                read()


# -- reads of real values ---------------------------------------------------------------------------------------------


class NoReads(TorchDispatchMode):
    """Fails where an operation gives the host a value, or an output whose size depends on values."""

    READS = ("_local_scalar_dense", "equal", "masked_select", "nonzero", "unique", "_unique2", "bincount")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        by_mask = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        assert name not in self.READS and not by_mask, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("packing", [None, 64])
def test_toy_step_reads_no_value(toy_paths: dict[str, str], kind: str, attention: str, packing: int | None) -> None:
    llm = toy.model_config(toy_paths, "full")["llm"] | {"attention": attention, "gradient_checkpointing": True}
    model = toy.build_model(toy_paths, "full", llm=llm, packing=packing).train()
    data = make_batch(model, kind)
    with NoReads():
        step(model, data)
    assert all(isinstance(value, Tensor) for value in model.monitor.values())


@pytest.mark.parametrize("changes", [{"fusion": None}, {"box_projector": None}])
def test_ablations_read_no_value(toy_paths: dict[str, str], changes: dict[str, Any]) -> None:
    model = toy.build_model(toy_paths, "full", **changes).train()
    data = make_batch(model, "boxes")
    with NoReads():
        step(model, data)


def test_reads_are_found() -> None:
    values = torch.ones(3)
    for read in (values.sum().item, values.nonzero, lambda: values[values > 0], lambda: torch.equal(values, values)):
        with NoReads(), pytest.raises(AssertionError, match="waits for the device"):
            read()


# -- copies -----------------------------------------------------------------------------------------------------------


class NoWaitingCopies(TorchFunctionMode):
    """Fails where a tensor comes to the meta device by a copy that the host waits for."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and result.is_meta:
            name = getattr(func, "__name__", "")
            given = [item for item in args if isinstance(item, Tensor)]
            copies = name in ("to", "copy_", "type_as") and not given[-1 if name == "copy_" else 0].is_meta
            waits = name in ("tensor", "as_tensor", "new_tensor") or (copies and not kwargs.get("non_blocking"))
            assert not waits, f"{name} waits for the device"
        return result


@pytest.fixture
def no_autocast_on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch knows no autocast for the meta device, not even to switch it off."""
    autocast = torch.autocast

    def choose(device_type: str, *args: Any, **kwargs: Any) -> Any:
        is_meta = device_type == "meta"
        return contextlib.nullcontext() if is_meta else autocast(device_type, *args, **kwargs)

    monkeypatch.setattr(torch, "autocast", choose)


@pytest.mark.usefixtures("no_autocast_on_meta")
@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("packing", [None, 64])
def test_no_copy_in_a_step_is_waited_for(toy_paths: dict[str, str], kind: str, packing: int | None) -> None:
    model = toy.build_model(toy_paths, "full", packing=packing).train().to("meta")
    data = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), make_batch(model, kind))
    with NoWaitingCopies():
        step(model, data)


def test_waiting_copies_are_found() -> None:
    for copy in (lambda: torch.tensor([1.0], device="meta"), lambda: torch.ones(2).to("meta")):
        with NoWaitingCopies(), pytest.raises(AssertionError, match="waits for the device"):
            copy()
