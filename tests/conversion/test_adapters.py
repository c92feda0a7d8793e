"""LoRA adapters: under all their names, merged as PEFT merges them, saved and loaded again."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from mg_llava.conversion import ConversionError, ConversionOptions, convert, inspect, open_checkpoint
from mg_llava.conversion.adapters import Adapter, merge_adapter
from mg_llava.data.collate import collate
from mg_llava.models.weights.stored import StoredTensor
from tests import toy
from tests.conversion.conftest import State, assert_same, config_values, read, write_pth

LORA = {"r": 4, "lora_alpha": 6}


def build(paths: dict[str, str], **lora: Any) -> Any:
    """A model with adapters that do something: PEFT starts with ``B`` at zero."""
    llm = toy.model_config(paths, "lora")["llm"] | {"lora": {**LORA, **lora}}
    model = toy.build_model(paths, llm=llm).eval()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.2)
    return model


def config(paths: dict[str, str], **lora: Any) -> dict[str, Any]:
    values = config_values(paths, "lora")
    values["model"]["llm"]["lora"] = {**LORA, **lora}
    return values


@pytest.fixture(scope="module")
def model(toy_paths: dict[str, str]) -> Any:
    return build(toy_paths)


@pytest.fixture(scope="module")
def checkpoint(model: Any, toy_paths: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a LoRA training of stage 2 saves."""
    return write_pth(tmp_path_factory.mktemp("lora") / "iter_7.pth", model.state_dict(), config(toy_paths))


def logits(model: Any) -> Tensor:
    batch = collate(toy.make_batch([(6, 1), (9, 2), (5, 0)]))["data"]
    with torch.no_grad():
        return model(batch, mode="tensor")["logits"]


def vision_of(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if not name.startswith("llm.")}


# -- save, merge, reload ----------------------------------------------------------------------------------------------


def test_merge_and_reload_gives_equal_logits(
    model: Any, checkpoint: Path, toy_paths: dict[str, str], tmp_path: Path
) -> None:
    expected = logits(model)
    assert (expected - logits(toy.build_model(toy_paths).eval())).abs().max() > 0.1  # the adapters count
    convert(checkpoint, tmp_path / "parts", "parts")
    merged = toy.build_model({**toy_paths, "llm": str(tmp_path / "parts" / "llm")}).eval()
    merged.load_pretrained(str(tmp_path / "parts" / "vision_part.safetensors"), whole=True)
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)
    convert(checkpoint, tmp_path / "merged.pth", "mmengine", ConversionOptions(merge=True))
    tuned = toy.build_model(toy_paths, "full").eval()
    tuned.load_pretrained(str(tmp_path / "merged.pth"), whole=True)
    assert torch.equal(logits(tuned), logits(merged))
    convert(checkpoint, tmp_path / "hf", "hf")
    assert open_checkpoint(tmp_path / "hf").adapter is None


def test_merge_is_pefts(model: Any, checkpoint: Path, toy_paths: dict[str, str], tmp_path: Path) -> None:
    convert(checkpoint, tmp_path / "parts", "parts")
    model.llm.save_pretrained(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(toy_paths["llm"])
    theirs = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).merge_and_unload().state_dict()
    ours = load_file(tmp_path / "parts" / "llm" / "model.safetensors")
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-6)


def test_qlora_is_merged_into_the_whole_llm_without_cuda(
    model: Any, checkpoint: Path, toy_paths: dict[str, str], tmp_path: Path
) -> None:
    settings = config(toy_paths)
    settings["model"]["llm"]["tuning"] = "qlora"
    convert(write_pth(tmp_path / "iter_1.pth", model.state_dict(), settings), tmp_path / "qlora", "parts")
    convert(checkpoint, tmp_path / "lora", "parts")
    assert_same(*(load_file(tmp_path / name / "llm" / "model.safetensors") for name in ("qlora", "lora")))


def test_adapters_stay_apart_in_pth_files(model: Any, checkpoint: Path, tmp_path: Path) -> None:
    found, report = inspect(checkpoint)
    assert found.adapter is not None and len(found.adapter.pairs) == 14 and not report.problems
    convert(checkpoint, tmp_path / "a.pth", "reference")
    assert_same(read(tmp_path / "a.pth"), model.state_dict())


@pytest.mark.parametrize("named", [True, False])
def test_names_with_and_without_default_load_in_training(
    model: Any, toy_paths: dict[str, str], tmp_path: Path, named: bool
) -> None:
    state = {name if named else name.replace(".default", ""): tensor for name, tensor in model.state_dict().items()}
    file = write_pth(tmp_path / "iter_1.pth", state, config(toy_paths))
    fresh = build(toy_paths)
    fresh.load_pretrained(str(file), whole=True)
    assert_same(fresh.state_dict(), model.state_dict())
    convert(file, tmp_path / "a.pth", "mmengine")
    assert_same(read(tmp_path / "a.pth"), model.state_dict())


def test_peft_folder_with_the_rest_from_stage_1(
    model: Any, checkpoint: Path, toy_paths: dict[str, str], tmp_path: Path
) -> None:
    model.llm.save_pretrained(tmp_path / "adapter")
    rest = write_pth(tmp_path / "stage1.pth", vision_of(model.state_dict()), config_values(toy_paths, "frozen"))
    found = open_checkpoint(tmp_path / "adapter")
    assert found.kind == "PEFT adapter folder" and found.adapter is not None
    assert found.adapter.scaling("model.layers.0.mlp.up_proj") == 1.5
    with pytest.raises(ConversionError, match="the whole part bbox_projector, fuse_module, projector is absent"):
        convert(tmp_path / "adapter", tmp_path / "parts", "parts", ConversionOptions(llm=toy_paths["llm"]))
    convert(tmp_path / "adapter", tmp_path / "parts", "parts", ConversionOptions(add=[rest], llm=toy_paths["llm"]))
    convert(checkpoint, tmp_path / "direct", "parts")
    for name in ("llm/model.safetensors", "vision_part.safetensors"):
        assert_same(load_file(tmp_path / "parts" / name), load_file(tmp_path / "direct" / name))
    with pytest.raises(ConversionError, match=r"stage1.pth .* has no part that .*iter_7.pth lacks"):
        convert(checkpoint, tmp_path / "more", "parts", ConversionOptions(add=[rest]))


def test_modules_saved_whole(toy_paths: dict[str, str], tmp_path: Path) -> None:
    extra = {"target_modules": ["q_proj", "up_proj"], "modules_to_save": ["lm_head"], "use_rslora": True}
    model = build(toy_paths, **extra)
    nn.init.normal_(model.llm.get_output_embeddings().modules_to_save["default"].weight)
    file = write_pth(tmp_path / "iter_1.pth", model.state_dict(), config(toy_paths, **extra))
    convert(file, tmp_path / "merged.pth", "mmengine", ConversionOptions(merge=True))
    tuned = toy.build_model(toy_paths, "full").eval()
    tuned.load_pretrained(str(tmp_path / "merged.pth"), whole=True)
    torch.testing.assert_close(logits(tuned), logits(model), rtol=1e-4, atol=1e-4)


# -- what must be refused ---------------------------------------------------------------------------------------------


def test_half_an_adapter(model: Any, toy_paths: dict[str, str], tmp_path: Path) -> None:
    key = "llm.base_model.model.model.layers.1.mlp.up_proj.lora_B.default.weight"
    state = {name: tensor for name, tensor in model.state_dict().items() if name != key}
    with pytest.raises(ConversionError, match=r"1 adapters lack one .* model.layers.1.mlp.up_proj has lora_A alone"):
        open_checkpoint(write_pth(tmp_path / "iter_1.pth", state, config(toy_paths)))
    del state[key.replace("lora_B", "lora_A")]
    file = write_pth(tmp_path / "iter_2.pth", state, config(toy_paths))
    with pytest.raises(ConversionError, match=r"2 keys are missing: .*layers.1.mlp.up_proj.lora_A"):
        convert(file, tmp_path / "parts", "parts")


def test_adapters_of_another_llm(checkpoint: Path, toy_paths: dict[str, str], tmp_path: Path) -> None:
    small = toy.write_llm(tmp_path / "small", layers=1)
    with pytest.raises(ConversionError, match=r"the LLM has no model.layers.1\S+ for its adapter; give the LLM"):
        convert(checkpoint, tmp_path / "parts", "parts", ConversionOptions(llm=small))


def test_settings_of_another_rank(model: Any, toy_paths: dict[str, str], tmp_path: Path) -> None:
    """Otherwise alpha would be a guess."""
    file = write_pth(tmp_path / "iter_1.pth", model.state_dict())
    with pytest.raises(ConversionError, match="has rank 4, but the settings say r=64"):
        convert(file, tmp_path / "parts", "parts", ConversionOptions(llm=toy_paths["llm"]))


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("lora_magnitude_vector.default.weight", "holds DoRA adapters"),
        ("base_layer.weight.quant_map", "holds an LLM in 4 bits"),
        ("lora_A.second.weight", r"has several adapters \(default, second\)"),
    ],
)
def test_other_kinds_of_adapters(
    model: Any, toy_paths: dict[str, str], tmp_path: Path, key: str, message: str
) -> None:
    name = f"llm.base_model.model.model.layers.0.mlp.up_proj.{key}"
    state = {**model.state_dict(), name: torch.zeros(4, 32)}
    with pytest.raises(ConversionError, match=message):
        open_checkpoint(write_pth(tmp_path / "iter_1.pth", state))


def test_damaged_peft_folders(model: Any, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3"}))
    with pytest.raises(ConversionError, match="holds IA3 adapters; only LoRA"):
        open_checkpoint(folder)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(ValueError, match=r"no adapter_model.safetensors or .bin"):
        open_checkpoint(folder)
    save_file({"base_model.model.x.lora_A.weight": torch.ones(1, 1)}, folder / "adapter_model.safetensors")
    with pytest.raises(ConversionError, match="x has lora_A alone"):
        open_checkpoint(folder)


# -- arithmetic -------------------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(
    rank=st.integers(1, 5),
    sizes=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    alpha=st.floats(0.5, 32),
    rslora=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_sum_is_w_plus_scaled_product(
    rank: int, sizes: tuple[int, int], alpha: float, rslora: bool, dtype: torch.dtype
) -> None:
    out, width = sizes
    a, b, base = torch.randn(rank, width), torch.randn(out, rank), torch.randn(out, width).to(dtype)
    pair = (StoredTensor.of(a), StoredTensor.of(b))
    adapter = Adapter({"m": pair}, frozenset(), {"r": rank, "lora_alpha": alpha, "use_rslora": rslora})
    merged = merge_adapter({"llm.m.weight": StoredTensor.of(base)}, adapter)["llm.m.weight"].read()
    scale = alpha / (math.sqrt(rank) if rslora else rank)
    torch.testing.assert_close(
        merged, (base.double() + scale * (b.double() @ a.double())).to(dtype), rtol=2e-2, atol=1e-3
    )
    assert merged.dtype == dtype


def test_ranks_by_module() -> None:
    llm = nn.ModuleDict({"model": nn.ModuleDict({"q_proj": nn.Linear(6, 6), "v_proj": nn.Linear(6, 6)})})
    options = {"r": 2, "lora_alpha": 4, "rank_pattern": {"v_proj": 3}, "alpha_pattern": {"model.v_proj": 9}}
    peft = get_peft_model(llm, LoraConfig(target_modules=["q_proj", "v_proj"], **options))
    pairs = {
        f"model.{name}": tuple(
            StoredTensor.of(getattr(peft.base_model.model["model"][name], matrix)["default"].weight)
            for matrix in ("lora_A", "lora_B")
        )
        for name in ("q_proj", "v_proj")
    }
    adapter = Adapter(pairs, frozenset(), options)
    for name in ("q_proj", "v_proj"):
        assert adapter.scaling(f"model.{name}") == peft.base_model.model["model"][name].scaling["default"]


def test_embeddings_and_transposed_layers_are_turned() -> None:
    a, b = StoredTensor.of(torch.randn(2, 7)), StoredTensor.of(torch.randn(5, 2))
    llm = {
        name: StoredTensor.of(torch.zeros(shape))
        for name, shape in (("llm.e.weight", (7, 5)), ("llm.l.weight", (5, 7)))
    }
    options = {"r": 2, "lora_alpha": 2}
    turned = merge_adapter(llm, Adapter({"e": (a, b), "l": (a, b)}, frozenset({"e"}), options))
    assert torch.equal(turned["llm.e.weight"].read(), turned["llm.l.weight"].read().t())
    peft = get_peft_model(nn.ModuleDict({"e": nn.Embedding(7, 5)}), LoraConfig(target_modules=["e"], **options))
    layer = peft.base_model.model["e"]
    layer.lora_embedding_A["default"].data, layer.lora_embedding_B["default"].data = a.read(), b.read()
    torch.testing.assert_close(turned["llm.e.weight"].read(), layer.get_delta_weight("default"))
    with pytest.raises(ConversionError, match=r"is for weights of \(5, 7\), the LLM has \(7, 5\)"):
        merge_adapter(llm, Adapter({"e": (a, b)}, frozenset(), options))
