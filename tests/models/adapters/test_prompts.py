"""Gated prompts: closed gates are the plain LLM, PEFT's adaption prompts and a naive loop are oracles."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mg_llava.models.adapters.prompts import GatedPrompts
from mg_llava.models.recompute import enable_checkpointing

WIDTH, HEADS, LAYERS = 32, 4, 3
SIZES: dict[str, Any] = dict(
    hidden_size=WIDTH,
    intermediate_size=48,
    num_hidden_layers=LAYERS,
    num_attention_heads=HEADS,
    vocab_size=60,
    pad_token_id=0,
    attn_implementation="eager",
)
FAMILIES = ["llama", "mistral", "qwen2", "phi3"]


def build(family: str, heads_of_keys: int = 2, **changes: Any) -> Any:
    """A toy LLM of a family, with weights large enough to matter."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(family, num_key_value_heads=heads_of_keys, **{**SIZES, **changes})
    llm = AutoModelForCausalLM.from_config(config, attn_implementation=config._attn_implementation)
    for parameter in llm.parameters():
        nn.init.normal_(parameter, std=0.3)
    return llm.eval().requires_grad_(False)


def attach(llm: Any, gate: float | None = None, **settings: Any) -> GatedPrompts:
    """Prompts with open gates, different for each head."""
    prompts = GatedPrompts(llm, **{"prompts": 5, **settings})
    if gate is not None:
        for number, layer in enumerate(prompts.children()):
            layer.gate.data += gate * (1 + number + torch.arange(HEADS)).view(1, HEADS, 1, 1)  # type: ignore[operator]
    return prompts


def ids(rows: int = 3, length: int = 7) -> Tensor:
    return torch.randint(1, 60, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", FAMILIES)
def test_closed_gates_are_the_plain_llm(family: str) -> None:
    llm = build(family)
    names, wanted = list(llm.state_dict()), llm(ids()).logits
    prompts = attach(llm)
    assert torch.equal(llm(ids()).logits, wanted)
    assert list(llm.state_dict()) == names
    assert [*prompts.state_dict()] == ["1.prompt", "1.gate", "2.prompt", "2.gate"]


@pytest.mark.parametrize("family", FAMILIES)
def test_one_layer_against_a_loop(family: str) -> None:
    """The softmax over the prompts is apart from that over the positions; keys of prompts are not rotated."""
    llm = build(family)
    plain, seen = {}, {}
    attention = llm.model.layers[-1].self_attn

    def watch(module: Any, _: Any, given: Any, output: Any) -> None:
        seen.update(given)
        plain["output"] = output[0]

    attention.register_forward_hook(watch, with_kwargs=True)
    prompts = attach(llm, 0.4, layers=1)
    kept = {}
    attention.register_forward_hook(lambda *given: kept.update(output=given[2][0]))
    added = torch.randn(3, 5, WIDTH)
    with torch.no_grad(), prompts.adding(added):
        llm(ids())
    hidden, (cosines, sines) = seen["hidden_states"], seen["position_embeddings"]
    size = WIDTH // HEADS
    if family == "phi3":
        q_weight, k_weight, v_weight = attention.qkv_proj.weight.split([WIDTH, 2 * size, 2 * size])
        q_bias = k_bias = v_bias = 0
    else:
        q_weight, k_weight, v_weight = (getattr(attention, f"{name}_proj").weight for name in "qkv")
        biases = [getattr(attention, f"{name}_proj").bias for name in "qkv"]
        q_bias, k_bias, v_bias = (0 if bias is None else bias for bias in biases)
    layer = getattr(prompts, str(LAYERS - 1))
    for row in range(3):
        own = layer.prompt + added[row]
        for place in range(7):
            query = (hidden[row, place] @ q_weight.T + q_bias).view(HEADS, size)
            half = torch.cat([-query[:, size // 2 :], query[:, : size // 2]], dim=1)
            query = query * cosines[0, place] + half * sines[0, place]
            keys = (own @ k_weight.T + k_bias).view(5, 2, size)
            values = (own @ v_weight.T + v_bias).view(5, 2, size)
            heads = []
            for head in range(HEADS):
                weights = (keys[:, head // 2] @ query[head] / math.sqrt(size)).softmax(0)
                heads.append(math.tanh(float(layer.gate[0, head, 0, 0])) * weights @ values[:, head // 2])
            wanted = plain["output"][row, place] + torch.cat(heads) @ attention.o_proj.weight.T
            assert torch.allclose(kept["output"][row, place], wanted, atol=1e-5)


@pytest.mark.parametrize(("family", "heads_of_keys"), [("llama", HEADS), ("llama", 2), ("mistral", 2)])
def test_as_pefts_adaption_prompts(family: str, heads_of_keys: int) -> None:
    """PEFT has one gate a layer and no tanh."""
    from peft import AdaptionPromptConfig, get_peft_model

    llm = build(family, heads_of_keys)
    prompts = attach(llm)
    for layer in prompts.children():
        nn.init.constant_(layer.gate, 0.7)  # type: ignore[arg-type]
    ours = llm(ids()).logits
    oracle = get_peft_model(
        build(family, heads_of_keys),
        AdaptionPromptConfig(adapter_len=5, adapter_layers=LAYERS - 1, task_type="CAUSAL_LM"),
    ).eval()
    adapted: list[Any] = [module for module in oracle.modules() if hasattr(module, "adaption_prompt")]
    for number, attention in zip((1, 2), adapted, strict=True):
        attention.adaption_prompt.data = getattr(prompts, str(number)).prompt.data[None].clone()
        attention.adaption_gate.data.fill_(math.tanh(0.7))
    assert torch.allclose(ours, oracle(ids()).logits, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_alone_padded_and_with_a_cache(family: str) -> None:
    llm = build(family)
    prompts = attach(llm, 0.3)
    tokens, added = ids(), torch.randn(3, 5, WIDTH)
    with torch.no_grad(), prompts.adding(added):
        together = llm(tokens).logits
        cached = llm(tokens[:, :4], use_cache=True)
        rest = llm(tokens[:, 4:], past_key_values=cached.past_key_values).logits
    assert torch.allclose(rest, together[:, 4:], atol=1e-4)
    for row in range(3):
        with torch.no_grad(), prompts.adding(added[row : row + 1]):
            alone = llm(tokens[row : row + 1]).logits
            padded = torch.cat([torch.zeros(1, 2, dtype=torch.int64), tokens[row : row + 1]], dim=1)
            mask = (torch.arange(9) >= 2).long()[None]
            places = (torch.arange(9)[None] - 2).clamp(min=0)
            left = llm(padded, attention_mask=mask, position_ids=places).logits[:, 2:]
        assert torch.allclose(alone[0], together[row], atol=1e-4)
        assert torch.allclose(left, alone, atol=1e-4)
    with torch.no_grad():
        assert not torch.allclose(llm(tokens).logits, together, atol=1e-2)  # the addition ends with its context


def gradients(how: Any, passes: int, backend: str = "eager") -> list[Tensor]:
    """Gradients of prompts, gates and additions after several forward passes and one backward pass."""
    llm = build("llama", attn_implementation=backend)
    enable_checkpointing(llm, how)
    llm.train()
    prompts = attach(llm, 0.3)
    leaves = [torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(n)).requires_grad_() for n in range(2)]
    losses = []
    for number in range(passes):
        embeds = llm.get_input_embeddings()(ids()).requires_grad_()
        with prompts.adding(leaves[number]):
            losses.append((number + 1) * llm(inputs_embeds=embeds).logits.square().mean())
    torch.stack(losses).sum().backward()
    return [p.grad for p in [*prompts.parameters(), *leaves[:passes]] if p.grad is not None]


@pytest.mark.parametrize("how", [True, "selective"])
@pytest.mark.parametrize("passes", [1, 2])
def test_layers_computed_again_have_the_same_additions(how: Any, passes: int) -> None:
    """Also where two passes come before the backward pass, with other additions."""
    wanted, found = gradients(False, passes, "sdpa"), gradients(how, passes, "sdpa")
    assert len(wanted) == len(found) == 4 + passes
    for one, other in zip(wanted, found, strict=True):
        assert one.abs().max() > 0
        assert torch.allclose(one, other, atol=1e-6)


def test_beside_lora() -> None:
    from mg_llava.models.adapters.lora import add_lora

    torch.manual_seed(2)
    llm: Any = add_lora(build("llama"), {"r": 2, "lora_dropout": 0.0})
    prompts = attach(llm, 0.3)
    for name, parameter in llm.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    llm(ids()).logits.square().mean().backward()
    for name, parameter in [*prompts.named_parameters(), *llm.named_parameters()]:
        assert not parameter.requires_grad or parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("family", FAMILIES)
def test_added_biases_come_once(family: str) -> None:
    """Zero at the start; behind the same layers as a linear layer's own bias, with and without prompts."""
    from mg_llava.models.adapters.biases import AddedBiases

    plain, llm = build(family), build(family)
    names = list(llm.state_dict())
    prompts, biases = attach(llm, 0.3), AddedBiases(llm)
    oracle = attach(plain, 0.3)
    oracle.load_state_dict(prompts.state_dict())
    assert torch.equal(llm(ids()).logits, plain(ids()).logits)
    assert list(llm.state_dict()) == names and len(biases.state_dict()) == LAYERS * (4 if family == "phi3" else 5)
    for key, value in biases.named_parameters():
        number, name, _ = key.split(".")
        nn.init.normal_(value, std=0.2)
        linear = next(own for place, own in plain.model.layers[int(number)].named_modules() if place.endswith(name))
        before = 0 if linear.bias is None else linear.bias.data
        linear.bias = nn.Parameter(before + value.detach())
    with torch.no_grad():
        assert torch.allclose(llm(ids()).logits, plain(ids()).logits, atol=2e-4)
    llm(ids()).logits.square().mean().backward()
    assert all(value.grad.abs().max() > 0 for value in biases.parameters())


def test_biases_of_unknown_layers_are_refused() -> None:
    from mg_llava.models.adapters.biases import AddedBiases

    with pytest.raises(ValueError, match="has no linear layers c_attn in its layers"):
        AddedBiases(build("llama"), names=["c_attn"])


def test_half_precision_keeps_gates_in_float32() -> None:
    llm = build("llama").to(torch.bfloat16)
    prompts = attach(llm, 0.3)
    assert {p.dtype for p in prompts.parameters()} == {torch.float32}
    assert llm(ids()).logits.dtype == torch.bfloat16
    assert llm(ids()).logits.isfinite().all()


def test_other_rows_and_other_llms_are_refused() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    llm = build("llama")
    prompts = attach(llm)
    with (
        pytest.raises(ValueError, match=r"added to 2 rows, but the LLM reads 3"),
        prompts.adding(torch.zeros(2, 5, WIDTH)),
    ):
        llm(ids())
    with pytest.raises(ValueError, match=r"layers is 4; the LLM has 3.*prompts is 0"):
        GatedPrompts(llm, prompts=0, layers=4)
    with pytest.raises(ValueError, match="the LLM has 0 to choose from"):
        GatedPrompts(GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=20)))
