"""The Hugging Face folder of the whole model, written from checkpoints and read back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.registry import DefaultScope
from safetensors.torch import load_file, save_file

from mg_llava.conversion import ConversionError, ConversionOptions, convert, inspect, open_checkpoint
from mg_llava.data.collate import collate
from mg_llava.models.weights.archive import CheckpointError
from tests import toy
from tests.conversion.conftest import State, assert_same, config_values, read, write_config, write_pth


@pytest.fixture(scope="module")
def folder(stage_2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder in several shards."""
    target = tmp_path_factory.mktemp("hf") / "model"
    convert(stage_2, target, "hf", ConversionOptions(max_shard_size="40KB"))
    return target


def load(folder: Path) -> Any:
    import mg_llava.hf

    return mg_llava.hf.MGLLaVAForConditionalGeneration.from_pretrained(folder, torch_dtype=torch.float32).eval()


def test_round_trip_bit_for_bit(folder: Path, state: State, tmp_path: Path) -> None:
    """mmengine to Hugging Face to the reference's layout to mmengine."""
    convert(folder, tmp_path / "reference.pth", "reference")
    convert(tmp_path / "reference.pth", tmp_path / "iter.pth", "mmengine")
    assert_same(read(tmp_path / "iter.pth"), state)


def test_loads_and_answers_as_before(folder: Path, state: State, toy_paths: dict[str, str]) -> None:
    model = toy.build_model(toy_paths, "full")
    with torch.no_grad():
        for name, tensor in state.items():
            model.get_parameter(name).copy_(tensor)
    batch = collate(toy.make_batch([(6, 1), (9, 2), (5, 0)]))["data"]
    before = model.generate(batch, max_new_tokens=6)
    after = load(folder).model.generate(batch, max_new_tokens=6)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_what_is_in_the_folder(folder: Path) -> None:
    names = {file.name for file in folder.iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "README.md", "manifest.json"} <= names
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {name for name in names if name.endswith(".safetensors")}
    assert len(set(index["weight_map"].values())) > 2
    checkpoint, report = inspect(folder, ConversionOptions(verify=True))
    assert checkpoint.kind == "Hugging Face folder" and not report.problems
    assert any(name.startswith("visual_encoder_aux.") for name in checkpoint.encoders)
    assert {"llm", "projector", "visual_encoder", "visual_encoder_aux"} <= report.parts.keys()
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_loads_where_a_runner_has_set_mmengines_scope(folder: Path) -> None:
    with DefaultScope.overwrite_default_scope("mmengine"):
        scoped = load(folder).state_dict()
    assert_same(scoped, load(folder).state_dict())


def test_folder_to_folder(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "half", "hf", ConversionOptions(dtype="float16"))
    state = load_file(tmp_path / "half" / "model.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == "float16"
    load(tmp_path / "half")
    convert(tmp_path / "half", tmp_path / "parts", "parts")
    llm = json.loads((tmp_path / "parts" / "llm" / "config.json").read_text())
    assert llm["model_type"] == "llama" and llm["torch_dtype"] == "float16"


def test_standalone(stage_2: Path, folder: Path, values: dict[str, Any], tmp_path: Path) -> None:
    convert(stage_2, tmp_path / "alone", "hf", ConversionOptions(standalone=True))
    config = json.loads((tmp_path / "alone" / "config.json").read_text())
    for target in config["auto_map"].values():
        assert (tmp_path / "alone" / f"{target.split('.')[0]}.py").is_file()
    with pytest.raises(ConversionError, match=r"does not say what the model is made of; give .* --config"):
        convert(folder, tmp_path / "again", "hf", ConversionOptions(standalone=True))
    config_file = write_config(tmp_path / "config.py", values)
    convert(folder, tmp_path / "again", "hf", ConversionOptions(standalone=True, config=config_file))
    assert_same(
        load_file(tmp_path / "again" / "model.safetensors"), load_file(tmp_path / "alone" / "model.safetensors")
    )


def test_published_weights_with_a_config(published: Path, values: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"does not say which LLM .* --config"):
        convert(published, tmp_path / "hf", "hf")
    config = write_config(tmp_path / "config.py", values)
    convert(published, tmp_path / "hf", "hf", ConversionOptions(config=config))
    load(tmp_path / "hf")


def test_variant_without_high_resolution(state: State, toy_paths: dict[str, str], tmp_path: Path) -> None:
    values = config_values(toy_paths, fusion=None, box_projector=None, high_res_encoder=None)
    variant = {name: tensor for name, tensor in state.items() if name.startswith(("llm.", "projector."))}
    file = write_pth(tmp_path / "iter_1.pth", variant, values)
    convert(file, tmp_path / "hf", "hf")
    assert load(tmp_path / "hf").model.visual_encoder_aux is None


def test_checkpoint_of_other_encoders(state: State, values: dict[str, Any], tmp_path: Path) -> None:
    """Complete in itself, but not what the config describes."""
    wide = dict(state)
    for name in ("fast_conv.weight", "fast_conv.bias"):
        wide[f"fuse_module.{name}"] = torch.cat([state[f"fuse_module.{name}"]] * 2)
    with pytest.raises(ConversionError, match=r"shapes do not fit: fuse_module.fast_conv"):
        convert(write_pth(tmp_path / "a.pth", wide, values), tmp_path / "hf", "hf")
    stages = {**state, "bbox_projector.model.0.weight": torch.zeros(32, 61)}
    with pytest.raises(
        ConversionError, match=r"bbox_projector.model.0.weight \(32, 61\) here, \(32, 60\) in the model"
    ):
        convert(write_pth(tmp_path / "b.pth", stages, values), tmp_path / "b_out.pth", "reference")
    gate = dict(state)
    for name, shape in {"0.weight": (9, 32), "0.bias": (9,), "2.weight": (1, 9)}.items():
        gate[f"fuse_module.gate.{name}"] = torch.zeros(shape)
    with pytest.raises(ConversionError, match=r"fuse_module.gate.0.weight \(9, 32\) here, \(8, 32\) in the model"):
        convert(write_pth(tmp_path / "c.pth", gate, values), tmp_path / "hf", "hf")
    assert {file.name for file in tmp_path.iterdir()} == {"a.pth", "b.pth", "c.pth"}


@pytest.mark.parametrize("damage", ["absent", "cut", "swapped"])
def test_half_a_folder(folder: Path, tmp_path: Path, damage: str) -> None:
    import shutil

    broken = shutil.copytree(folder, tmp_path / "broken")
    shard = sorted(broken.glob("*.safetensors"))[1]
    if damage == "absent":
        shard.unlink()
    elif damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-100])
    else:
        save_file({"model.projector.model.0.bias": torch.ones(32)}, shard)
    with pytest.raises((ConversionError, CheckpointError), match=shard.name):
        open_checkpoint(broken)
    (broken / "manifest.json").unlink()  # also where nothing but the index tells
    with pytest.raises(CheckpointError, match=shard.name):
        open_checkpoint(broken)


def test_flipped_bit_is_found_by_verify(folder: Path, tmp_path: Path) -> None:
    import shutil

    broken = shutil.copytree(folder, tmp_path / "broken")
    shard = sorted(broken.glob("*.safetensors"))[0]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    open_checkpoint(broken)
    with pytest.raises(ConversionError, match=f"{shard.name} differs from what manifest.json says"):
        convert(broken, tmp_path / "a.pth", "reference", ConversionOptions(verify=True))


# -- xtuner convert pth_to_hf -----------------------------------------------------------------------------------------


def pth_to_hf(config: Path, checkpoint: Path, target: Path, *arguments: str) -> None:
    from unittest import mock

    from xtuner.tools.model_converters import pth_to_hf as tool

    with mock.patch("sys.argv", ["pth_to_hf", str(config), str(checkpoint), str(target), *arguments]):
        tool.main()


def test_xtuners_converter_gives_the_complete_model(
    stage_2: Path, state: State, toy_paths: dict[str, str], tmp_path: Path
) -> None:
    """Also where the checkpoint that stage 2 started from is gone."""
    values = config_values(toy_paths, pretrained_pth=str(tmp_path / "gone.pth"))
    values["model"]["type"] = "mg_llava.models.MGLLaVA"  # XTuner's registry does not know ours
    config = write_config(tmp_path / "config.py", values)
    pth_to_hf(config, stage_2, tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "back.pth", "mmengine")
    assert_same(read(tmp_path / "back.pth"), {name: tensor.half() for name, tensor in state.items()})
    load(tmp_path / "hf")
    pth_to_hf(config, stage_2, tmp_path / "parts", "--save-format", "official", "--fp32", "--max-shard-size", "40KB")
    assert len(list((tmp_path / "parts" / "llm").glob("*.safetensors"))) > 1
    convert(tmp_path / "parts", tmp_path / "back32.pth", "mmengine")
    assert_same(read(tmp_path / "back32.pth"), {name: tensor.float() for name, tensor in state.items()})


def test_xtuners_converter_merges_adapters_and_takes_frozen_llms(
    state: State, toy_paths: dict[str, str], tmp_path: Path
) -> None:
    base = load_file(Path(toy_paths["llm"]) / "model.safetensors")
    for tuning in ("frozen", "lora"):
        values = config_values(toy_paths, tuning)
        values["model"]["type"] = "mg_llava.models.MGLLaVA"
        file = write_pth(tmp_path / f"{tuning}.pth", toy.build_model(toy_paths, tuning).state_dict(), values)
        pth_to_hf(write_config(tmp_path / f"{tuning}.py", values), file, tmp_path / tuning, "--fp32")
        found = load_file(tmp_path / tuning / "model.safetensors")
        assert_same({name: found[f"model.llm.{name}"] for name in base}, base)  # adapters begin at zero


def test_xtuners_converter_takes_encoders_that_were_trained(toy_paths: dict[str, str], tmp_path: Path) -> None:
    trains = ["low_res_encoder", "fusion", "projector", "box_projector"]
    model = toy.build_model(toy_paths, trains=trains)
    for parameter in model.visual_encoder.parameters():
        torch.nn.init.normal_(parameter)
    values = config_values(toy_paths, "frozen", trains=trains)
    values["model"]["type"] = "mg_llava.models.MGLLaVA"
    trained = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("visual_encoder.")}
    file = write_pth(tmp_path / "iter_1.pth", model.state_dict(), values)
    pth_to_hf(write_config(tmp_path / "config.py", values), file, tmp_path / "hf", "--fp32")
    found = load_file(tmp_path / "hf" / "model.safetensors")
    assert trained
    assert_same({name: found[f"model.{name}"] for name in trained}, trained)


@pytest.mark.parametrize("name", ["my-model-1.5", "v0.1", ".hidden"])
def test_a_standalone_folder_with_a_dot_in_its_name_is_refused_before_anything_is_read(name, tmp_path):
    with pytest.raises(ConversionError, match=rf"dot in its name; write to '{name.replace('.', '_')}'"):
        convert(tmp_path / "absent.pth", tmp_path / name, "hf", ConversionOptions(standalone=True))
    assert not (tmp_path / name).exists()
