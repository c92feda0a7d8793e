"""Activation checkpointing: same gradients, and what each way keeps and computes again."""

from collections import Counter

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM, Qwen2Config, Qwen2ForCausalLM

from mg_llava.models.recompute import enable_checkpointing, is_expensive, kept_width

LAYERS, WIDTH, ROWS, LENGTH = 3, 64, 2, 40
SIZES = dict(vocab_size=61, hidden_size=WIDTH, intermediate_size=160, num_hidden_layers=LAYERS, num_attention_heads=4)
ATTENTION = "aten._scaled_dot_product_flash_attention_for_cpu.default"
LLMS = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SIZES)),
    "llama, grouped": (LlamaForCausalLM, LlamaConfig(**SIZES, num_key_value_heads=1)),
    "phi3": (Phi3ForCausalLM, Phi3Config(**SIZES, pad_token_id=0)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SIZES, num_key_value_heads=2)),
}


class Count(TorchDispatchMode):
    """Counts operators."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.found[str(operator)] += 1
        return operator(*args, **(kwargs or {}))


def run(kind, how):
    """Loss, gradients, bytes that live on after the forward pass, and operators of the backward pass."""
    torch.manual_seed(0)
    model_class, config = LLMS[kind]
    llm = model_class._from_config(config, attn_implementation="sdpa").train()
    enable_checkpointing(llm, how)
    embeds = torch.randn(ROWS, LENGTH, WIDTH)
    labels = torch.randint(0, 61, (ROWS, LENGTH))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        loss = llm(inputs_embeds=embeds, labels=labels, use_cache=False).loss
    kept = sum(event.self_cpu_memory_usage for event in profiler.key_averages())
    with Count() as count:
        loss.backward()
    return loss.item(), {name: p.grad for name, p in llm.named_parameters()}, kept, count.found, llm


@pytest.mark.parametrize("kind", LLMS)
def test_gradients_are_the_same_and_selective_lies_between(kind):
    plain, whole, selective = (run(kind, how) for how in (False, True, "selective"))
    for other in (whole, selective):
        assert other[0] == plain[0]
        for name, gradient in plain[1].items():
            if gradient is not None:
                torch.testing.assert_close(other[1][name], gradient, rtol=1e-6, atol=1e-8, msg=name)
    assert whole[2] < selective[2] < plain[2]
    extra = selective[2] - whole[2]
    assert extra == pytest.approx(4 * ROWS * LENGTH * kept_width(selective[-1]), rel=0.15)  # as plans have it
    assert whole[3][ATTENTION] == LAYERS and selective[3][ATTENTION] == plain[3][ATTENTION] == 0


def test_what_is_expensive_is_not_computed_again():
    """The product that narrows again is not, either, and of the others only narrow keys and values are."""
    products = {
        (kind, how): run(kind, how)[3]["aten.mm.default"]
        for kind in ("llama", "llama, grouped")
        for how in (False, True, "selective")
    }
    for kind, again in (("llama", 0), ("llama, grouped", 2)):
        assert products[kind, True] - products[kind, False] == 6 * LAYERS
        assert products[kind, "selective"] - products[kind, False] == again * LAYERS


def test_products_of_adapters_are_cheap():
    assert is_expensive(4096, 11008) and is_expensive(4096, 4096) and is_expensive(3072, 16384)
    assert not is_expensive(11008, 4096) and not is_expensive(4096, 1024) and not is_expensive(64, 4096)


def test_unknown_ways_are_named():
    with pytest.raises(ValueError, match="gradient_checkpointing is 'some'; known: False, True, 'selective'"):
        enable_checkpointing(LlamaForCausalLM(LLMS["llama"][1]), "some")
