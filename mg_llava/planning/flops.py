"""Floating-point operations of one sample, counted by torch on the meta device; a multiply-add counts as two.

Shapes: P visual tokens, C their width, L length of the row, h x w cells of a stage.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mg_llava.batch import TokenCount
from mg_llava.models.interfaces import ObjectReader
from mg_llava.models.recompute import is_expensive, layer_products
from mg_llava.models.vision import blank_seen
from mg_llava.planning.skeleton import Skeleton

POOLING = "box_pooling"
"""Name of what is read of boxes without parameters, beside the keys of parts."""

TEXT_TOKENS = 232
BOXES = 5
"""Text and box tokens of a sample that the paper's TFLOPs amount to, read as multiply-adds, for its LLMs alike."""


@dataclass(frozen=True)
class Sample:
    """A sample with one picture, or a video.

    Attributes:
        text: Text tokens, question and answer.
        boxes: Box tokens of the picture, or of each frame.
        crops: Object images.
        frames: Of the video; 0 for a picture.
    """

    text: int = TEXT_TOKENS
    boxes: int = BOXES
    crops: int = 0
    frames: int = 0

    def visual(self, count: TokenCount) -> int:
        """Tokens that are no text."""
        own = count(1, self.boxes) if not self.frames else count.of_frames(self.frames, self.frames * self.boxes)
        return own + count.per_crop * self.crops


@dataclass(frozen=True)
class Flops:
    """Operations of one sample in one forward pass, and in one training step, by part.

    Attributes:
        forward: By part; ``box_pooling`` is one.
        training: Forward and backward pass, by part; without what is computed again.
        recomputed: What gradient checkpointing computes a second time.
        length: Length of the row, L.
    """

    forward: dict[str, float]
    training: dict[str, float]
    recomputed: float
    length: int

    @property
    def multiply_adds(self) -> float:
        """Multiply-adds of one forward pass: what the paper's TFLOPs are."""
        return sum(self.forward.values()) / 2


def count_flops(skeleton: Skeleton, sample: Sample) -> Flops:
    """Count the operations of a sample in a model on the meta device."""
    model = skeleton.model
    was_training = model.training
    model.train()
    forward: dict[str, float] = {}
    training: dict[str, float] = {}
    canvas = torch.empty(1, 3, model.canvas_size, model.canvas_size, dtype=torch.uint8, device="meta")
    with _counting(model, forward, training):
        shown = max(1, sample.frames)
        model.encode(canvas.expand(shown, -1, -1, -1), [torch.empty(sample.boxes, 4, device="meta")] * shown)
        if sample.crops:
            model.see_crops(canvas.expand(sample.crops, -1, -1, -1))
    length = sample.visual(model.token_count) + sample.text
    if model.llm is not None:
        counts = over_layers(model.llm, lambda: np.array(_measure(lambda: run_llm(model.llm, length))[1:]))
        forward["llm"], training["llm"] = counts.tolist()
    model.train(was_training)
    recomputed = _recomputed(skeleton, forward.get("llm", 0.0), length)
    return Flops(forward, training, recomputed, length)


@contextmanager
def _counting(model: Any, forward: dict[str, float], training: dict[str, float]) -> Iterator[None]:
    """Inside, what encoders, connectors and pooling compute is added to these numbers, by part."""
    steps = []
    for part, module in model.named_parts():
        if part.role != "llm":
            steps.append((part.key, module, "forward"))
        if isinstance(module, ObjectReader):
            steps += [(part.key, module, "project"), (POOLING, module, "pool")]
    busy = False
    with ExitStack() as stack:
        stack.enter_context(patch.object(torch, "autocast", lambda *_, **__: nullcontext()))  # "meta" has none

        def count(key: str, module: Any, run: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
            nonlocal busy
            if busy:  # inside of what is counted already
                return run(*arguments, **named)
            busy = True
            try:
                output, once, both = _measure(lambda: run(*arguments, **named))
            except RuntimeError as error:
                if "meta" not in str(error).lower() or not getattr(getattr(module, "spec", None), "objects", 0):
                    raise
                # Grounding DINO reads sizes of its maps, and there are no values on the meta device
                print_log(f"{key}: operations that depend on values are not counted", "current", logging.WARNING)
                output, once, both = blank_seen(module.spec, torch.empty(0, device="meta")), 0.0, 0.0
            busy = False
            forward[key] = forward.get(key, 0.0) + once
            training[key] = training.get(key, 0.0) + both
            return output

        for key, module, name in steps:
            stack.enter_context(patch.object(module, name, partial(count, key, module, getattr(module, name))))
        yield


def _recomputed(skeleton: Skeleton, forward: float, length: int) -> float:
    """Operations of the LLM, of ``forward`` in all, that its checkpointing does twice."""
    if not skeleton.checkpointing or skeleton.model.llm is None:
        return 0.0
    llm = skeleton.model.llm
    if skeleton.checkpointing == "selective":
        cheap = [inner * outer for inner, outer in layer_products(llm) if not is_expensive(inner, outer)]
        return 2.0 * length * sum(cheap)
    # the output layer is never computed again; training makes logits with a label alone, so this is an upper bound
    vocabulary, width = llm.get_output_embeddings().weight.shape
    return forward - 2.0 * length * vocabulary * width


def run_llm(llm: nn.Module, length: int, batch: int = 1) -> Tensor:
    """Logits (batch, L, vocabulary) of rows of a length on the meta device, with a graph to their inputs."""
    embeddings = llm.get_input_embeddings()
    shape = batch, length, embeddings.embedding_dim
    inputs = torch.empty(shape, device="meta", dtype=embeddings.weight.dtype, requires_grad=True)
    with _rotary_stand_ins(llm):
        return llm(inputs_embeds=inputs, use_cache=False).logits


def over_layers(llm: Any, measure: Callable[[], Any]) -> Any:
    """``measure`` of an LLM whose layers are all alike, from its first and its first two layers."""
    count = llm.config.num_hidden_layers
    owner = next((m for m in llm.modules() if isinstance(m, nn.ModuleList) and len(m) == count), None)
    if owner is None or count < 3:
        return measure()
    layers = dict(owner._modules)
    try:
        found = []
        for number in (1, 2):
            owner._modules.clear()
            owner._modules.update({str(index): layers[str(index)] for index in range(number)})
            found.append(measure())
    finally:
        owner._modules.clear()
        owner._modules.update(layers)
    return found[0] + (count - 1) * (found[1] - found[0])


@contextmanager
def _rotary_stand_ins(llm: nn.Module) -> Iterator[None]:
    """Inside, rotary embeddings are empty tensors: computing them asks for an autocast that ``meta`` has not."""
    with ExitStack() as stack:
        for module in llm.modules():
            if hasattr(module, "inv_freq"):
                stack.enter_context(patch.object(module, "forward", partial(_empty_rotary, module)))
        yield


def _empty_rotary(module: Any, hidden: Tensor, *positions: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """Cosine and sine (1, L, head width)."""
    empty = hidden.new_empty(1, hidden.shape[-2], 2 * len(module.inv_freq))
    return empty, empty


def _measure(run: Callable[[], Any]) -> tuple[Any, float, float]:
    """Output of ``run``, operations of its forward pass, and of forward and backward pass where it has a graph."""
    with FlopCounterMode(display=False) as counter:
        output = run()
    forward = float(counter.get_total_flops())
    trained = [tensor for tensor in _tensors(output) if tensor.requires_grad]
    if not trained:
        return output, forward, forward
    with FlopCounterMode(display=False) as counter:
        torch.autograd.backward(trained, [torch.empty_like(tensor) for tensor in trained])
    return _fresh(output), forward, forward + float(counter.get_total_flops())


def _tensors(output: Any) -> Iterator[Tensor]:
    """Tensors in what a part gives: one, or tuples and lists of them."""
    if isinstance(output, Tensor):
        yield output
    elif output is not None:
        for item in output:
            yield from _tensors(item)


def _fresh(output: Any) -> Any:
    """The same without its graph, whose gradients are counted already; its own gradient is wanted."""
    if isinstance(output, Tensor):
        return output.detach().requires_grad_()
    if output is None:
        return None
    items = [_fresh(item) for item in output]
    return output._make(items) if hasattr(output, "_make") else type(output)(items)
