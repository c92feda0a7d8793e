"""The loss without logits of unlabeled positions: equal to the plain one in value, gradient and memory's order."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib import NumpyVersion
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from mg_llava.models.losses import language as loss_module
from mg_llava.models.losses.language import (
    LanguageLoss,
    check_liger,
    decoder_of,
    find_targets,
    hidden_token_loss,
    splits_logits,
    token_loss,
)
from mg_llava.tokens import IGNORE_INDEX

ROOT = Path(__file__).resolve().parents[3]

SIZES = dict(
    vocab_size=61,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=8,
)


@pytest.fixture
def llm() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def _batch(labeled: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    embeds = torch.randn(3, 12, 16, generator=generator)
    labels = torch.randint(0, 61, (3, 12), generator=generator)
    labels[torch.rand(3, 12, generator=generator) >= labeled] = IGNORE_INDEX
    return embeds, labels


def _gradients(llm: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    llm.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in llm.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("chunk", [1, 4, 1000])
@pytest.mark.parametrize("labeled", [0.3, 1.0])
def test_value_and_gradients_are_those_of_all_logits(llm, chunk, labeled):
    embeds, labels = _batch(labeled)
    expected = token_loss(llm(inputs_embeds=embeds).logits, labels)
    wanted = _gradients(llm, expected)
    loss = hidden_token_loss(
        llm, decoder_of(llm)(inputs_embeds=embeds).last_hidden_state, labels, find_targets(labels), chunk
    )
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
    found = _gradients(llm, loss)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-5, msg=name)


def test_without_labels_the_loss_is_zero_and_every_parameter_takes_part(llm):
    embeds, labels = _batch(0.0)
    loss = hidden_token_loss(
        llm, decoder_of(llm)(inputs_embeds=embeds).last_hidden_state, labels, find_targets(labels), 4
    )
    gradients = _gradients(llm, loss)
    assert loss.item() == 0
    assert "lm_head.weight" in gradients and all(not gradient.any() for gradient in gradients.values())


def test_logits_are_made_of_labeled_positions_alone(llm):
    embeds, labels = _batch(0.3)
    sizes = []
    llm.lm_head.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    hidden_token_loss(llm, decoder_of(llm)(inputs_embeds=embeds).last_hidden_state, labels, find_targets(labels), 4)
    assert max(sizes) <= 4 and sum(sizes) == int((labels[:, 1:] != IGNORE_INDEX).sum())


def test_llms_that_change_their_logits_are_left_to_themselves(llm):
    assert splits_logits(llm)
    assert not splits_logits(Gemma2ForCausalLM(Gemma2Config(**SIZES, final_logit_softcapping=30.0)))


# -- liger-kernel ---------------------------------------------------------------------------------------------------

LIGER = """
import torch
from tests.models.losses.test_language import SIZES, _batch, _gradients
from mg_llava.models.losses.language import causal_loss, check_liger
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
llm = LlamaForCausalLM(LlamaConfig(**SIZES))
check_liger(llm)
for labeled in (0.0, 0.3, 1.0):
    embeds, labels = _batch(labeled)
    found = {}
    for kernel in ("torch", "liger"):
        loss = causal_loss(llm, {"inputs_embeds": embeds}, labels, find_targets(labels), 4, kernel)
        found[kernel] = loss.detach(), _gradients(llm, loss)
    torch.testing.assert_close(found["liger"], found["torch"], atol=1e-6, rtol=1e-5)
"""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("liger_kernel") is None, reason="needs the package liger-kernel")
@pytest.mark.skipif(NumpyVersion(np.__version__) >= "2.4.0", reason="needs numpy < 2.4 for Triton's interpreter")
def test_liger_gives_the_same_loss():
    """On a CPU through Triton's interpreter, which has to be chosen before Triton is imported."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", LIGER], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]


def test_where_liger_cannot_be_used(llm, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(loss_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"pip install 'mg_llava\[liger\]', or set kernel='torch'"):
        check_liger(llm)
    monkeypatch.setattr(loss_module.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(RuntimeError, match="needs CUDA"):
        check_liger(llm)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_liger(llm)
    with pytest.raises(ValueError, match="Gemma2ForCausalLM changes them"):
        check_liger(Gemma2ForCausalLM(Gemma2Config(**SIZES, final_logit_softcapping=30.0)))


@pytest.mark.parametrize(
    ("chunk", "kernel", "message"),
    [
        (0, "torch", "chunk is 0; it must be a positive number"),
        (4, "ligre", "kernel is 'ligre'; known: torch, liger"),
        (None, "liger", "never makes the logits of all positions"),
    ],
)
def test_settings_that_make_no_sense(chunk, kernel, message):
    with pytest.raises(ValueError, match=message):
        LanguageLoss(chunk, kernel)
