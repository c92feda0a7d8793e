"""Biases that are added to the linear layers of a frozen LLM (LLaMA-Adapter V2, arXiv 2304.15010).

They are zero at the start, parameters of their own, and stored apart: the LLM keeps its weights and their names.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mg_llava.models.losses.language import decoder_of
from mg_llava.registry import MODELS


class AddedBias(nn.Module):
    """A bias of ``channels``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels, dtype=torch.float32))

    def forward(self, output: Tensor) -> Tensor:
        """``(..., channels)`` to the same, in the same dtype."""
        return output + self.bias.to(output.dtype)


@MODELS.register_module()
class AddedBiases(nn.Module):
    """Biases behind linear layers of all layers of an LLM; tensors are named ``{layer}.{name of the linear}.bias``.

    Args:
        llm: The causal LM, which keeps its own weights and their names.
        names: Ends of the names of the linear layers; those that an LLM fuses are named as it has them.

    Raises:
        ValueError: No linear layer has one of these names.
    """

    def __init__(
        self,
        llm: nn.Module,
        names: Sequence[str] = ("q_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv_proj", "gate_up_proj"),
    ) -> None:
        super().__init__()
        self.is_on = True
        """Whether they are added; False is the plain LLM."""
        for number, layer in enumerate(getattr(decoder_of(llm), "layers", [])):
            own = nn.ModuleDict()
            for place, linear in layer.named_modules():
                name = place.rsplit(".", 1)[-1]
                if name in names and hasattr(linear, "out_features"):
                    own[name] = AddedBias(linear.out_features)
                    linear.register_forward_hook(self._hook(own[name]))
            if len(own):
                self.add_module(str(number), own)
        if not len(self._modules):
            raise ValueError(
                f"added biases: {type(llm).__name__} has no linear layers {', '.join(names)} in its layers; name its "
                "own with names=[...]"
            )

    def _hook(self, bias: nn.Module) -> Any:
        return lambda linear, given, output: bias(output) if self.is_on else output


@contextmanager
def plain_llm(system: Any) -> Iterator[None]:
    """Inside, the LLM of a system is the one of its folder: without prompts in its layers and without added biases."""
    adapters = [own for own in (getattr(system, key, None) for key in ("adapter", "llm_bias")) if own is not None]
    before = [own.is_on for own in adapters]
    for own in adapters:
        own.is_on = False
    try:
        yield
    finally:
        for own, was_on in zip(adapters, before, strict=True):
            own.is_on = was_on
