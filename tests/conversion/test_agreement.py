"""A tuned LLM answers alike in training, from its checkpoint, as every conversion writes it, and in the next stage."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mg_llava.conversion import ConversionError, ConversionOptions, convert, open_checkpoint
from mg_llava.registry import MODELS
from tests import toy
from tests.conversion.conftest import assert_same, config_values, write_pth
from tests.conversion.test_adapters import LORA, build, config, logits


@pytest.mark.parametrize(("before", "after"), [("full", "lora"), ("lora", "lora"), ("lora", "full")])
def test_the_next_stage_starts_from_the_tuned_llm(
    toy_paths: dict[str, str], tmp_path: Path, before: str, after: str
) -> None:
    """As the error message advises where it is not read from the checkpoint; what then trains is complete again."""
    tuned = build(toy_paths) if before == "lora" else toy.build_model(toy_paths, "full").eval()
    if before == "full":
        nn.init.normal_(tuned.llm.lm_head.weight, std=0.3)
    file = write_pth(tmp_path / "iter_1.pth", tuned.state_dict(), config_values(toy_paths, before))
    if before == "lora":
        write_pth(file, tuned.state_dict(), config(toy_paths))
    wanted = {"target_modules": ["q_proj"]} if before == after else {}
    if before != after:
        with pytest.raises(ValueError, match=rf"convert_checkpoint.py {file} OUT --to parts; then set llm_name_or_"):
            toy.build_model(toy_paths, after, pretrained_pth=str(file))
    convert(file, tmp_path / "out", "parts")
    paths = {**toy_paths, "llm": str(tmp_path / "out" / "llm")}
    start = {"pretrained_pth": str(tmp_path / "out" / "vision_part.safetensors")}
    llm = toy.model_config(paths, after)["llm"] | ({"lora": {**LORA, **wanted}} if after == "lora" else {})
    following = MODELS.build(toy.model_config(paths, after, llm=llm, **start)).eval()
    torch.testing.assert_close(logits(following), logits(tuned), rtol=1e-4, atol=2e-4)
    for parameter in following.llm.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    values = config_values(paths, after, llm=llm)
    convert(write_pth(tmp_path / "iter_2.pth", following.state_dict(), values), tmp_path / "last", "parts")
    last = toy.build_model({**toy_paths, "llm": str(tmp_path / "last" / "llm")}).eval()
    last.load_pretrained(str(tmp_path / "last" / "vision_part.safetensors"), whole=True)
    torch.testing.assert_close(logits(last), logits(following), rtol=1e-4, atol=2e-4)


# -- embeddings and output head ---------------------------------------------------------------------------------------


@pytest.fixture()
def tied_paths(toy_paths: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """The toy folders with an LLM whose head is its word embeddings."""
    return {**toy_paths, "llm": str(toy.write_llm(tmp_path / "tied", tied=True))}


def check_agreement(model: Any, paths: dict[str, str], tmp_path: Path, **lora: Any) -> None:
    """Training, a loaded checkpoint, and what every conversion writes give the same logits."""
    expected = logits(model)
    assert (expected - logits(toy.build_model(paths).eval())).abs().max() > 0.1
    file = write_pth(tmp_path / "iter_1.pth", model.state_dict(), config(paths, **lora))
    convert(file, tmp_path / "apart.pth", "mmengine")
    for name in ("iter_1.pth", "apart.pth"):
        loaded = build(paths, **lora).eval()
        loaded.load_pretrained(str(tmp_path / name), whole=True)
        assert torch.equal(logits(loaded), expected), name
    convert(file, tmp_path / "merged.pth", "mmengine", ConversionOptions(merge=True))
    convert(file, tmp_path / "parts", "parts")
    convert(file, tmp_path / "hf", "hf")
    parts = {**paths, "llm": str(tmp_path / "parts" / "llm")}
    for name, model in (
        ("merged.pth", toy.build_model(paths, "full").eval()),
        ("parts/vision_part.safetensors", toy.build_model(parts).eval()),
    ):
        model.load_pretrained(str(tmp_path / name), whole=True)
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=2e-4, msg=name)
    written = {k: v.read() for k, v in open_checkpoint(tmp_path / "hf").tensors.items() if k.startswith("llm.")}
    llm = load_file(tmp_path / "parts" / "llm" / "model.safetensors")
    assert_same({name.removeprefix("llm."): tensor for name, tensor in written.items()}, llm)


@pytest.mark.parametrize("saved", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"], ["model.embed_tokens"]])
def test_one_matrix_stays_one(tied_paths: dict[str, str], tmp_path: Path, saved: list[str]) -> None:
    lora = {"target_modules": ["q_proj", "up_proj"], "modules_to_save": saved}
    model = build(tied_paths, **lora)
    head, embeddings = model.llm.get_output_embeddings(), model.llm.get_input_embeddings()
    assert head.weight is embeddings.weight and head.weight.requires_grad
    nn.init.normal_(head.weight, std=0.3)
    check_agreement(model, tied_paths, tmp_path, **lora)


@pytest.mark.parametrize(
    "lora",
    [
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["lm_head"]},
        {"target_modules": r".*\.(v_proj|lm_head)", "modules_to_save": ["norm"]},
    ],
)
def test_two_matrices_may_differ(toy_paths: dict[str, str], tmp_path: Path, lora: dict[str, Any]) -> None:
    check_agreement(build(toy_paths, **lora), toy_paths, tmp_path, **lora)


def test_matrices_that_were_trained_apart_are_not_made_one(
    toy_paths: dict[str, str], tied_paths: dict[str, str], tmp_path: Path
) -> None:
    lora = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]}
    model = build(toy_paths, **lora)
    nn.init.normal_(model.llm.get_output_embeddings().weight)
    file = write_pth(tmp_path / "iter_1.pth", model.state_dict(), config(tied_paths, **lora))
    with pytest.raises(ValueError, match=r"lm_head\S+ differ, but are one matrix here; build it with an LLM whose"):
        build(tied_paths, **lora).load_pretrained(str(file))
    with pytest.raises(ConversionError, match=r"lm_head.weight and model.embed_tokens.weight were trained apart"):
        convert(file, tmp_path / "parts", "parts")
    convert(file, tmp_path / "parts", "parts", ConversionOptions(llm=toy_paths["llm"]))
    parts = toy.build_model({**toy_paths, "llm": str(tmp_path / "parts" / "llm")}).eval()
    parts.load_pretrained(str(tmp_path / "parts" / "vision_part.safetensors"), whole=True)
    torch.testing.assert_close(logits(parts), logits(model), rtol=1e-4, atol=2e-4)
