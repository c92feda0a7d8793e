"""The LLM of the miniature that reads faint objects: one more head, which carries objects linearly, and its scenes."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, LlamaForCausalLM

NANO = Path(__file__).resolve().parents[2] / "data" / "nano"
sys.path.insert(0, str(NANO))
pretrain, rendering, llms = (importlib.import_module(n) for n in ("pretrain_objects", "rendering", "pretrain_llm"))
sys.path.remove(str(NANO))
LAYOUT = [(7, 2, 3, 0), (-1, 5, 1, 1), (4, 6, 6, 2)]
Loaded = tuple[LlamaForCausalLM, AutoTokenizer]


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    llm = LlamaForCausalLM.from_pretrained(NANO / "llm", torch_dtype=torch.float32, attn_implementation="eager")
    return llm.eval(), AutoTokenizer.from_pretrained(NANO / "llm")


def tokens_of(loaded: Loaded, share: float, loud: float = 1.0) -> tuple[Tensor, int]:
    """A scene with objects of which the words have a share, and a question; and the number of objects."""
    llm, tokenizer = loaded
    renderer = rendering.Renderer(llm.model.embed_tokens, tokenizer)
    noise = replace(rendering.CLEAN, loud=loud)
    ids, weights, _ = renderer.words(np.random.default_rng(0), LAYOUT, noise)
    weights[rendering.CELLS :, : rendering.KIND] *= share
    scene = renderer.embed(torch.from_numpy(ids), torch.from_numpy(weights), 0.0)
    before, after = llms.Writer(tokenizer).first("Describe the picture.")
    text = llm.model.embed_tokens(torch.tensor([*before, *after]))
    return torch.cat([text[: len(before)], scene, text[len(before) :]])[None], len(LAYOUT)


@torch.no_grad()
def test_one_more_head_says_nothing_at_first(loaded: Loaded) -> None:
    tokens, _ = tokens_of(loaded, 1.0)
    wide = pretrain.widen(loaded[0])
    assert wide.config.num_attention_heads == loaded[0].config.num_attention_heads + 1
    torch.testing.assert_close(wide(inputs_embeds=tokens).logits, loaded[0](inputs_embeds=tokens).logits)


@torch.no_grad()
def test_the_planted_head_looks_at_every_object_however_faint_or_long(loaded: Loaded) -> None:
    wide = pretrain.widen(loaded[0]).eval()
    wide.config._attn_implementation = "eager"
    pretrain.plant_mean_head(wide, loaded[1])
    for share, loud in ((1.0, 1.0), (0.1, 1.0), (0.1, pretrain.LOUD)):
        tokens, count = tokens_of(loaded, share, loud)
        last = wide.model(inputs_embeds=tokens, output_attentions=True).attentions[0][0, -1, -1]
        first = llms.Writer(loaded[1]).first("")[0]
        seen = last[len(first) + rendering.CELLS :][:count]
        assert seen.sum() > 0.6 and seen.max() < 4 * seen.min()


def test_objects_of_training_are_faint_and_mostly_long(loaded: Loaded) -> None:
    renderer = pretrain.OwnNoise(loaded[0].model.embed_tokens, loaded[1])
    phase = pretrain.ROUNDS["fainter"].phase
    sampler = pretrain.FaintSampler(llms.Writer(loaded[1]), renderer, 2, phase)
    rng = np.random.default_rng(0)
    plain = [sampler.draw(rng) for _ in range(40)]
    assert max(drawn.weights.max() for drawn in plain) == 1
    sampler.faint = 1.0
    drawn = [sampler.draw(rng) for _ in range(40)]
    objects = [item.weights[item.places >= rendering.CELLS] for item in drawn]
    objects = [item for item in objects if len(item)]
    long = [item for item in objects if np.abs(item).max() > 1.5]
    assert 0.6 < len(long) / len(objects) < 1
    said = np.array([item[:, rendering.CONTENT].max() / pretrain.LOUD for item in long])
    assert said.min() < 0.1 and said.max() <= 1
    assert all((item[:, rendering.MIXTURE] == item[0, rendering.MIXTURE]).all() for item in objects), "said by all"


def test_rounds_follow_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = {name: replace(given, steps=2, stop=1) for name, given in pretrain.ROUNDS.items()}
    monkeypatch.setattr(pretrain, "ROUNDS", short)
    monkeypatch.setattr(sys, "argv", ["pretrain_objects.py", "--batch-size", "2", "--out", str(tmp_path)])
    pretrain.main()
    made = LlamaForCausalLM.from_pretrained(tmp_path)
    assert made.config.num_attention_heads == 5 == made.config.num_key_value_heads
