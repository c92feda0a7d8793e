"""Activation checkpointing of the LLM: what a layer keeps for the backward pass, and what is computed again.

Of a layer, checkpointing keeps the input alone and computes all else twice. Selective checkpointing also keeps what is
expensive to compute: the output of fused attention, and of matrix products from ``inner`` to ``outer`` channels with
``inner <= outer <= 8 * inner``. These are queries, keys and values, the attention's output, and the two wide products
of the MLP. Left out are the product that narrows again, which no one needs (the computation ends before it); keys and
values of grouped attention, which are narrow and cheap; and the products of adapters, whose ranks are small. What is
left to compute again are norms, rotations, activations and sums. Eager attention has no fused output: it is computed
again as a whole.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

Checkpointing = bool | Literal["selective"]
CHECKPOINTINGS: tuple[Checkpointing, ...] = (False, True, "selective")

_WIDENING = 8
_ATEN = torch.ops.aten
_PRODUCTS = (_ATEN.mm.default, _ATEN.addmm.default)
_ATTENTION = (
    _ATEN._scaled_dot_product_flash_attention.default,
    _ATEN._scaled_dot_product_efficient_attention.default,
    _ATEN._scaled_dot_product_cudnn_attention.default,
    _ATEN._scaled_dot_product_flash_attention_for_cpu.default,
)


def enable_checkpointing(llm: Any, how: Checkpointing) -> None:
    """Let an LLM of transformers keep less for the backward pass (non-reentrant).

    Args:
        llm: The causal LM.
        how: ``False`` keeps everything, ``True`` the inputs of layers, ``"selective"`` what is dear besides.

    Raises:
        ValueError: For another ``how``.
    """
    if how not in CHECKPOINTINGS:
        raise ValueError(f"gradient_checkpointing is {how!r}; known: {', '.join(map(repr, CHECKPOINTINGS))}")
    if not how:
        return
    # ZeRO-3 gives frozen weights back between a layer's computation and its backward pass, and fetches them again when
    # they are needed; torch's check of what was computed again would take them for other weights
    settings: dict[str, Any] = {"use_reentrant": False, "determinism_check": "none"}
    if how == "selective":
        settings["context_fn"] = partial(create_selective_checkpoint_contexts, _choose)
    llm.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)


def is_expensive(inner: int, outer: int) -> bool:
    """Whether the output of a product from ``inner`` to ``outer`` channels is kept."""
    return inner <= outer <= _WIDENING * inner


def kept_width(llm: Any) -> int:
    """Numbers that selective checkpointing keeps of each position, in all layers, beside their inputs."""
    config = llm.config
    heads = config.num_attention_heads
    attention = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    products = sum(outer for inner, outer in layer_products(llm) if is_expensive(inner, outer))
    return config.num_hidden_layers * attention + products


def layer_products(llm: Any) -> Iterator[tuple[int, int]]:
    """Incoming and outgoing channels of all linear layers but the output."""
    head = llm.get_output_embeddings()
    for module in llm.modules():
        if isinstance(module, nn.Linear) and module is not head:
            yield module.in_features, module.out_features


def _choose(_: Any, operator: Any, *arguments: Any, **__: Any) -> CheckpointPolicy:
    """The policy for the output of an operator of a layer."""
    keep = operator in _ATTENTION
    if operator in _PRODUCTS:
        keep = is_expensive(*arguments[-1].shape)  # the weight, (inner, outer)
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE
