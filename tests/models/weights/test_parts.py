"""Checkpoints: what each stage saves, under which names, and that loading accounts for every key."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.logging import MMLogger
from safetensors.torch import save_file
from torch import Tensor, nn

from mg_llava.models.llm import build_language_model
from mg_llava.models.weights.parts import load_parts, saved_state_dict, trained_keys
from mg_llava.models.weights.report import KeyReport
from mg_llava.registry import MODELS
from tests import toy

FUSION = {
    f"fuse_module.{name}.{kind}"
    for name in ("slow_conv", "slow_proj", "fast_conv", "fast_proj", "gate.0", "gate.2")
    for kind in ("weight", "bias")
}
PROJECTOR = {f"projector.model.{index}.{kind}" for index in (0, 2) for kind in ("weight", "bias")}
BOX_PROJECTOR = {f"bbox_{key}" for key in PROJECTOR}
STAGE_1 = FUSION | PROJECTOR | BOX_PROJECTOR
LAYER = {
    *(f"self_attn.{name}_proj.weight" for name in "qkvo"),
    *(f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
}
LLM = {f"llm.model.layers.{index}.{name}" for index in range(2) for name in LAYER} | {
    "llm.model.embed_tokens.weight",
    "llm.model.norm.weight",
    "llm.lm_head.weight",
}


@pytest.fixture(scope="module")
def stage_1(toy_paths: dict[str, str]) -> nn.Module:
    return toy.build_model(toy_paths)


@pytest.fixture(scope="module")
def stage_1_state(stage_1: nn.Module) -> dict[str, Tensor]:
    """What stage 1 saves, with other values than any model here has."""
    generator = torch.Generator().manual_seed(11)
    return {key: torch.randn(value.shape, generator=generator) for key, value in stage_1.state_dict().items()}


@pytest.fixture(scope="module")
def stage_2_state(toy_paths: dict[str, str]) -> dict[str, Tensor]:
    state = toy.build_model(toy_paths, "full").state_dict()
    generator = torch.Generator().manual_seed(12)
    return {key: torch.randn(value.shape, generator=generator) for key, value in state.items()}


@pytest.fixture()
def model(toy_paths: dict[str, str]) -> nn.Module:
    """A fresh model of stage 1."""
    return toy.build_model(toy_paths)


def all_tensors(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in nn.Module.state_dict(model).items()}


def assert_refused(model: nn.Module, state: dict[str, Tensor], message: str, **kwargs: object) -> None:
    before = all_tensors(model)
    with pytest.raises(ValueError, match=message) as error:
        load_parts(model, state, "work_dirs/iter_7.pth", **kwargs)
    assert str(error.value).startswith("work_dirs/iter_7.pth does not fit this model")
    after = nn.Module.state_dict(model)
    assert all(torch.equal(value, after[key]) for key, value in before.items())


# -- saving ---------------------------------------------------------------------------------------------------------


def test_stage_1_saves_fusion_and_projectors(stage_1: nn.Module) -> None:
    assert set(stage_1.state_dict()) == STAGE_1 and len(FUSION) == 12
    assert trained_keys(stage_1) == STAGE_1


def test_stage_2_saves_the_llm_too(stage_2_state: dict[str, Tensor]) -> None:
    assert set(stage_2_state) == STAGE_1 | LLM


def test_lora_saves_adapters_alone(toy_paths: dict[str, str]) -> None:
    model = toy.build_model(toy_paths, "lora")
    keys = set(model.state_dict())
    adapters = {key for key in keys if key.startswith("llm.")}
    assert keys - adapters == STAGE_1
    assert len(adapters) == 2 * 2 * 7 and all(".lora_A." in key or ".lora_B." in key for key in adapters)
    assert keys == trained_keys(model)


def test_frozen_embeddings_are_saved_with_a_tuned_llm(toy_paths: dict[str, str]) -> None:
    config = toy.model_config(toy_paths, "full")
    model = toy.build_model(toy_paths, "full", llm=config["llm"] | {"freeze_embeddings": True})
    assert set(model.state_dict()) == STAGE_1 | LLM
    assert trained_keys(model) == STAGE_1 | LLM - {"llm.model.embed_tokens.weight"}


def test_variants_save_what_they_have(toy_paths: dict[str, str]) -> None:
    low = toy.build_model(toy_paths, high_res_encoder=None, fusion=None, box_projector=None)
    assert set(low.state_dict()) == PROJECTOR
    assert set(toy.build_model(toy_paths, fusion=None).state_dict()) == PROJECTOR | BOX_PROJECTOR
    assert set(toy.build_model(toy_paths, box_projector=None).state_dict()) == PROJECTOR | FUSION


def test_saved_tensors_are_the_models_own(stage_1: nn.Module) -> None:
    state = stage_1.state_dict()
    for name, parameter in stage_1.named_parameters():
        if parameter.requires_grad:
            assert state[name].data_ptr() == parameter.data_ptr()


def test_a_prefix_or_destination_works_as_in_torch(stage_1: nn.Module) -> None:
    holder = nn.ModuleDict({"inner": stage_1})
    assert {"inner.projector.model.0.weight", "inner.fuse_module.gate.0.bias"} <= set(holder.state_dict())
    destination: dict[str, Tensor] = {}
    assert set(stage_1.state_dict(destination=destination)) == set(destination) == STAGE_1


def test_full_size_keys_are_the_references() -> None:
    """Vicuna-7B's size on the meta device: 311 tensors."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from mg_llava.models.fusion.conv_gate import ConvGateFusion
    from mg_llava.models.objects.roi_align import RoIAlignBoxProjector
    from mg_llava.models.projectors import MLPProjector

    model = nn.Module()
    with torch.device("meta"):
        model.llm = LlamaForCausalLM(LlamaConfig(vocab_size=32000))
        model.fuse_module = ConvGateFusion(1024, 1536)
        model.projector = MLPProjector(1024, 4096)
        model.bbox_projector = RoIAlignBoxProjector((192, 384, 768, 1536), 4096)
    state = saved_state_dict(model, model.state_dict())
    assert len(state) == 311 and sum(key.startswith("llm.") for key in state) == 291
    assert state["projector.model.0.weight"].shape == (4096, 1024)
    counts = {part: sum(p.numel() for p in getattr(model, part).parameters()) for part in ("llm", "projector")}
    assert counts == {"llm": 6_738_415_616, "projector": 20_979_712}
    model.llm.requires_grad_(False)
    assert set(saved_state_dict(model, model.state_dict())) == STAGE_1


# -- loading --------------------------------------------------------------------------------------------------------


def test_load_and_report(model: nn.Module, stage_1_state: dict[str, Tensor]) -> None:
    report = load_parts(model, stage_1_state, "iter_7.pth")
    loaded = {part: has["tensors"] for part, has in report.parts.items()}
    assert loaded == {"fuse_module": 12, "projector": 4, "bbox_projector": 4}
    assert not (report.missing or report.unknown or report.misshapen or report.ignored)
    state = model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in stage_1_state.items())


def test_stage_2_into_the_same_kind(toy_paths: dict[str, str], stage_2_state: dict[str, Tensor]) -> None:
    model = toy.build_model(toy_paths, "full")
    report = load_parts(model, stage_2_state, "iter_7.pth")
    assert report.parts["llm"]["tensors"] == len(LLM)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in stage_2_state.items())


def test_stage_2_into_a_frozen_model_to_evaluate(model: nn.Module, stage_2_state: dict[str, Tensor]) -> None:
    load_parts(model, stage_2_state, "iter_7.pth")
    assert torch.equal(model.llm.lm_head.weight, stage_2_state["llm.lm_head.weight"])


def test_lora_round_trip(toy_paths: dict[str, str]) -> None:
    model = toy.build_model(toy_paths, "lora")
    state = {key: torch.randn_like(value) for key, value in model.state_dict().items()}
    load_parts(model, state, "iter_7.pth")
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())


def test_report_is_logged(
    model: nn.Module, stage_1_state: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    try:
        load_parts(model, stage_1_state, "iter_7.pth")
        load_parts(model, stage_1_state | {"multi_level_linear.0.weight": torch.ones(2)}, "iter_8.pth")
    finally:
        logger.removeHandler(caplog.handler)
    first, second = (record for record in caplog.records if record.getMessage().startswith("checkpoint"))
    assert first.levelno == logging.INFO and "fuse_module: 12 tensors, 2,345 parameters" in first.getMessage()
    assert second.levelno == logging.WARNING and "1 unknown: multi_level_linear.0.weight" in second.getMessage()


def test_report_shortens_long_lists() -> None:
    text = str(KeyReport(unknown=[f"key_{index}" for index in range(6)]))
    assert text == "6 unknown: key_0, key_1, key_2, key_3, ..."


@pytest.mark.parametrize("part", ["fuse_module", "projector", "bbox_projector"])
def test_a_whole_part_is_missing(model: nn.Module, stage_1_state: dict[str, Tensor], part: str) -> None:
    state = {key: value for key, value in stage_1_state.items() if not key.startswith(f"{part}.")}
    assert_refused(model, state, rf"the whole part {part} is absent \(it has: ")


def test_the_llm_is_missing(toy_paths: dict[str, str], stage_1_state: dict[str, Tensor]) -> None:
    model = toy.build_model(toy_paths, "full")
    assert_refused(model, stage_1_state, "the whole part llm is absent")


@pytest.mark.parametrize("key", sorted(STAGE_1 - PROJECTOR)[::3])
def test_one_missing_key(model: nn.Module, stage_1_state: dict[str, Tensor], key: str) -> None:
    state = {name: value for name, value in stage_1_state.items() if name != key}
    assert_refused(model, state, f"1 keys are missing: {key}")


@pytest.mark.parametrize("tuning", ["frozen", "full"])
def test_one_missing_key_of_the_llm(toy_paths: dict[str, str], stage_2_state: dict[str, Tensor], tuning: str) -> None:
    """Also where the LLM need not be there: half an LLM is never wanted."""
    key = "llm.model.layers.1.mlp.up_proj.weight"
    state = {name: value for name, value in stage_2_state.items() if name != key}
    assert_refused(toy.build_model(toy_paths, tuning), state, f"1 keys are missing: {key}", require=["projector"])


def test_renamed_keys(model: nn.Module, stage_1_state: dict[str, Tensor]) -> None:
    state = {key.replace("fuse_module.", "fusion."): value for key, value in stage_1_state.items()}
    assert_refused(model, state, r"whole part fuse_module is absent .*keys that no part knows: fusion\.")
    state = {key.replace("slow_conv", "conv_slow"): value for key, value in stage_1_state.items()}
    message = r"2 keys are missing: fuse_module.slow_conv.*no part knows: fuse_module.conv_slow"
    assert_refused(model, state, message)


def test_wrong_shape(model: nn.Module, stage_1_state: dict[str, Tensor]) -> None:
    state = stage_1_state | {"projector.model.0.weight": torch.zeros(32, 17)}
    message = r"1 shapes do not fit: projector.model.0.weight \(32, 17\) here, \(32, 16\) in the model"
    assert_refused(model, state, message)


def test_several_problems_in_one_message(model: nn.Module, stage_1_state: dict[str, Tensor]) -> None:
    state = {key: value for key, value in stage_1_state.items() if not key.startswith("bbox_projector.")}
    del state["fuse_module.gate.2.bias"]
    state["projector.model.0.bias"] = torch.zeros(5)
    message = "bbox_projector is absent.*1 keys are missing: fuse_module.gate.2.bias; 1 shapes do not fit"
    assert_refused(model, state, message)


def test_nothing_fits(model: nn.Module) -> None:
    assert_refused(model, {"weight": torch.ones(1)}, "none of its keys belongs to this model", require=[])


def test_adapters_need_a_model_with_adapters(toy_paths: dict[str, str], stage_2_state: dict[str, Tensor]) -> None:
    """Otherwise the trained LLM would be left out in silence, in either direction."""
    lora = toy.build_model(toy_paths, "lora")
    advice = r".*convert_checkpoint.py work_dirs/iter_7.pth OUT --to parts; then set llm_name_or_path='OUT/llm' and"
    for tuning in ("frozen", "full"):
        message = "tuned with LoRA adapters, and this one is built without adapters" + advice
        assert_refused(toy.build_model(toy_paths, tuning), lora.state_dict(), message)
    for require in (["projector"], None):
        message = "tuned as a whole, and this one is built with LoRA adapters" + advice
        assert_refused(lora, stage_2_state, message, require=require)


def test_rotary_buffers_are_ignored(toy_paths: dict[str, str], stage_2_state: dict[str, Tensor]) -> None:
    extra = {f"llm.model.layers.{index}.self_attn.rotary_emb.inv_freq": torch.ones(4) for index in range(2)}
    report = load_parts(toy.build_model(toy_paths, "full"), stage_2_state | extra, "iter_7.pth")
    assert len(report.ignored) == 2 and not report.unknown


def test_prefix_of_a_wrapped_model(model: nn.Module, stage_1_state: dict[str, Tensor]) -> None:
    load_parts(model, {f"module.{key}": value for key, value in stage_1_state.items()}, "iter_7.pth")
    assert all(torch.equal(model.state_dict()[key], value) for key, value in stage_1_state.items())


def test_other_dtypes_are_converted(model: nn.Module, stage_1_state: dict[str, Tensor]) -> None:
    load_parts(model, {key: value.bfloat16() for key, value in stage_1_state.items()}, "iter_7.pth")
    weight = model.projector.model[0].weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, stage_1_state["projector.model.0.weight"].bfloat16().float())


def test_encoder_keys_are_not_loaded(model: nn.Module, stage_1_state: dict[str, Tensor]) -> None:
    key = "visual_encoder_aux.vision_stem.0.bias"
    before = model.get_parameter(key).clone()
    report = load_parts(model, stage_1_state | {key: torch.full_like(before, 9.0)}, "iter_7.pth")
    assert report.unknown == [key] and torch.equal(model.get_parameter(key), before)


def test_tied_embeddings(toy_paths: dict[str, str], tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(4)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=300, tie_word_embeddings=True, **sizes)).save_pretrained(tmp_path)
    llm = {"type": build_language_model, "path": str(tmp_path), "tuning": "full", "dtype": "float32"}
    model = toy.build_model(toy_paths, llm=llm)
    assert model.llm.lm_head.weight is model.llm.model.embed_tokens.weight
    state = {key: value.clone() + 1 for key, value in model.state_dict().items()}
    for absent in ((), ("llm.lm_head.weight",)):
        load_parts(model, {key: value for key, value in state.items() if key not in absent}, "iter_7.pth")
        assert torch.equal(model.llm.lm_head.weight, state["llm.model.embed_tokens.weight"])
        assert model.llm.lm_head.weight is model.llm.model.embed_tokens.weight


# -- files ----------------------------------------------------------------------------------------------------------


def write_pth(path: Path, state: dict[str, Tensor]) -> str:
    torch.save({"state_dict": state, "meta": {"iter": 7}, "message_hub": {}}, path)
    return str(path)


def write_safetensors(path: Path, state: dict[str, Tensor]) -> str:
    save_file(state, path.with_suffix(".safetensors"))
    return str(path.with_suffix(".safetensors"))


@pytest.mark.parametrize("write", [write_pth, write_safetensors])
def test_stage_2_starts_from_stage_1(
    toy_paths: dict[str, str], stage_1_state: dict[str, Tensor], tmp_path: Path, write: Callable[..., str]
) -> None:
    path = write(tmp_path / "iter_7.pth", stage_1_state)
    plain = toy.build_model(toy_paths, "full")
    model = MODELS.build(toy.model_config(toy_paths, "full", pretrained_pth=path))
    state = model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in stage_1_state.items())
    assert all(torch.equal(state[key], plain.state_dict()[key]) for key in LLM)


def test_to_evaluate_everything_that_was_trained_must_be_there(
    toy_paths: dict[str, str], stage_1_state: dict[str, Tensor], tmp_path: Path
) -> None:
    path = write_pth(tmp_path / "iter_7.pth", stage_1_state)
    model = toy.build_model(toy_paths, "full")
    model.load_pretrained(path)
    with pytest.raises(ValueError, match=r"iter_7.pth does not fit this model: the whole part llm is absent"):
        model.load_pretrained(path, whole=True)


def test_a_variant_takes_what_it_has(
    toy_paths: dict[str, str], stage_1_state: dict[str, Tensor], tmp_path: Path
) -> None:
    model = toy.build_model(toy_paths, fusion=None)
    model.load_pretrained(write_pth(tmp_path / "iter_7.pth", stage_1_state))
    assert torch.equal(model.projector.model[0].bias, stage_1_state["projector.model.0.bias"])


def test_parts_that_start_anew_are_named(
    toy_paths: dict[str, str], stage_1_state: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A connector that a later stage adds keeps its first weights; all others come from the checkpoint."""
    earlier = {key: value for key, value in stage_1_state.items() if not key.startswith("bbox_projector.")}
    path = write_pth(tmp_path / "iter_7.pth", earlier)
    torch.manual_seed(3)
    first = MODELS.build(toy.model_config(toy_paths, "full")).state_dict()
    with pytest.raises(ValueError, match="the whole part bbox_projector is absent"):
        toy.build_model(toy_paths, "full", pretrained_pth=path)
    torch.manual_seed(3)
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    try:
        model = MODELS.build(toy.model_config(toy_paths, "full", pretrained_pth=path, fresh=("box_projector",)))
    finally:
        logger.removeHandler(caplog.handler)
    state = model.state_dict()
    assert all(torch.equal(state[key], earlier.get(key, value)) for key, value in first.items())
    assert f"box_projector starts anew: {path} does not hold it" in caplog.messages


@pytest.mark.parametrize(
    ("fresh", "message"),
    [
        (("box_projector",), r"does not fit this model: fresh names bbox_projector, which it holds; leave that out"),
        (("bbox_projector",), r"fresh names bbox_projector; the parts of MGLLaVA are .*box_projector"),
        (("merger", "fusion"), r"fresh names merger; the parts of this system are low_res_encoder"),
    ],
)
def test_parts_that_cannot_start_anew(
    toy_paths: dict[str, str],
    stage_1_state: dict[str, Tensor],
    tmp_path: Path,
    fresh: tuple[str, ...],
    message: str,
) -> None:
    path = write_pth(tmp_path / "iter_7.pth", stage_1_state)
    with pytest.raises(ValueError, match=message):
        toy.build_model(toy_paths, pretrained_pth=path, fresh=fresh)


def test_unknown_names_of_fresh_parts_are_said_before_weights_are_read() -> None:
    settings = {"llm": {"type": "mg_llava.build_language_model", "path": "nowhere"}, "low_res_encoder": None}
    with pytest.raises(ValueError, match=r"fresh names projektor; the parts of MGLLaVA are .*, projector,"):
        MODELS.build({"type": "mg_llava.MGLLaVA", **settings, "projector": None, "fresh": ["projektor"]})


def test_half_of_a_fresh_part_is_refused(model: nn.Module, stage_1_state: dict[str, Tensor], tmp_path: Path) -> None:
    state = {key: value for key, value in stage_1_state.items() if key != "fuse_module.gate.2.bias"}
    with pytest.raises(ValueError, match=r"1 keys are missing: .*gate.2.bias; fresh names fuse_module"):
        model.load_pretrained(write_pth(tmp_path / "iter_7.pth", state), fresh=["fusion"])


def test_missing_or_wrong_checkpoint(toy_paths: dict[str, str], model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"iter_9\.pth does not exist"):
        model.load_pretrained(str(tmp_path / "iter_9.pth"))
    with pytest.raises(ValueError, match="Hugging Face"):
        model.load_pretrained(toy_paths["llm"])


def test_resuming_reports_only_what_was_trained(model: nn.Module, stage_1_state: dict[str, Tensor]) -> None:
    """The plain ``load_state_dict`` that a runner resumes with does not ask for the frozen parts."""
    incompatible = model.load_state_dict(stage_1_state, strict=False)
    assert not incompatible.missing_keys and not incompatible.unexpected_keys
    key = "projector.model.0.bias"
    state = {name: value for name, value in stage_1_state.items() if name != key}
    assert model.load_state_dict(state, strict=False).missing_keys == [key]
