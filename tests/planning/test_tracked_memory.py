"""The planner's bytes of a step beside those that fake tensors of the full size really take."""

import dataclasses
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from transformers import DynamicCache

from mg_llava.models.losses.language import decoder_of
from mg_llava.models.recompute import enable_checkpointing
from mg_llava.planning import build_skeleton
from mg_llava.planning.answers import answering_bytes
from mg_llava.planning.memory import STRATEGIES, measure_activations, share_memory, weigh
from mg_llava.profiling.launches import faked
from tests.models.test_waiting import make_full_batch
from tests.planning.conftest import load_config


class Tracker(TorchDispatchMode):
    """Bytes of all memory that is alive, beside what was there before, and the most of them at one time."""

    def __init__(self, own):
        super().__init__()
        self.own = {storage._cdata: storage for storage in (tensor.untyped_storage() for tensor in own)}
        self.alive, self.now, self.peak = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage())
        return result

    def _see(self, storage):
        key = storage._cdata
        if key not in self.own and key not in self.alive:
            self.alive[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key):
        self.now -= self.alive.pop(key)


def track(model, data):
    """Most bytes of a forward and backward pass that adds to gradients, weights and gradients included."""
    with faked(model) as fake:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter)
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        own = [*model.parameters(), *model.buffers(), *gradients]
        given = tree_map_only(torch.Tensor, fake, data)
        with Tracker(own) as tracker:
            model(given)["loss"].backward()
        return tracker.peak + sum(storage.nbytes() for storage in tracker.own.values())


@pytest.mark.parametrize(
    ("leaf", "batch", "text", "boxes", "checkpointing", "packing"),
    [
        ("mg_llava_vicuna7b_instruct", 4, 200, 10, False, None),
        ("mg_llava_vicuna7b_instruct", 16, 200, 100, True, None),
        ("mg_llava_vicuna7b_instruct", 4, 200, 10, True, 4096),
        ("mg_llava_vicuna7b_pretrain", 16, 60, 0, "selective", None),
        ("mg_llava_vicuna7b_pretrain", 4, 60, 100, False, None),
        ("mg_llava_vicuna13b_instruct", 8, 200, 10, "selective", None),
    ],
)
def test_plan_agrees_with_a_tracked_step(leaf, batch, text, boxes, checkpointing, packing):
    model, data, activations, weights = plan(leaf, batch, text, boxes, checkpointing, packing)
    planned = share_memory(weights, activations, STRATEGIES[0], gpus=1)
    planned_bytes = planned.weights + planned.gradients + planned.activations
    tracked = track(model, data)
    assert planned_bytes == pytest.approx(tracked, rel=0.1), f"{planned_bytes / 1e9:.1f} and {tracked / 1e9:.1f} GB"


def plan(leaf, batch, text, boxes, checkpointing, packing):
    """A model without weights, a batch for it, and its activations and weights as the planner has them."""
    settings = {**load_config(leaf).model, "packing": packing}
    skeleton = dataclasses.replace(build_skeleton(settings), checkpointing=checkpointing)
    model = skeleton.model
    data = make_full_batch(model, [(text, 1)] * batch, boxes)
    length = text - 1 + model.token_count(1, boxes)
    activations = measure_activations(skeleton, length * batch if packing else length, 1 if packing else batch)
    enable_checkpointing(model.llm, checkpointing)
    return model.train(), data, activations.peak, weigh(skeleton)


BUCKET, LIVE = 500_000_000, 1_000_000_000
"""DeepSpeed's ``reduce_bucket_size``, of which it has two, and ``stage3_max_live_parameters``, which XTuner leaves."""


class SharingTracker(Tracker):
    """Counts beside it the weights that ZeRO-3 has whole: those used last, as many as ``LIVE``."""

    def __init__(self, model):
        super().__init__([*model.parameters(), *model.buffers()])
        self.whole, self.peak_with_whole = {}, 0
        for module in model.modules():
            if count := sum(parameter.numel() for parameter in module.parameters(recurse=False)):
                module.register_forward_pre_hook(lambda module, _, count=count: self._use(module, count))
                module.register_full_backward_pre_hook(lambda module, _, count=count: self._use(module, count))

    def _use(self, module, count):
        self.whole.pop(module, None)
        while self.whole and sum(self.whole.values()) + count > LIVE:
            self.whole.pop(next(iter(self.whole)))
        self.whole[module] = count
        self._look()

    def _see(self, storage):
        super()._see(storage)
        self._look()

    def _look(self):
        self.peak_with_whole = max(self.peak_with_whole, self.now + 2 * sum(self.whole.values()))


def track_shared(model, data, gpus):
    """Most bytes on one of N GPUs, with ZeRO-2 and ZeRO-3: everything in 16 bits but the optimizer's states, which are
    three times 32; gradients leave as they come."""
    model = model.bfloat16()
    with faked(model) as fake:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in trained:
            parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
        given = tree_map_only(torch.Tensor, fake, data)
        with SharingTracker(model) as tracker:
            model(given)["loss"].backward()
        weights = 2 * sum(parameter.numel() for parameter in model.parameters())
        count = sum(parameter.numel() for parameter in trained)
    shares = (2 + 4 + 4 + 4) * count / gpus + 2 * 2 * min(BUCKET, count)
    return {2: tracker.peak + weights + shares, 3: tracker.peak_with_whole + weights / gpus + shares}


@pytest.mark.parametrize(
    ("batch", "text", "boxes", "checkpointing", "packing"),
    [(8, 200, 10, True, None), (4, 200, 100, "selective", 4096)],
)
def test_plan_of_split_states_agrees_with_a_tracked_step(batch, text, boxes, checkpointing, packing):
    gpus, leaf = 8, "mg_llava_vicuna13b_instruct"
    model, data, activations, weights = plan(leaf, batch, text, boxes, checkpointing, packing)
    for stage, tracked in track_shared(model, data, gpus).items():
        planned = share_memory(weights, activations, STRATEGIES[stage], gpus)
        assert planned.strategy == f"deepspeed_zero{stage}"
        total = planned.weights + planned.gradients + planned.states + planned.buffers + planned.activations
        assert total == pytest.approx(tracked, rel=0.1), f"{stage}: {total / 1e9:.1f} and {tracked / 1e9:.1f} GB"


@pytest.mark.parametrize(
    ("leaf", "batch", "length"), [("vicuna7b", 16, 800), ("vicuna13b", 4, 2000), ("qwen2_5_3b", 32, 700)]
)
def test_plan_of_answers_agrees_with_a_tracked_batch(leaf, batch, length):
    """Pictures are seen and prompts read, the peak of an evaluation."""
    model = build_skeleton(load_config(f"mg_llava_{leaf}_instruct").model).model.eval()
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    planned = weights + batch * answering_bytes(model, length)
    canvas = torch.zeros(batch, 3, model.canvas_size, model.canvas_size, dtype=torch.uint8)
    with faked(model) as fake, torch.no_grad():
        own = [*model.parameters(), *model.buffers()]
        with Tracker(own) as tracker:
            seeing = model.see({"canvas": fake(canvas), "boxes": [torch.zeros(10, 4) for _ in range(batch)]})
            embeds = torch.zeros(batch, length, model.llm.config.hidden_size, dtype=torch.bfloat16)
            # without a mask, which transformers looks at on the host
            read = decoder_of(model.llm)(inputs_embeds=embeds, past_key_values=DynamicCache(), use_cache=True)
            model.llm.get_output_embeddings()(read.last_hidden_state[:, -1]).float()
            del seeing
        tracked = tracker.peak + sum(storage.nbytes() for storage in tracker.own.values())
    assert planned == pytest.approx(tracked, rel=0.1), f"{planned / 1e9:.1f} and {tracked / 1e9:.1f} GB"
