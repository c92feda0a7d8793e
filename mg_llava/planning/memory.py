"""Bytes that training takes on one GPU, for plain data parallelism and each of XTuner's DeepSpeed settings.

Weights, gradients and the states of AdamW follow exactly from the model; activations are measured on the meta device,
by what autograd would keep; buffers and the rest are rules of thumb. Shapes: B rows, L length, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mg_llava.models.recompute import kept_width
from mg_llava.planning.flops import over_layers, run_llm
from mg_llava.planning.skeleton import Skeleton

GIB = 2**30
CONTEXT = 1.5 * GIB
"""CUDA context, NCCL and the kernels' workspaces."""
FRAGMENTATION = 0.05
"""Share of the memory that the allocator cannot use."""

_BUCKET = 5e8
"""Elements in one of DeepSpeed's communication buckets, and of all parameters that ZeRO-3 prefetches."""
_NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight in 4 bits, with its share of the two levels of scales (blocks of 64 and 256)."""


@dataclass(frozen=True)
class Strategy:
    """How states are split over N GPUs; shares are of the whole.

    Attributes:
        name: As given to ``xtuner train --deepspeed``; ``none`` is plain data parallelism.
        weights, gradients, states: Whether they are split.
        offload_weights, offload_states: Whether they lie in the memory of the CPU.
    """

    name: str
    weights: bool = False
    gradients: bool = False
    states: bool = False
    offload_weights: bool = False
    offload_states: bool = False


STRATEGIES = (
    Strategy("none"),
    Strategy("deepspeed_zero1", states=True),
    Strategy("deepspeed_zero2", states=True, gradients=True),
    Strategy("deepspeed_zero3", states=True, gradients=True, weights=True),
    Strategy("deepspeed_zero2_offload", states=True, gradients=True, offload_states=True),
    Strategy("deepspeed_zero3_offload", True, True, True, True, True),
)
"""From the fastest to the one that needs least."""


@dataclass(frozen=True)
class Weights:
    """Numbers and bytes of parameters.

    Attributes:
        trained: Number of trained parameters.
        trained_bytes: Their bytes in the dtypes that the config gives.
        frozen_bytes: Bytes of all others.
        largest: Number of parameters in the largest module that has some of its own.
    """

    trained: int
    trained_bytes: float
    frozen_bytes: float
    largest: int


@dataclass(frozen=True)
class Activations:
    """Bytes of a batch that are alive at the peak, beside weights and states.

    Attributes:
        kept: What autograd keeps of the LLM until the backward pass.
        recomputed: What it keeps of one layer while that is computed again.
        logits: Logits, their gradient, and the loss in float32.
        encoders: Stage maps, and the largest intermediate of the frozen encoders.
    """

    kept: float
    recomputed: float
    logits: float
    encoders: float

    @property
    def peak(self) -> float:
        """The encoders are done when the LLM begins, but for their stage maps."""
        return max(self.kept + self.recomputed + self.logits, self.encoders)


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU under one strategy; ``cpu`` is what each process takes of the CPU's memory."""

    strategy: str
    weights: float
    gradients: float
    states: float
    buffers: float
    activations: float
    cpu: float

    @property
    def total(self) -> float:
        """All of it, with what the allocator and the CUDA context need."""
        used = self.weights + self.gradients + self.states + self.buffers + self.activations
        return used * (1 + FRAGMENTATION) + CONTEXT


def weigh(skeleton: Skeleton) -> Weights:
    """Numbers and bytes of the model's parameters; shared ones count once."""
    model = skeleton.model
    in_four_bits = {id(p) for p in _quantized(model.llm)} if skeleton.quantized else set()
    trained = [p for p in model.parameters() if p.requires_grad]
    frozen = [p for p in model.parameters() if not p.requires_grad]
    return Weights(
        trained=sum(p.numel() for p in trained),
        trained_bytes=float(sum(p.numel() * p.element_size() for p in trained)),
        frozen_bytes=sum(p.numel() * (_NF4 if id(p) in in_four_bits else p.element_size()) for p in frozen),
        largest=max(sum(p.numel() for p in m.parameters(recurse=False)) for m in model.modules()),
    )


def _quantized(llm: Any) -> Iterator[Tensor]:
    """Weights that bitsandbytes would hold in 4 bits: of all frozen linear layers but the output."""
    head = llm.get_output_embeddings()
    for module in llm.modules():
        if isinstance(module, nn.Linear) and module is not head and not module.weight.requires_grad:
            yield module.weight


def share_memory(weights: Weights, activations: float, strategy: Strategy, gpus: int) -> Memory:
    """Memory on one of ``gpus`` GPUs."""
    if strategy.name == "none":
        trained = weights.trained_bytes
        buckets = trained if gpus > 1 else 0.0  # of DistributedDataParallel
        return Memory("none", trained + weights.frozen_bytes, trained, 2 * trained, buckets, activations, 0.0)

    def split(size: float, on: bool) -> float:
        return size / gpus if on else size

    # DeepSpeed trains in 16 bits, with a copy in float32 and two moments in float32
    sixteen_bits = split(2.0 * weights.trained + weights.frozen_bytes, strategy.weights)
    gradients = split(2.0 * weights.trained, strategy.gradients)
    states = split(12.0 * weights.trained, strategy.states)
    buffers = 2 * 2 * min(_BUCKET, weights.trained)
    if strategy.weights:
        buffers += 2 * 2 * weights.largest  # the module at work and the next one, whole
    cpu = 0.0
    if strategy.offload_states:
        cpu, gradients, states = states + gradients, 0.0, 0.0
    if strategy.offload_weights:
        cpu, sixteen_bits = cpu + sixteen_bits, 0.0
    return Memory(strategy.name, sixteen_bits, gradients, states, buffers, activations, cpu)


def measure_activations(skeleton: Skeleton, length: int, batch: int) -> Activations:
    """Activations of a batch of rows of one length, with fused attention, which keeps no L x L matrices."""
    model = skeleton.model
    llm = model.llm
    if llm is None:
        return Activations(0.0, 0.0, 0.0, float(batch * encoder_bytes(model)))
    embeddings, layers = llm.get_input_embeddings(), llm.config.num_hidden_layers
    size, width = embeddings.weight.element_size(), embeddings.embedding_dim
    half = max(1, length // 2)
    small, large = (over_layers(llm, partial(saved_bytes, llm, rows)) for rows in (half, 2 * half))
    # a L + b L^2 at two lengths gives a L
    linear = batch * (4 * small - large) * length / (2 * half)
    if skeleton.checkpointing:
        kept, recomputed = batch * layers * length * width * size, linear / layers
        if skeleton.checkpointing == "selective":
            expensive = batch * length * kept_width(llm) * size
            kept, recomputed = kept + expensive, max(0.0, recomputed - expensive / layers)
    else:
        kept, recomputed = linear, 0.0
    vocabulary = llm.get_output_embeddings().weight.shape[0]
    logits = batch * length * vocabulary * (2 * size + 4)
    return Activations(float(kept), float(recomputed), float(logits), float(batch * encoder_bytes(model)))


def saved_bytes(llm: nn.Module, length: int) -> int:
    """Bytes that autograd keeps of a row of a length, parameters aside."""
    own = {p.untyped_storage()._cdata for p in llm.parameters()} | {b.untyped_storage()._cdata for b in llm.buffers()}
    seen: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            seen[storage._cdata] = storage  # held, so that no other gets its place
        return tensor

    was_training = llm.training
    llm.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run_llm(llm, length)
    llm.train(was_training)
    return sum(storage.nbytes() for storage in seen.values())


@torch.no_grad()
def encoder_bytes(model: Any) -> int:
    """Largest input and output of any module of the encoders of a picture, beside maps, canvas and a block's input."""
    largest = 0

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal largest
        tensors = [item for item in (*inputs, output) if isinstance(item, Tensor)]
        largest = max(largest, sum(item.numel() * item.element_size() for item in tensors))

    maps = blocks = 0
    for encoder in (module for part, module in model.named_parts() if part.role == "encoder"):
        hooks = [m.register_forward_hook(look) for m in encoder.modules() if not list(m.children())]
        seen = encoder(torch.empty(1, 3, model.canvas_size, model.canvas_size, device="meta"))
        for hook in hooks:
            hook.remove()
        outputs = [*seen.maps, *([] if seen.tokens is None else [seen.tokens])]
        sizes = [item.numel() * item.element_size() for item in outputs]
        maps, blocks = maps + sum(sizes), max([blocks, *sizes])
    canvas = 2 * 3 * model.canvas_size**2 * 4  # as it is and normalized, float32
    return maps + largest + blocks + canvas
