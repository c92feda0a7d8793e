"""Gated prompts inside the layers of a frozen LLM (LLaMA-Adapter V2, arXiv 2304.15010).

A layer attends to Q prompts beside its own positions, in a softmax of its own that is scaled by tanh of a gate. Gates
are zero at the start, so that the first step is the plain LLM. The LLM is not changed and none of its weights is
renamed: the prompts' part is added behind its attention modules.

Shapes: B rows, L positions, Q prompts, D hidden size, H heads, h channels of a head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from mg_llava.models.losses.language import decoder_of
from mg_llava.registry import MODELS


class GatedPrompt(nn.Module):
    """The prompts of one layer.

    Args:
        prompts: Q.
        channels: D.
        heads: H.
    """

    def __init__(self, prompts: int, channels: int, heads: int) -> None:
        super().__init__()
        # float32 whatever the LLM has: half precision gave nan in published runs
        self.prompt = nn.Parameter(torch.empty(prompts, channels, dtype=torch.float32))
        self.gate = nn.Parameter(torch.zeros(1, heads, 1, 1, dtype=torch.float32))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the prompts as word embeddings are, and close the gates."""
        nn.init.normal_(self.prompt)
        nn.init.zeros_(self.gate)

    def forward(self, attention: Any, hidden: Tensor, rotation: tuple[Tensor, Tensor], added: Tensor | None) -> Tensor:
        """What the prompts add to the output of an attention.

        Args:
            attention: The attention module of transformers.
            hidden: ``(B, L, D)``, its input.
            rotation: Cosines and sines of the positions, ``(B, L, h)``, or as many channels as are rotated.
            added: ``(B, Q, D)``, added to the prompts of each row; None for none.

        Returns:
            ``(B, L, D)`` in the dtype of ``hidden``.
        """
        prompts = self.prompt[None] if added is None else self.prompt + added  # (1 or B, Q, D)
        size = attention.head_dim
        queries = _rotate(_queries(attention, hidden).unflatten(-1, (-1, size)).transpose(1, 2), *rotation)
        keys, values = (item.unflatten(-1, (-1, size)).transpose(1, 2) for item in _pairs(attention, prompts, hidden))
        groups = queries.shape[1] // keys.shape[1]
        keys, values = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1)  # (1 or B, H, Q, h)
        scores = (queries @ keys.transpose(-1, -2)).float() * attention.scaling  # prompts have no position
        weights = scores.softmax(-1) * self.gate.tanh()
        mixed = (weights.to(values.dtype) @ values).transpose(1, 2).flatten(2)
        # the attention itself has added what the layer gives without input: its bias, or one that was added to it
        return attention.o_proj(mixed) - attention.o_proj(mixed.new_zeros(1, 1, mixed.shape[-1]))


@MODELS.register_module()
class GatedPrompts(nn.Module):
    """Gated prompts in the upper layers of an LLM of transformers with rotary positions.

    Tensors are named ``{layer}.prompt`` and ``{layer}.gate``.

    Args:
        llm: The causal LM, which keeps its own weights and their names.
        prompts: Q.
        layers: Number of layers from the top; None for all but the first.

    Raises:
        ValueError: The LLM has fewer layers, or attention of an unknown kind.
    """

    def __init__(self, llm: nn.Module, prompts: int = 10, layers: int | None = None) -> None:
        super().__init__()
        stack = decoder_of(llm).layers if hasattr(decoder_of(llm), "layers") else []
        layers = len(stack) - 1 if layers is None else layers
        problems = [] if 0 < layers <= len(stack) else [f"layers is {layers}; the LLM has {len(stack)} to choose from"]
        problems += [] if prompts > 0 else [f"prompts is {prompts}; at least 1 is needed"]
        if stack and not is_supported(stack[-1]):
            problems.append(
                f"{type(llm).__name__} has no attention with q_proj, k_proj, v_proj or qkv_proj, o_proj and rotary "
                "positions, as those of Llama, Mistral, Qwen2 and Phi-3 have; use lora for it"
            )
        if problems:
            raise ValueError("gated prompts: " + "; ".join(problems))
        self.prompts = prompts
        self.is_on = True
        """Whether the layers attend to them; False is the plain LLM."""
        self._added: Tensor | None = None
        # the addition travels with the rotary table of its forward pass, which gradient checkpointing hands to a layer
        # again when it computes it a second time, after the context has ended
        self._travelling = WeakTensorKeyDictionary()
        # other parts start from the same weights of a seed with and without prompts
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            for number in range(len(stack) - layers, len(stack)):
                attention = stack[number].self_attn
                heads = _channels(attention.o_proj, 1) // attention.head_dim
                prompt = GatedPrompt(prompts, _channels(attention.o_proj, 0), heads)
                self.add_module(str(number), prompt)
                attention.register_forward_hook(self._hook(prompt), with_kwargs=True)

    @contextmanager
    def adding(self, added: Tensor | None) -> Iterator[None]:
        """Inside, add to the prompts of all layers.

        Args:
            added: ``(B, Q, D)``, one for each row that the LLM reads; None for none.
        """
        before, self._added = self._added, added
        try:
            yield
        finally:
            self._added = before

    def _hook(self, prompt: GatedPrompt) -> Any:
        def add(attention: Any, _: tuple[Any, ...], given: dict[str, Any], output: Any) -> Any:
            if not self.is_on:
                return output
            hidden, rotation = given["hidden_states"], given["position_embeddings"]
            if self._added is not None:
                self._travelling[rotation[0]] = self._added
            added = self._travelling.get(rotation[0])
            if added is not None and len(added) != len(hidden):
                if len(hidden) % len(added):
                    raise ValueError(
                        f"prompts are added to {len(added)} rows, but the LLM reads {len(hidden)}; set packing=None"
                    )
                added = added.repeat_interleave(len(hidden) // len(added), 0)  # beams of each row
            return (output[0] + prompt(attention, hidden, rotation, added), *output[1:])

        return add


def is_supported(layer: Any) -> bool:
    """Whether a decoder layer has attention that prompts can be added to."""
    attention = getattr(layer, "self_attn", None)
    projections = hasattr(attention, "qkv_proj") or all(hasattr(attention, f"{name}_proj") for name in "qkv")
    known = type(attention).__module__.startswith("transformers.models.")
    return known and projections and all(hasattr(attention, name) for name in ("o_proj", "head_dim", "scaling"))


def _channels(linear: Any, side: int) -> int:
    """Outgoing (0) or incoming (1) channels, also of layers whose weights are packed or split over processes."""
    return int((linear.out_features, linear.in_features)[side])


def _queries(attention: Any, hidden: Tensor) -> Tensor:
    """``(B, L, H * h)``."""
    if hasattr(attention, "q_proj"):
        return attention.q_proj(hidden)
    return attention.qkv_proj(hidden)[..., : _channels(attention.o_proj, 1)]


def _pairs(attention: Any, prompts: Tensor, like: Tensor) -> tuple[Tensor, ...]:
    """Keys and values of prompts, each ``(1 or B, Q, channels)``."""
    prompts = prompts.to(like.dtype)
    if hasattr(attention, "q_proj"):
        return attention.k_proj(prompts), attention.v_proj(prompts)
    return attention.qkv_proj(prompts)[..., _channels(attention.o_proj, 1) :].chunk(2, dim=-1)


def _rotate(queries: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Queries ``(B, H, L, h)`` at their positions; channels beyond the table's are not rotated."""
    from transformers.models.llama.modeling_llama import rotate_half

    turned, still = queries[..., : cosines.shape[-1]], queries[..., cosines.shape[-1] :]
    return torch.cat([turned * cosines[:, None] + rotate_half(turned) * sines[:, None], still], dim=-1)
