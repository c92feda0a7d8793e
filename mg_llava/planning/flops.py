"""Floating-point operations of one sample, counted by torch on the meta device; a multiply-add counts as two.

Shapes: P visual tokens, C their width, L length of the row, h x w cells of a stage.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mg_llava.models.interfaces import Seen
from mg_llava.models.recompute import is_dear, layer_products
from mg_llava.planning.skeleton import Skeleton

TEXT_TOKENS = 232
BOXES = 5
"""Text and box tokens of a sample that the paper's TFLOPs amount to, read as multiply-adds, for its LLMs alike."""


@dataclass(frozen=True)
class Sample:
    """A sample with one picture.

    Attributes:
        text: Text tokens, question and answer.
        boxes: Box tokens.
    """

    text: int = TEXT_TOKENS
    boxes: int = BOXES


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


def visual_tokens(model: Any) -> int:
    """Visual tokens of one picture."""
    return model.tokens_of(1, 0)


def row_length(model: Any, sample: Sample) -> int:
    """Length of the row of a sample."""
    return visual_tokens(model) + sample.text + (sample.boxes if model.bbox_projector is not None else 0)


def count_flops(skeleton: Skeleton, sample: Sample) -> Flops:
    """Count the operations of a sample in a model on the meta device."""
    model = skeleton.model
    was_training = model.training
    model.train()
    forward: dict[str, float] = {}
    training: dict[str, float] = {}

    def add(part: str, run: Callable[[], Tensor]) -> Tensor:
        output, forward[part], training[part] = _measure(run)
        return output

    low, aux = model.visual_encoder, model.visual_encoder_aux
    canvas = torch.empty(1, 3, model.canvas_size, model.canvas_size, device="meta")
    tokens = add("visual_encoder", lambda: low(canvas).tokens).to(_dtype(model.projector))  # (1, P, C)
    seen = Seen()
    if aux is not None:
        seen, forward["visual_encoder_aux"], _ = _measure(lambda: aux(canvas))
        training["visual_encoder_aux"] = forward["visual_encoder_aux"]
    if model.fuse_module is not None:
        high = Seen(maps=[item.to(tokens.dtype) for item in seen.maps])
        tokens = add("fuse_module", lambda: model.fuse_module(tokens, high))
        tokens = tokens.detach().requires_grad_()
    add("projector", lambda: model.projector(tokens))
    if model.bbox_projector is not None:
        forward["box_pooling"] = training["box_pooling"] = pooling_flops(seen.maps, sample.boxes)
        features = torch.empty(
            sample.boxes, model.bbox_projector.in_channels, device="meta", dtype=_dtype(model.bbox_projector)
        )
        add("bbox_projector", lambda: model.bbox_projector.project(features))
    length = row_length(model, sample)
    forward["llm"], training["llm"] = over_layers(
        model.llm, lambda: np.array(_measure(lambda: run_llm(model.llm, length))[1:])
    )
    forward["llm"], training["llm"] = float(forward["llm"]), float(training["llm"])
    model.train(was_training)
    recomputed = _recomputed(skeleton, forward["llm"], length)
    return Flops(forward, training, recomputed, length)


def _recomputed(skeleton: Skeleton, forward: float, length: int) -> float:
    """Operations of the LLM, of ``forward`` in all, that its checkpointing does twice."""
    if not skeleton.checkpointing:
        return 0.0
    llm = skeleton.model.llm
    if skeleton.checkpointing == "selective":
        cheap = [inner * outer for inner, outer in layer_products(llm) if not is_dear(inner, outer)]
        return 2.0 * length * sum(cheap)
    return forward - head_flops(llm, length)


def run_llm(llm: nn.Module, length: int, batch: int = 1) -> Tensor:
    """Logits (batch, L, vocabulary) of rows of a length on the meta device, with a graph to their inputs."""
    embeddings = llm.get_input_embeddings()
    shape = batch, length, embeddings.embedding_dim
    inputs = torch.empty(shape, device="meta", dtype=embeddings.weight.dtype, requires_grad=True)
    with _rotary_stand_ins(llm):
        return llm(inputs_embeds=inputs, use_cache=False).logits


def over_layers(llm: Any, measure: Callable[[], Any]) -> Any:
    """What ``measure`` gives for an LLM whose layers are all alike, from its first and its first two layers."""
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


def head_flops(llm: nn.Module, length: int) -> float:
    """Operations of the output layer for all positions, as the reference computes it; never computed again.

    Training here makes only the logits that have a label, unless the loss has ``chunk=None``: this is an upper bound.
    """
    vocabulary, width = llm.get_output_embeddings().weight.shape
    return 2.0 * length * vocabulary * width


def pooling_flops(stages: Sequence[Tensor], boxes: int) -> float:
    """Operations of box pooling: two short contractions for each box and stage ``(1, C, h, w)``."""
    return float(sum(2 * boxes * (stage[0].numel() + stage.shape[1] * stage.shape[3]) for stage in stages))


def _measure(run: Callable[[], Any]) -> tuple[Any, float, float]:
    """Output of ``run``, operations of its forward pass, and of forward and backward pass where it has a graph."""
    with FlopCounterMode(display=False) as counter:
        output = run()
    forward = float(counter.get_total_flops())
    if not (isinstance(output, Tensor) and output.requires_grad):
        return output, forward, forward
    with FlopCounterMode(display=False) as counter:
        output.backward(torch.empty_like(output))
    return output, forward, forward + float(counter.get_total_flops())


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype
