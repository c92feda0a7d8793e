"""Flash attention is told where rows begin: the loss of the other backends, and nothing read on the host."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from transformers import modeling_flash_attention_utils as flash_utils

from mg_llava.models.flash import uses_flash
from tests import toy
from tests.models.test_waiting import BATCHES, NoReads, make_batch, step

CALLS: list[dict[str, Any]] = []


def varlen(q: Tensor, k: Tensor, v: Tensor, **settings: Any) -> Tensor:
    """What flash-attn's function of variable lengths computes, sequence by sequence; ``(positions, heads, C)``."""
    CALLS.append(settings)
    lengths = settings["lengths"]
    assert settings["causal"] and settings["max_seqlen_q"] == settings["max_seqlen_k"] == max(lengths)
    parts = [
        F.scaled_dot_product_attention(*(t.transpose(0, 1) for t in own), is_causal=True, enable_gqa=True).transpose(
            0, 1
        )
        for own in zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
    ]
    return torch.cat(parts)


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> None:
    """flash-attn's function, on a CPU."""

    def call(q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, **settings: Any) -> Tensor:
        assert cu_seqlens_q is cu_seqlens_k and cu_seqlens_q.dtype == torch.int32
        with _disable_current_modes():  # a real kernel reads them on the device
            lengths = cu_seqlens_q.diff().tolist()
        return varlen(q, k, v, lengths=lengths, **settings)

    CALLS.clear()
    monkeypatch.setattr(flash_utils, "flash_attn_varlen_func", call, raising=False)
    monkeypatch.setattr(flash_utils, "_flash_supports_window_size", True, raising=False)


@pytest.mark.usefixtures("flash")
@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("packing", [None, 64])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients(toy_paths: dict[str, str], kind: str, packing: int | None, checkpointing: bool) -> None:
    llm = toy.model_config(toy_paths, "full")["llm"] | {"attention": "sdpa", "gradient_checkpointing": checkpointing}
    model = toy.build_model(toy_paths, "full", llm=llm, packing=packing).train()
    data = make_batch(model, kind)
    found = []
    for attention in ("sdpa", "flash_attention_2"):
        model.llm.config._attn_implementation = attention
        model.zero_grad()
        with NoReads():
            step(model, data)
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    layers = model.llm.config.num_hidden_layers
    assert uses_flash(model.llm) and len(CALLS) == layers * (2 if checkpointing else 1)
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.usefixtures("flash")
def test_other_calls_are_left_alone(toy_paths: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A call after a step, as in generation, has rows of its own."""
    model = toy.build_model(toy_paths, "full").train()
    model.llm.config._attn_implementation = "flash_attention_2"
    step(model, make_batch(model, "boxes"))
    assert CALLS
    plain: list[Tensor] = []

    def dense(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Tensor:
        plain.append(q)
        own = (t.transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(*own, is_causal=True, enable_gqa=True).transpose(1, 2)

    monkeypatch.setattr(flash_utils, "flash_attn_func", dense, raising=False)
    CALLS.clear()
    model.llm(input_ids=torch.tensor([[1, 5, 6], [1, 7, 8]]), use_cache=False)
    assert not CALLS and len(plain) == model.llm.config.num_hidden_layers
