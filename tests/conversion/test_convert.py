"""Conversions between files and folders: round trips, reports, and what must be refused."""

import enum
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import ConfigDict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mg_llava.conversion import TARGETS, ConversionError, ConversionOptions, convert, inspect, open_checkpoint
from mg_llava.conversion.convert import Target
from mg_llava.conversion.published import vote_llm, vote_shapes
from mg_llava.models.interfaces import Fusion, Seen
from mg_llava.models.weights.archive import CheckpointError
from mg_llava.models.weights.parts import load_parts
from mg_llava.models.weights.report import Expected, KeyReport, check_keys
from mg_llava.models.weights.stored import StoredTensor
from mg_llava.registry import MODELS
from tests import toy
from tests.conversion.conftest import State, assert_same, config_values, read, write_config, write_pth

STAGE_1 = ("fuse_module.", "projector.", "bbox_projector.")


def only(state: State, *prefixes: str) -> State:
    return {name: tensor for name, tensor in state.items() if name.startswith(prefixes)}


# -- detection and report ---------------------------------------------------------------------------------------------


def test_kind_and_report_of_an_own_checkpoint(stage_2: Path, state: State) -> None:
    checkpoint, report = inspect(stage_2)
    assert checkpoint.kind == "mmengine .pth" and checkpoint.meta["iter"] == 7
    assert {part: has["tensors"] for part, has in report.parts.items()} == {
        "llm": 21,
        "fuse_module": 12,
        "projector": 4,
        "bbox_projector": 4,
    }
    assert report.parts["llm"]["dtypes"] == {"bfloat16": 21} and not report.problems
    assert report.parts["llm"]["parameters"] == sum(t.numel() for t in only(state, "llm.").values())
    assert "fuse_module: 12 tensors" in str(report) and json.dumps(report.to_dict())


def test_published_checkpoint_with_keys_of_older_releases(published: Path, state: State) -> None:
    checkpoint, report = inspect(published)
    assert checkpoint.kind == "reference .pth" and not report.problems
    extra = {
        "llm.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "multi_level_linear.0.bias": torch.ones(2),
    }
    file = write_pth(published.parent / "older.pth", {**state, **extra})
    _, report = inspect(file)
    assert report.ignored == ["llm.model.layers.0.self_attn.rotary_emb.inv_freq"]
    assert report.unknown == ["multi_level_linear.0.bias"] and not report.problems


def test_stage_1(state: State, values: dict[str, Any], tmp_path: Path) -> None:
    file = write_pth(tmp_path / "iter_1.pth", only(state, *STAGE_1), values)
    _, report = inspect(file)
    assert set(report.parts) == {"fuse_module", "projector", "bbox_projector"} and not report.problems
    convert(file, tmp_path / "out.pth", "reference")
    assert_same(read(tmp_path / "out.pth"), only(state, *STAGE_1))


def test_work_directory_stands_for_its_newest(stage_2: Path, tmp_path: Path) -> None:
    (tmp_path / "last_checkpoint").write_text(str(stage_2))
    assert open_checkpoint(tmp_path).path == stage_2


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("projector.model.2.bias", "1 keys are missing: projector.model.2.bias"),
        ("fuse_module.gate.0.weight", "1 keys are missing: fuse_module.gate.0.weight"),
        ("llm.model.layers.1.mlp.up_proj.weight", "1 keys are missing: llm.model.layers.1.mlp.up_proj.weight"),
        ("llm.lm_head.weight", "1 keys are missing: llm.lm_head.weight"),
        ("llm.model.norm.weight", "1 keys are missing: llm.model.norm.weight"),
    ],
)
def test_one_key_is_missing(state: State, tmp_path: Path, key: str, message: str) -> None:
    file = write_pth(tmp_path / "iter_1.pth", {name: t for name, t in state.items() if name != key})
    _, report = inspect(file)
    assert report.problems == [message]
    with pytest.raises(ConversionError, match=f"iter_1.pth .* cannot be converted: {message}"):
        convert(file, tmp_path / "out.pth", "mmengine")
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.parametrize("part", ["fuse_module", "projector", "bbox_projector"])
def test_a_part_is_missing_or_renamed(state: State, tmp_path: Path, part: str) -> None:
    file = write_pth(tmp_path / "gone.pth", {n: t for n, t in state.items() if not n.startswith(f"{part}.")})
    with pytest.raises(ConversionError, match=f"the whole part {part} is absent"):
        convert(file, tmp_path / "out.pth", "mmengine")
    renamed = {n.replace(f"{part}.", f"old_{part}.") if n.startswith(f"{part}.") else n: t for n, t in state.items()}
    file = write_pth(tmp_path / "renamed.pth", renamed)
    with pytest.raises(ConversionError, match=f"{part} is absent.*keys that no part knows: old_{part}"):
        convert(file, tmp_path / "out.pth", "mmengine")


@pytest.mark.parametrize(
    "key",
    ["fuse_module.fast_conv.weight", "fuse_module.gate.0.weight", "projector.model.0.weight", "projector.model.2.bias",
     "bbox_projector.model.0.weight", "bbox_projector.model.2.weight", "llm.model.layers.0.mlp.up_proj.weight",
     "llm.model.embed_tokens.weight"],
)  # fmt: skip
def test_wrong_shape(state: State, values: dict[str, Any], tmp_path: Path, key: str) -> None:
    wrong = torch.zeros([size + 1 for size in state[key].shape])
    report = inspect(write_pth(tmp_path / "iter_1.pth", {**state, key: wrong}, values))[1]
    assert len(report.misshapen) == 1 and report.misshapen[0].startswith(f"{key} {tuple(wrong.shape)} here")


def check_published(tensors: dict[str, StoredTensor]) -> KeyReport:
    llm = vote_llm(tensors, 4096)
    return check_keys(tensors, Expected(vote_shapes(tensors) | llm, "after the others", open_parts=("llm",)))


def test_layout_of_the_published_vicuna_7b() -> None:
    """Its 311 keys at full size, without weights; and one wrong number among them."""
    table = json.loads((Path(__file__).parents[1] / "published" / "checkpoint_vicuna_7b.json").read_text())
    keys = {key.replace("{0..31}", str(n)): tuple(shape) for key, shape in table.items() for n in range(32)}
    tensors = {key: StoredTensor(shape, torch.float16, lambda: torch.empty(0)) for key, shape in keys.items()}
    report = check_published(tensors)
    assert len(tensors) == 311 and not report.problems and not report.unknown
    parameters = {part: has["parameters"] for part, has in report.parts.items()}
    assert parameters == {
        "llm": 6_738_415_616,
        "fuse_module": 6_085_121,
        "projector": 20_979_712,
        "bbox_projector": 28_581_888,
    }
    wrong = {**tensors, "bbox_projector.model.0.weight": StoredTensor((4096, 1536), torch.float16, torch.empty)}
    assert not check_published(wrong).problems  # last_only is a variant; only its config could tell
    wrong["projector.model.2.weight"] = StoredTensor((4096, 5120), torch.float16, torch.empty)
    assert check_published(wrong).misshapen == [
        "projector.model.2.weight (4096, 5120) here, (4096, 4096) after the others"
    ]


def test_llm_is_checked_against_its_configuration(
    state: State, values: dict[str, Any], tmp_path: Path, toy_paths: dict[str, str]
) -> None:
    """One layer less is a smaller LLM after its own keys, but not after the folder's configuration."""
    short = {name: tensor for name, tensor in state.items() if "layers.1." not in name}
    assert not inspect(write_pth(tmp_path / "short.pth", short))[1].problems
    with pytest.raises(ConversionError, match=r"9 keys are missing: llm.model.layers.1"):
        convert(tmp_path / "short.pth", tmp_path / "out.pth", "mmengine", ConversionOptions(llm=toy_paths["llm"]))


def test_variants_need_their_config(state: State, toy_paths: dict[str, str], tmp_path: Path) -> None:
    variant = only(state, "projector.", "bbox_projector.", "llm.")
    config = write_config(tmp_path / "config.py", config_values(toy_paths, fusion=None))
    file = write_pth(tmp_path / "iter_1.pth", variant)
    with pytest.raises(ConversionError, match=r"fuse_module is absent.*give --config"):
        convert(file, tmp_path / "out.pth", "mmengine")
    convert(file, tmp_path / "out.pth", "mmengine", ConversionOptions(config=config))
    assert_same(read(tmp_path / "out.pth"), variant)


@pytest.mark.parametrize(
    "changes",
    [
        {"fusion": {"type": "mg_llava.ConvGateFusion", "gate_per": "channel"}},
        {"fusion": {"type": "mg_llava.GatedConcatFusion"}},
        {"fusion": {"type": "mg_llava.ChannelConcatFusion"}},
        {"merger": {"type": "mg_llava.BoxesIntoPicture"}},
        {"frame_pooler": {"type": "mg_llava.FramePooling"}},
    ],
    ids=lambda changes: next(iter(changes.values()))["type"],
)
def test_variants_whose_encoders_are_not_here(
    toy_paths: dict[str, str], tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Only the config tells the parts, and nothing how wide they are; what is published is still compared."""
    trained = MODELS.build(toy.model_config(toy_paths, "full", **changes)).state_dict()
    config = config_values(toy_paths | {"clip": str(tmp_path / "gone" / "clip")}, **changes)
    _, report = inspect(write_pth(tmp_path / "iter_1.pth", trained, config))
    assert not report.problems
    lacking = {name: tensor for name, tensor in trained.items() if name != "projector.model.2.bias"}
    _, report = inspect(write_pth(tmp_path / "iter_2.pth", lacking, config))
    assert report.problems == ["1 keys are missing: projector.model.2.bias"]


def test_another_model(tmp_path: Path, toy_paths: dict[str, str]) -> None:
    torch.save({"state_dict": {"backbone.weight": torch.ones(2)}}, tmp_path / "resnet.pth")
    with pytest.raises(CheckpointError, match=r"no key of llm, fuse_module.*backbone.weight.*another model"):
        open_checkpoint(tmp_path / "resnet.pth")
    with pytest.raises(CheckpointError, match="is a model folder in Hugging Face format"):
        open_checkpoint(toy_paths["clip"])
    with pytest.raises(FileNotFoundError, match=r"nothing.pth does not exist"):
        open_checkpoint(tmp_path / "nothing.pth")


# -- round trips ------------------------------------------------------------------------------------------------------


def test_reference_and_back(stage_2: Path, state: State, tmp_path: Path) -> None:
    convert(stage_2, tmp_path / "a.pth", "reference")
    plain = torch.load(tmp_path / "a.pth", weights_only=True)
    assert set(plain) == {"state_dict"}
    assert_same(plain["state_dict"], state)
    convert(tmp_path / "a.pth", tmp_path / "b.pth", "mmengine")
    assert_same(read(tmp_path / "b.pth"), state)
    assert open_checkpoint(tmp_path / "a.pth").kind == "reference .pth"
    assert open_checkpoint(tmp_path / "b.pth").kind == "mmengine .pth"


def test_meta_data_of_the_run_is_kept(stage_2: Path, values: dict[str, Any], tmp_path: Path) -> None:
    convert(stage_2, tmp_path / "a.pth", "mmengine")
    meta = torch.load(tmp_path / "a.pth", weights_only=True)["meta"]
    assert meta["iter"] == 7 and meta["seed"] == 3 and "RoIAlignBoxProjector" in meta["cfg"]
    convert(tmp_path / "a.pth", tmp_path / "parts", "parts")  # the config still names the LLM


def test_loads_in_training(published: Path, state: State, toy_paths: dict[str, str], tmp_path: Path) -> None:
    convert(published, tmp_path / "a.pth", "mmengine", ConversionOptions(dtype="float32"))
    model = toy.build_model(toy_paths, "full")
    report = load_parts(model, read(tmp_path / "a.pth"), "a.pth")
    assert not (report.missing or report.unknown or report.misshapen)
    assert sum(has["tensors"] for has in report.parts.values()) == 41
    assert torch.equal(model.llm.lm_head.weight, state["llm.lm_head.weight"].half().float())


def test_parts_and_back(stage_2: Path, state: State, toy_paths: dict[str, str], tmp_path: Path) -> None:
    target = tmp_path / "parts"
    report = convert(stage_2, target, "parts", ConversionOptions(max_shard_size="20KB"))
    assert not report.problems
    shards = sorted(file.name for file in (target / "llm").glob("*.safetensors"))
    assert len(shards) > 2 and shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    manifest = json.loads((target / "manifest.json").read_text())
    assert manifest["source"]["kind"] == "mmengine .pth" and manifest["source"]["iter"] == 7
    assert {f"llm/{name}" for name in shards} | {"vision_part.safetensors", "llm/config.json"} <= set(
        manifest["files"]
    )
    assert all(len(entry["sha256"]) == 64 for entry in manifest["files"].values())
    # both halves are of use by themselves
    llm = AutoModelForCausalLM.from_pretrained(target / "llm", torch_dtype="auto")
    settings = json.loads((target / "llm" / "config.json").read_text())
    assert llm.dtype == torch.bfloat16 and settings["torch_dtype"] == "bfloat16" and "dtype" not in settings
    assert_same({f"llm.{name}": tensor for name, tensor in llm.state_dict().items()}, only(state, "llm."))
    assert AutoTokenizer.from_pretrained(target / "llm")("USER")["input_ids"]
    assert_same(load_file(target / "vision_part.safetensors"), only(state, *STAGE_1))
    model = toy.build_model({**toy_paths, "llm": str(target / "llm")})
    model.load_pretrained(str(target / "vision_part.safetensors"), whole=True)
    convert(target, tmp_path / "back.pth", "mmengine")
    assert_same(read(tmp_path / "back.pth"), state)


@pytest.mark.parametrize(("length", "has"), [(700, 700), (300, 512)])
def test_the_llm_has_the_positions_of_its_training(
    length: int, has: int, state: State, values: dict[str, Any], tmp_path: Path
) -> None:
    """Those of longer rows; shorter rows take none away."""
    loader = {"batch_size": 2, "dataset": {"budget": {"context_length": length}}}
    convert(write_pth(tmp_path / "iter_7.pth", state, {**values, "train_dataloader": loader}), tmp_path / "a", "parts")
    assert json.loads((tmp_path / "a" / "llm" / "config.json").read_text())["max_position_embeddings"] == has
    llm = AutoModelForCausalLM.from_pretrained(tmp_path / "a" / "llm")
    assert torch.isfinite(llm(torch.full((1, length), 5)).logits).all()


def test_positions_that_were_trained_pass_through_a_folder_of_the_whole_model(
    state: State, values: dict[str, Any], tmp_path: Path
) -> None:
    loader = {"batch_size": 2, "dataset": {"budget": {"context_length": 700}}}
    convert(write_pth(tmp_path / "iter_7.pth", state, {**values, "train_dataloader": loader}), tmp_path / "hf", "hf")
    convert(tmp_path / "hf", tmp_path / "parts", "parts")
    assert json.loads((tmp_path / "parts" / "llm" / "config.json").read_text())["max_position_embeddings"] == 700


def test_an_llm_with_scaled_positions_keeps_its_number(
    state: State, values: dict[str, Any], toy_paths: dict[str, str], tmp_path: Path
) -> None:
    folder = shutil.copytree(toy_paths["llm"], tmp_path / "llm")
    settings = json.loads((folder / "config.json").read_text())
    settings["rope_scaling"] = {"rope_type": "linear", "factor": 2.0}
    (folder / "config.json").write_text(json.dumps(settings))
    loader = {"batch_size": 2, "dataset": {"budget": {"context_length": 700}}}
    config = {**config_values({**toy_paths, "llm": str(folder)}), "train_dataloader": loader}
    convert(write_pth(tmp_path / "iter_7.pth", state, config), tmp_path / "parts", "parts")
    assert json.loads((tmp_path / "parts" / "llm" / "config.json").read_text())["max_position_embeddings"] == 512


def test_tied_weights_are_stored_once_and_come_back(
    toy_paths: dict[str, str], values: dict[str, Any], tmp_path: Path
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=300, tie_word_embeddings=True, **sizes)).save_pretrained(tmp_path / "llm")
    toy.write_tokenizer(tmp_path / "llm")
    paths = {**toy_paths, "llm": str(tmp_path / "llm")}
    state = toy.build_model(paths, "full").state_dict()
    assert "llm.lm_head.weight" in state
    file = write_pth(tmp_path / "iter_1.pth", state, config_values(paths))
    convert(file, tmp_path / "parts", "parts")
    assert "lm_head.weight" not in load_file(tmp_path / "parts" / "llm" / "model.safetensors")
    convert(tmp_path / "parts", tmp_path / "back.pth", "reference")
    back = torch.load(tmp_path / "back.pth", weights_only=True)["state_dict"]
    assert_same(back, state)
    assert back["llm.lm_head.weight"].data_ptr() == back["llm.model.embed_tokens.weight"].data_ptr()


def test_dtype(stage_2: Path, state: State, tmp_path: Path) -> None:
    convert(stage_2, tmp_path / "a.pth", "reference", ConversionOptions(dtype="float16"))
    assert_same(read(tmp_path / "a.pth"), {name: tensor.half() for name, tensor in state.items()})


def test_stage_1_with_the_llm_of_its_config(
    state: State, values: dict[str, Any], toy_paths: dict[str, str], tmp_path: Path
) -> None:
    file = write_pth(tmp_path / "iter_1.pth", only(state, *STAGE_1), config_values(toy_paths, "frozen"))
    convert(file, tmp_path / "parts", "parts")
    base = load_file(Path(toy_paths["llm"]) / "model.safetensors")
    assert_same(load_file(tmp_path / "parts" / "llm" / "model.safetensors"), base)


@pytest.mark.parametrize("to", ["hf", "parts"])
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_the_base_llm_is_no_tuned_one(
    state: State, toy_paths: dict[str, str], tmp_path: Path, tuning: str, to: Target
) -> None:
    """A checkpoint without its LLM, whose config says that the LLM was tuned."""
    file = write_pth(tmp_path / "iter_1.pth", only(state, *STAGE_1), config_values(toy_paths, tuning))
    with pytest.raises(ConversionError, match=rf"iter_1\.pth .*has no LLM, but .*tuning='{tuning}'.*--add.*--llm"):
        convert(file, tmp_path / "out", to)
    assert not (tmp_path / "out").exists()
    convert(file, tmp_path / "out", to, ConversionOptions(llm=toy_paths["llm"]))


@MODELS.register_module()
class BareConcat(Fusion):
    """A fusion without parameters: the channels of both encoders side by side."""

    def __init__(self, low_channels: int, high_channels: int) -> None:
        super().__init__()
        self.out_channels = low_channels + high_channels

    def forward(self, low: torch.Tensor, high: Seen) -> torch.Tensor:
        return torch.cat([low, high.maps[-1].flatten(2).transpose(1, 2)], dim=-1)


@pytest.mark.parametrize("to", TARGETS)
def test_a_part_without_parameters(toy_paths: dict[str, str], tmp_path: Path, to: Target) -> None:
    """It is in no checkpoint; the projector behind it is as wide as it says, and nothing else is taken."""
    changes = {"fusion": {"type": "mg_llava.BareConcat"}}
    model = MODELS.build(toy.model_config(toy_paths, "full", **changes))
    file = write_pth(tmp_path / "iter_1.pth", model.state_dict())
    options = ConversionOptions(
        config=write_config(tmp_path / "config.py", config_values(toy_paths, "full", **changes))
    )
    convert(file, tmp_path / "out", to, options)
    _, report = inspect(tmp_path / "out", options)
    assert not report.problems and "fuse_module" not in report.parts
    narrow = {**model.state_dict(), "projector.model.0.weight": torch.zeros(32, 16)}
    with pytest.raises(ConversionError, match=r"projector.model.0.weight \(32, 16\) here, \(32, 40\) in the model"):
        convert(write_pth(tmp_path / "b.pth", narrow), tmp_path / "b", to, options)


def test_without_any_word_on_the_llm(published: Path, state: State, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"does not say which LLM it belongs to; give .* --config"):
        convert(published, tmp_path / "parts", "parts")


# -- deepspeed --------------------------------------------------------------------------------------------------------


class Stage(enum.IntEnum):
    """DeepSpeed stores its stage as an object of its own."""

    optimizer_states = 1
    gradients = 2
    weights = 3


class StageByName:
    """A stage as Python 3.11.0 to 3.11.3 pickle it."""

    def __init__(self, stage: int) -> None:
        self.stage = stage

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (Stage, Stage(self.stage).name)


class StageByNumber(StageByName):
    """A stage as other versions pickle it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Stage, (self.stage,)


@pytest.mark.parametrize("stored", [int, StageByName, StageByNumber])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_folder(stage: int, stored: Any, state: State, values: dict[str, Any], tmp_path: Path) -> None:
    from mmengine.config import Config

    full = {name: tensor.float() for name, tensor in state.items()}
    meta = {"iter": 7, "cfg": Config(values).pretty_text}
    folder = write_zero(tmp_path / "iter_7.pth", full, stage, meta, kind=stored)
    assert open_checkpoint(folder).kind == f"DeepSpeed ZeRO-{stage} folder"
    convert(folder, tmp_path / "parts", "parts")
    convert(tmp_path / "parts", tmp_path / "back.pth", "mmengine")
    assert_same(read(tmp_path / "back.pth"), full)


def write_zero(folder: Path, state: State, stage: int, meta: dict[str, Any], world: int = 3, kind: Any = int) -> Path:
    """A folder as DeepSpeed lays it out."""
    folder.mkdir()

    def shard(vector: torch.Tensor, rank: int) -> torch.Tensor:
        padded = torch.cat([vector, torch.zeros(-len(vector) % world)])
        return padded.reshape(world, -1)[rank].clone()

    shapes = [{name: tensor.shape for name, tensor in state.items()}]
    common = {"module": {}, "buffer_names": [], "shared_params": {}, "param_shapes": shapes, "meta": meta}
    common |= {"frozen_param_shapes": None, "ds_config": ConfigDict(zero_optimization={"stage": stage})}
    for rank in range(world):
        if stage == 3:
            flat = torch.cat([shard(tensor.flatten(), rank) for tensor in state.values()])
            content = {"fp32_flat_groups": [flat[: len(flat) // 3].clone(), flat[len(flat) // 3 :].clone()]}
        else:
            content = {
                "single_partition_of_fp32_groups": [shard(torch.cat([t.flatten() for t in state.values()]), rank)]
            }
        content |= {"zero_stage": kind(stage), "partition_count": world}
        torch.save({"optimizer_state_dict": content}, folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        if stage == 3 or rank == 0:
            prefix = f"zero_pp_rank_{rank}_" if stage == 3 else ""
            torch.save(common, folder / f"{prefix}mp_rank_00_model_states.pt")
    return folder


def test_damaged_and_malicious_zero_shards(state: State, tmp_path: Path) -> None:
    full = {name: tensor.float() for name, tensor in state.items()}
    folder = write_zero(tmp_path / "a.pth", full, 3, {})
    shard = folder / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    content = torch.load(shard, weights_only=False)

    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "hacked"),)

    torch.save({**content, "ds_config": Attack()}, shard)
    convert(folder, tmp_path / "out.pth", "mmengine")
    assert not (tmp_path / "hacked").exists()
    assert_same(read(tmp_path / "out.pth"), full)
    shard.write_bytes(shard.read_bytes()[:-2000])
    with pytest.raises(CheckpointError, match=r"zero_pp_rank_1_mp_rank_00_optim_states.pt .* cannot be read"):
        convert(folder, tmp_path / "out.pth", "mmengine", ConversionOptions(overwrite=True))
    assert_same(read(tmp_path / "out.pth"), full)
    torch.save({"something": 1}, shard)
    with pytest.raises(CheckpointError, match="has no 'optimizer_state_dict', so DeepSpeed did not write it"):
        open_checkpoint(folder)


def test_shards_of_another_run(state: State, tmp_path: Path) -> None:
    full = {name: tensor.float() for name, tensor in state.items()}
    for stage in (2, 3):
        folder = write_zero(tmp_path / f"{stage}.pth", full, stage, {})
        other = write_zero(tmp_path / f"{stage}_small.pth", only(full, "projector."), stage, {})
        for file in other.glob("*optim*"):
            os.replace(file, folder / file.name)
        with pytest.raises(CheckpointError, match=r"values where \d+ are needed; they belong to another checkpoint"):
            open_checkpoint(folder)
