"""Adapters: settings that would train something else than what is saved and exported are refused before training."""

from typing import Any

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from mg_llava.models.llm import build_language_model
from tests import toy


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Llama whose head is its word embeddings."""
    return str(toy.write_llm(tmp_path_factory.mktemp("tied"), tied=True))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An LLM with tied embeddings under other names."""
    folder = tmp_path_factory.mktemp("gpt2")
    GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=32, n_layer=1, n_head=4)).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    "lora",
    [
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["lm_head"]},
        {"target_modules": ["embed_tokens", "lm_head"]},
        {"target_modules": r".*lm_head"},
    ],
)
def test_adapters_on_half_of_a_tied_matrix(tied: str, lora: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"tie_word_embeddings.* modules_to_save=\[\"lm_head\"\] alone, or leave"):
        build_language_model(tied, "lora", lora=lora)


def test_tied_matrix_under_other_names(gpt2: str) -> None:
    targets = {"target_modules": ["c_attn"], "fan_in_fan_out": True}
    with pytest.raises(ValueError, match=r"modules_to_save=\['wte'\]. Train the shared .*\[\"lm_head\"\]"):
        build_language_model(gpt2, "lora", lora={**targets, "modules_to_save": ["wte"]})
    llm: Any = build_language_model(gpt2, "lora", lora={**targets, "modules_to_save": ["lm_head"]})
    assert llm.get_output_embeddings().weight is llm.get_input_embeddings().weight


def test_tied_matrix_may_be_left_alone(tied: str) -> None:
    for lora in ({}, {"modules_to_save": ["norm"]}):
        llm: Any = build_language_model(tied, "lora", lora=lora)
        assert llm.get_output_embeddings().weight is llm.get_input_embeddings().weight


def test_rows_of_embeddings_alone(toy_paths: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"trainable_token_indices, which cannot be merged .*\[\"embed_tokens\"\]"):
        build_language_model(toy_paths["llm"], "lora", lora={"trainable_token_indices": [5]})


@pytest.mark.parametrize("lora", [{"target_modules": ["embed_tokens"]}, {"modules_to_save": ["embed_tokens"]}])
def test_embeddings_both_frozen_and_trained(toy_paths: dict[str, str], lora: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="freeze_embeddings=True, but the lora settings train the word embeddings"):
        build_language_model(toy_paths["llm"], "lora", freeze_embeddings=True, lora=lora)


def test_embeddings_with_adapters_show_their_sizes(toy_paths: dict[str, str]) -> None:
    llm: Any = build_language_model(toy_paths["llm"], "lora", lora={"target_modules": ["embed_tokens"]})
    embeddings = llm.get_input_embeddings()
    assert (embeddings.num_embeddings, embeddings.embedding_dim) == (300, toy.LLM_WIDTH)
