"""The builder of the LLM: what is trained, which attention is used, and errors that name the folder."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mg_llava.models import llm as language_model
from mg_llava.models.llm import attention_candidates, build_language_model
from mg_llava.registry import MODELS


def trained_names(llm: torch.nn.Module) -> set[str]:
    return {name for name, parameter in llm.named_parameters() if parameter.requires_grad}


@pytest.fixture()
def folder(toy_paths: dict[str, str], tmp_path: Path) -> Path:
    """A copy of the toy LLM that a test may damage."""
    return shutil.copytree(toy_paths["llm"], tmp_path / "llm")


@pytest.fixture(scope="module")
def codegen(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An architecture that has eager attention alone."""
    from transformers import CodeGenConfig, CodeGenForCausalLM

    path = tmp_path_factory.mktemp("codegen")
    config = CodeGenConfig(vocab_size=60, n_embd=32, n_layer=1, n_head=4, n_positions=64, n_ctx=64, rotary_dim=8)
    CodeGenForCausalLM(config).save_pretrained(path)
    return str(path)


# -- what is trained ------------------------------------------------------------------------------------------------


def test_frozen_and_full(toy_paths: dict[str, str]) -> None:
    assert not trained_names(build_language_model(toy_paths["llm"]))
    full = build_language_model(toy_paths["llm"], tuning="full", gradient_checkpointing=False)
    assert trained_names(full) == {name for name, _ in full.named_parameters()}
    assert not full.is_gradient_checkpointing and full.config.use_cache is False


def test_frozen_word_embeddings(toy_paths: dict[str, str]) -> None:
    llm = build_language_model(toy_paths["llm"], tuning="full", freeze_embeddings=True)
    everything = {name for name, _ in llm.named_parameters()}
    assert everything - trained_names(llm) == {"model.embed_tokens.weight"}


def test_weights_are_those_of_the_folder(toy_paths: dict[str, str]) -> None:
    state = load_file(Path(toy_paths["llm"]) / "model.safetensors")
    llm = build_language_model(toy_paths["llm"], dtype="float32")
    assert all(torch.equal(llm.state_dict()[key], value) for key, value in state.items())
    assert build_language_model(toy_paths["llm"], dtype="bfloat16").dtype == torch.bfloat16


def test_lora_on_all_linear_layers(toy_paths: dict[str, str]) -> None:
    llm = build_language_model(toy_paths["llm"], tuning="lora")
    names = trained_names(llm)
    assert len(names) == 2 * 7 * 2 and all("lora_" in name for name in names)
    config = llm.peft_config["default"]
    assert (config.r, config.lora_alpha, config.task_type) == (64, 16, "CAUSAL_LM")


def test_lora_settings(toy_paths: dict[str, str]) -> None:
    settings = {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    llm = build_language_model(toy_paths["llm"], tuning="lora", lora=settings)
    names = trained_names(llm)
    assert sum("lora_" in name for name in names) == 4 and sum("lm_head" in name for name in names) == 1
    assert settings == {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}


@pytest.mark.parametrize(("tuning", "how"), [("full", True), ("lora", True), ("lora", "selective")])
def test_gradient_checkpointing_is_non_reentrant(
    toy_paths: dict[str, str], tuning: Any, how: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has to work where no input of the LLM needs a gradient, as reentrant checkpointing does not."""
    import torch.utils.checkpoint as checkpoint

    used = []
    plain = checkpoint._checkpoint_without_reentrant_generator
    monkeypatch.setattr(
        checkpoint,
        "_checkpoint_without_reentrant_generator",
        lambda *args, **kwargs: used.append(True) or plain(*args, **kwargs),
    )
    llm = build_language_model(toy_paths["llm"], tuning, dtype="float32", gradient_checkpointing=how).train()
    llm(inputs_embeds=torch.randn(1, 4, 32), labels=torch.tensor([[1, 2, 3, 4]])).loss.backward()
    assert used and all(p.grad is not None for n, p in llm.named_parameters() if "layers" in n and p.requires_grad)


def test_registry_name(toy_paths: dict[str, str]) -> None:
    llm = MODELS.build({"type": "mg_llava.build_language_model", "path": toy_paths["llm"]})
    assert type(llm).__name__ == "LlamaForCausalLM"


# -- attention ------------------------------------------------------------------------------------------------------


def test_attention_is_chosen_by_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for cuda, package, expected in (
        (False, True, ["sdpa", "eager"]),
        (True, False, ["sdpa", "eager"]),
        (True, True, ["flash_attention_2", "sdpa", "eager"]),
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(
            language_model.importlib.util, "find_spec", lambda name, there=package: object() if there else None
        )
        assert attention_candidates() == expected


def test_attention_of_an_architecture_with_sdpa(toy_paths: dict[str, str]) -> None:
    assert build_language_model(toy_paths["llm"]).config._attn_implementation == "sdpa"
    assert build_language_model(toy_paths["llm"], attention="eager").config._attn_implementation == "eager"


def test_falls_back_to_eager_attention(codegen: str) -> None:
    llm = build_language_model(codegen, tuning="full", gradient_checkpointing=False)
    assert llm.config._attn_implementation == "eager" and trained_names(llm)


def test_falls_back_where_flash_attention_does_not_load(
    toy_paths: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language_model, "attention_candidates", lambda: ["flash_attention_2", "sdpa", "eager"])
    assert build_language_model(toy_paths["llm"]).config._attn_implementation == "sdpa"


def test_an_attention_that_is_asked_for_is_not_replaced(codegen: str) -> None:
    with pytest.raises(ValueError, match="does not support an attention implementation"):
        build_language_model(codegen, attention="sdpa")


def test_eager_attention_alone_is_counted_too(codegen: str) -> None:
    with torch.device("meta"):
        counted = build_language_model(codegen)
        with pytest.raises(ValueError):
            build_language_model(codegen, attention="sdpa")
    kept = build_language_model(codegen)
    assert {key: value.shape for key, value in counted.state_dict().items()} == {
        key: value.shape for key, value in kept.state_dict().items()
    }


# -- errors ---------------------------------------------------------------------------------------------------------


def test_unknown_tuning(toy_paths: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="unknown tuning 'partial'; known: frozen, full, lora, qlora"):
        build_language_model(toy_paths["llm"], tuning="partial")


def test_lora_settings_without_lora(toy_paths: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="lora settings are given but tuning='full'"):
        build_language_model(toy_paths["llm"], tuning="full", lora={"r": 4})


def test_qlora_needs_cuda(toy_paths: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match=r"tuning='qlora' needs CUDA .* use tuning='lora' here"):
        build_language_model(toy_paths["llm"], tuning="qlora")


def test_qlora_needs_bitsandbytes(toy_paths: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(language_model.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"pip install 'mg_llava\[quantization\]'"):
        build_language_model(toy_paths["llm"], tuning="qlora", dtype="bfloat16", attention="sdpa")


def test_qlora_loads_in_four_bits(toy_paths: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU: what would be asked of transformers and PEFT."""
    import peft
    from transformers import LlamaForCausalLM

    asked = {}
    plain = LlamaForCausalLM.from_pretrained(toy_paths["llm"])

    def load(path: str, candidates: list[str], **kwargs: object) -> tuple[torch.nn.Module, str]:
        asked.update(kwargs)
        return plain, candidates[0]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")  # the logger asks for its number
    found = language_model.importlib.util.find_spec
    monkeypatch.setattr(
        language_model.importlib.util, "find_spec", lambda name: object() if name == "bitsandbytes" else found(name)
    )
    monkeypatch.setattr(language_model, "_load", load)
    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace(__version__="0.45.0"))
    monkeypatch.setattr("transformers.BitsAndBytesConfig", lambda **kwargs: kwargs)
    prepared = []
    monkeypatch.setattr(
        peft, "prepare_model_for_kbit_training", lambda model, **kwargs: prepared.append(kwargs) or model
    )
    monkeypatch.setattr(peft, "get_peft_model", lambda model, config: model)
    build_language_model(toy_paths["llm"], tuning="qlora", dtype="bfloat16")
    assert asked["quantization_config"]["bnb_4bit_quant_type"] == "nf4"
    assert asked["quantization_config"]["bnb_4bit_compute_dtype"] == torch.bfloat16
    assert prepared == [{"use_gradient_checkpointing": False}]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA for bitsandbytes' 4-bit kernels")
def test_qlora_trains_adapters_on_four_bits(toy_paths: dict[str, str]) -> None:
    pytest.importorskip("bitsandbytes")
    llm = build_language_model(toy_paths["llm"], tuning="qlora", dtype="bfloat16", gradient_checkpointing=False).cuda()
    weight = llm.base_model.model.model.layers[0].mlp.up_proj.base_layer.weight
    assert type(weight).__name__ == "Params4bit" and weight.dtype == torch.uint8
    ids = torch.tensor([[1, 5, 6, 7]], device="cuda")
    llm(input_ids=ids, labels=ids).loss.backward()
    trained = {name: p for name, p in llm.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name and p.grad is not None for name, p in trained.items())


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="vicuna does not exist; expected a Hugging Face folder of"):
        build_language_model(str(tmp_path / "vicuna"))


def test_folder_without_configuration(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no config.json; expected .*, found: generation_config.json"):
        build_language_model(str(folder))


def test_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=f"{folder} has no weights; expected model"):
        build_language_model(str(folder))


def test_folder_with_another_kind_of_model(toy_paths: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="clip does not hold a causal LM: Unrecognized configuration class"):
        build_language_model(toy_paths["clip"])


def test_truncated_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ValueError, match=f"the weights in {folder} cannot be read"):
        build_language_model(str(folder))


def test_incomplete_weights(folder: Path) -> None:
    """transformers would start with a random head."""
    state = load_file(folder / "model.safetensors")
    del state["lm_head.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights of LlamaForCausalLM are missing, e.g. lm_head.weight"):
        build_language_model(str(folder))


def test_tied_head_is_not_missing(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    del state["lm_head.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    llm = build_language_model(str(folder))
    assert llm.lm_head.weight is llm.model.embed_tokens.weight


def test_weights_of_other_sizes(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"intermediate_size": 96}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"the weights in {folder} have other shapes"):
        build_language_model(str(folder))


def test_unknown_dtype(toy_paths: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="unknown dtype 'half'"):
        build_language_model(toy_paths["llm"], dtype="half")
