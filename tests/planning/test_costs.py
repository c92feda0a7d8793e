"""FLOPs, memory and time against what the miniature takes, what the paper states, and closed forms."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mg_llava.planning import Skeleton, make_plan
from mg_llava.planning.flops import Sample, count_flops
from mg_llava.planning.gpus import find_gpu
from mg_llava.planning.memory import STRATEGIES, measure_activations, share_memory, weigh
from mg_llava.registry import MODELS
from tests.planning.conftest import load_config

NANO = {1: "mg_llava_nano_pretrain", 2: "mg_llava_nano_instruct"}
TEXT, BOXES, BATCH = 60, 7, 2
A100 = find_gpu("a100-80g")


class Measured:
    """One training step of the miniature, with its real weights, on the CPU."""

    def __init__(self, stage: int) -> None:
        settings = {
            **load_config(NANO[stage]).model,
            "pretrained_pth": None,
            "losses": [{"type": "mg_llava.LanguageLoss", "chunk": None}],
        }
        self.model = MODELS.build(settings).train()
        data = self._batch()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as forward:
            loss = self.model(data)["loss"]
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as backward:
            loss.backward()
        optimizer.step()
        self.forward, self.training = (f.get_total_flops() for f in (forward, backward))
        self.training += self.forward
        self.weights = sum(p.numel() * p.element_size() for p in self.model.parameters())
        self.gradients = sum(p.grad.numel() * p.grad.element_size() for p in trained if p.grad is not None)
        states = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
        self.states = sum(value.numel() * value.element_size() for value in states)
        self.kept = self._kept()

    def _batch(self) -> dict[str, Any]:
        ids = torch.randint(4, 500, (BATCH, TEXT + 1))
        ids[:, 1] = -200
        corners = torch.rand(BATCH, BOXES, 2) * 100
        return {
            "input_ids": ids,
            "labels": ids.masked_fill(ids < 0, -100),
            "attention_mask": torch.ones_like(ids, dtype=torch.bool),
            "canvas": torch.randint(0, 256, (BATCH, 3, 256, 256), dtype=torch.uint8),
            "boxes": list(torch.cat([corners, corners + 40], dim=-1)),
        }

    def _kept(self) -> int:
        """Bytes that autograd keeps of the LLM, parameters aside."""
        own = {p.untyped_storage().data_ptr() for p in self.model.parameters()}
        kept: dict[int, torch.UntypedStorage] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage
            return tensor

        llm = self.model.llm
        length = 64 + TEXT + BOXES
        inputs = torch.randn(BATCH, length, llm.config.hidden_size, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            llm(inputs_embeds=inputs, use_cache=False)
        return sum(storage.nbytes() for storage in kept.values())


@pytest.fixture(scope="module", params=[1, 2], ids=["stage 1", "stage 2"])
def nano(request: pytest.FixtureRequest) -> tuple[str, Measured]:
    """A stage of the miniature and what a step of it takes."""
    return NANO[request.param], Measured(request.param)


def test_flops_are_those_of_the_miniature(nano: tuple[str, Measured], skeleton: Callable[..., Skeleton]) -> None:
    leaf, measured = nano
    counted = count_flops(skeleton(leaf), Sample(TEXT, BOXES))
    assert sum(counted.forward.values()) == pytest.approx(measured.forward / BATCH, rel=0.01)
    assert sum(counted.training.values()) == pytest.approx(measured.training / BATCH, rel=0.01)
    assert counted.recomputed == 0


def test_memory_is_that_of_the_miniature(nano: tuple[str, Measured], skeleton: Callable[..., Skeleton]) -> None:
    leaf, measured = nano
    memory = share_memory(weigh(skeleton(leaf)), 0.0, STRATEGIES[0], gpus=1)
    assert memory.weights == measured.weights
    assert memory.gradients == measured.gradients
    assert memory.states == measured.states
    length = 64 + TEXT + BOXES
    assert measure_activations(skeleton(leaf), length, BATCH).kept == pytest.approx(measured.kept, rel=0.15)


# the paper's table of TFLOPs, which are multiply-adds
PAPER = {"vicuna7b": (5.76, 6.20, 6.21), "phi3": (3.30, 3.72, 3.73)}


@pytest.mark.parametrize("name", PAPER)
def test_flops_are_those_of_the_paper(name: str, skeleton: Callable[..., Skeleton]) -> None:
    leaf = f"mg_llava_{name}_instruct"
    variants = [
        dict(fusion=None, box_projector=None, high_res_encoder=None),
        dict(fusion=None),
        dict(),
    ]
    found = [sum(count_flops(skeleton(leaf, **changes), Sample()).forward.values()) / 2e12 for changes in variants]
    for ours, paper in zip(found, PAPER[name], strict=True):
        assert ours == pytest.approx(paper, rel=0.015)
    assert found[1] - found[0] == pytest.approx(PAPER[name][1] - PAPER[name][0], abs=0.02)
    assert found[2] - found[1] == pytest.approx(PAPER[name][2] - PAPER[name][1], abs=0.011)


def test_llm_takes_two_operations_a_weight_and_token(skeleton: Callable[..., Skeleton]) -> None:
    made = skeleton("mg_llava_vicuna7b_instruct")
    flops = count_flops(made, Sample(200, 0))
    length, width, layers = flops.length, 4096, 32
    matrices = 6_738_415_616 - 32_000 * width - 65 * width  # without embeddings and norms
    assert flops.forward["llm"] == pytest.approx(2 * matrices * length + 4 * layers * length**2 * width)
    assert flops.training["llm"] == pytest.approx(3 * flops.forward["llm"], rel=1e-3)
    frozen = count_flops(skeleton("mg_llava_vicuna7b_pretrain"), Sample(200, 0))
    # gradients of the inputs alone: one more pass over the weights, two over attention
    assert frozen.training["llm"] == pytest.approx(4 * matrices * length + 12 * layers * length**2 * width, rel=1e-3)
    assert flops.recomputed == pytest.approx(flops.forward["llm"] - 2 * 32_000 * width * length)


def test_the_papers_23_hours_are_plausible() -> None:
    hours = []
    for stage in ("pretrain", "instruct"):
        plan = make_plan(load_config(f"mg_llava_vicuna7b_{stage}"), A100, 8, mfu=1.0)
        assert plan.steps is not None and plan.steps.hours_per_epoch is not None
        hours.append(plan.steps.hours_per_epoch)
        # iterations that the reference's files name, from unrounded numbers of records
        assert plan.steps.iterations == pytest.approx({"pretrain": 4947, "instruct": 10805}[stage], abs=2)
    assert 0.25 < sum(hours) / 23 < 0.5


def test_what_the_paper_trained_on_fits_there() -> None:
    seven = make_plan(load_config("mg_llava_vicuna7b_instruct"), A100, 8)
    assert {"deepspeed_zero2", "deepspeed_zero3"} <= set(seven.fits) and "none" not in seven.fits
    large = make_plan(load_config("mg_llava_yi34b_instruct"), A100, 32)
    assert large.fits[0] == "deepspeed_zero3"  # ZeRO-3 on 32 A100, as in the paper; nothing less


def test_splitting_divides_by_the_gpus(skeleton: Callable[..., Skeleton]) -> None:
    weights = weigh(skeleton("mg_llava_vicuna7b_instruct"))
    memory = {s.name: share_memory(weights, 0.0, s, 8) for s in STRATEGIES}
    assert memory["deepspeed_zero1"].states == pytest.approx(12 * weights.trained / 8)
    assert memory["deepspeed_zero2"].gradients == pytest.approx(2 * weights.trained / 8)
    assert memory["deepspeed_zero3"].weights == pytest.approx((2 * weights.trained + weights.frozen_bytes) / 8)
    assert memory["deepspeed_zero3_offload"].cpu == pytest.approx((16 * weights.trained + weights.frozen_bytes) / 8)
    totals = [memory[f"deepspeed_zero{stage}"].total for stage in (1, 2, 3)]
    assert totals == sorted(totals, reverse=True)


def test_four_bits_take_a_quarter(skeleton: Callable[..., Skeleton]) -> None:
    lora, qlora = (weigh(skeleton(f"variants/mg_llava_vicuna7b_instruct_{name}")) for name in ("lora", "qlora"))
    assert lora.trained == qlora.trained
    linear = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert lora.frozen_bytes - qlora.frozen_bytes == pytest.approx(linear * (2 - 0.516), rel=0.01)


def test_checkpointing_trades_memory_for_time() -> None:
    config = load_config("mg_llava_vicuna7b_instruct").copy()
    plans = []
    for how in (False, "selective", True):
        config.merge_from_dict({"model.llm.gradient_checkpointing": how})
        plans.append(make_plan(config, A100))
    recomputed = [plan.flops.recomputed for plan in plans if plan.flops is not None]
    peaks = [plan.activations.peak for plan in plans if plan.activations is not None]
    assert recomputed[0] == 0 < 4 * recomputed[1] < recomputed[2]
    assert peaks[0] > 1.5 * peaks[1] > 3 * peaks[2]
    totals = {sum(plan.flops.training.values()) for plan in plans if plan.flops is not None}
    assert max(totals) == pytest.approx(min(totals))  # what is done twice is no part of the work
