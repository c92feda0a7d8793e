"""Frozen encoders: equal to the libraries' own forward, read from every form of folder, and quiet in training."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from mmengine.logging import MMLogger
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mg_llava.models.encoders.clip import CLIPEncoder
from mg_llava.models.encoders.convnext import OpenCLIPConvNeXtEncoder, infer_convnext_kwargs
from mg_llava.models.encoders.timm import TimmEncoder
from mg_llava.models.encoders.views import CLIP_MEAN, CLIP_STD, normalize, resample
from mg_llava.models.weights.loading import require_folder, resolve_dtype
from mg_llava.registry import MODELS
from tests import toy

SIZE = toy.CANVAS


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(7))


@pytest.fixture()
def logged(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """What the package logged so far."""
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    yield lambda: "\n".join(record.getMessage() for record in caplog.records)
    logger.removeHandler(caplog.handler)


def rewrite(folder: Path, change: Callable[[dict], None]) -> Path:
    """Change the configuration of an open_clip folder."""
    file = folder / "open_clip_config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))
    return folder


def trunk_of(folder: Path, name: str = "convnext_large", **kwargs: object) -> nn.Module:
    """timm's own model with the weights of an open_clip folder."""
    trunk = timm.create_model(name, num_classes=0, **(toy.convnext_kwargs() | kwargs)).eval()
    safetensors = folder / "open_clip_model.safetensors"
    state = load_file(safetensors) if safetensors.exists() else torch.load(folder / "open_clip_pytorch_model.bin")
    prefix = "visual.trunk."
    trunk.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}, strict=True)
    return trunk


def stage_maps(trunk: nn.Module, pixels: Tensor) -> list[Tensor]:
    maps = []
    hidden = trunk.stem(pixels)
    for stage in trunk.stages:
        hidden = stage(hidden)
        maps.append(hidden)
    return maps


def assert_equal_maps(mine: list[Tensor], expected: list[Tensor], exact: bool = False) -> None:
    assert len(mine) == len(expected)
    for one, other in zip(mine, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0 if exact else 1e-5, atol=0 if exact else 1e-5)


# -- low resolution -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [-2, -1, 0, 1])
def test_clip_equals_hidden_states(toy_paths: dict[str, str], layer: int) -> None:
    from transformers import CLIPVisionModel

    encoder = CLIPEncoder(toy_paths["clip"], layer=layer, dtype="float32")
    model = CLIPVisionModel.from_pretrained(toy_paths["clip"]).eval()
    views = torch.randn(3, 3, 28, 28)
    with torch.no_grad():
        expected = model(views, output_hidden_states=True).hidden_states[layer][:, 1:]
    assert torch.equal(encoder(views).tokens, expected)


def test_clip_sizes(toy_paths: dict[str, str]) -> None:
    encoder = CLIPEncoder(toy_paths["clip"], dtype="float32")
    assert (encoder.spec.image_size, encoder.spec.channels, encoder.spec.grid) == (28, toy.CLIP_WIDTH, 2)
    assert encoder(torch.randn(1, 3, 28, 28)).tokens.shape == (1, encoder.spec.tokens, encoder.spec.channels)
    assert tuple(encoder.spec.mean) == CLIP_MEAN and tuple(encoder.spec.std) == CLIP_STD
    assert len(encoder.encoder.layers) == 2  # the layer after the one that is read is not computed


def test_whole_clip_model_folder(tmp_path: Path) -> None:
    """A folder with both towers, as the hub has it."""
    from transformers import CLIPConfig, CLIPModel

    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=small | {"vocab_size": 50, "max_position_embeddings": 8},
        vision_config=small | {"image_size": 28, "patch_size": 14},
        projection_dim=8,
    )
    model = CLIPModel(config).eval()
    model.save_pretrained(tmp_path)
    views = torch.randn(1, 3, 28, 28)
    with torch.no_grad():
        expected = model.vision_model(views, output_hidden_states=True).hidden_states[-2][:, 1:]
    assert torch.equal(CLIPEncoder(str(tmp_path), dtype="float32")(views).tokens, expected)


def test_siglip_has_no_class_token(tmp_path: Path) -> None:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    model = SiglipVisionModel(config).eval()
    model.save_pretrained(tmp_path)
    encoder = CLIPEncoder(str(tmp_path), dtype="float32")
    views = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(views, output_hidden_states=True).hidden_states[-2]
    assert torch.equal(encoder(views).tokens, expected)
    assert encoder.spec.grid == 4 and expected.shape[1] == 16
    assert tuple(encoder.spec.mean) == (0.5, 0.5, 0.5)  # SigLIP's, though the folder has no processor


def test_normalization_comes_from_the_processor(toy_paths: dict[str, str], tmp_path: Path) -> None:
    folder = shutil.copytree(toy_paths["clip"], tmp_path / "clip")
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"image_mean": [0.1, 0.2, 0.3]}))
    assert tuple(CLIPEncoder(str(folder), dtype="float32").spec.mean) == (0.1, 0.2, 0.3)


def test_clip_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere does not exist; expected a Hugging Face CLIP"):
        CLIPEncoder(str(tmp_path / "nowhere"))


def test_clip_folder_without_config(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(FileNotFoundError, match=r"has no config.json.*found: notes.txt"):
        CLIPEncoder(str(tmp_path))


def test_clip_folder_without_weights(toy_paths: dict[str, str], tmp_path: Path) -> None:
    shutil.copy(Path(toy_paths["clip"]) / "config.json", tmp_path)
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} has no weights"):
        CLIPEncoder(str(tmp_path))


def test_clip_truncated_weights(toy_paths: dict[str, str], tmp_path: Path) -> None:
    folder = shutil.copytree(toy_paths["clip"], tmp_path / "clip")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=f"{folder}/model.safetensors .* cannot be read"):
        CLIPEncoder(str(folder))


def test_clip_weights_of_other_sizes(toy_paths: dict[str, str], tmp_path: Path) -> None:
    folder = shutil.copytree(toy_paths["clip"], tmp_path / "clip")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    with pytest.raises(ValueError, match=f"{folder} does not fit CLIPEncoder: 6 shapes do not fit"):
        CLIPEncoder(str(folder))


def test_clip_missing_weights(toy_paths: dict[str, str], tmp_path: Path) -> None:
    folder = shutil.copytree(toy_paths["clip"], tmp_path / "clip")
    state = load_file(folder / "model.safetensors")
    del state[next(name for name in state if name.endswith("encoder.layers.0.mlp.fc1.weight"))]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"does not fit CLIPEncoder: 1 keys are missing: .*layers.0.mlp.fc1.weight"):
        CLIPEncoder(str(folder))


def test_another_kind_of_model_as_clip(toy_paths: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="holds a 'llama' model; the low-resolution encoder takes clip, siglip"):
        CLIPEncoder(toy_paths["llm"])


@pytest.mark.parametrize("layer", [4, -5])
def test_layer_out_of_range(toy_paths: dict[str, str], layer: int) -> None:
    with pytest.raises(ValueError, match=f"layer={layer} is out of range .* which has 3 layers"):
        CLIPEncoder(toy_paths["clip"], layer=layer)


# -- open_clip folders ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("safetensors", [True, False])
@pytest.mark.parametrize("kwargs", [True, False])
def test_open_clip_folder(tmp_path: Path, pixels: Tensor, safetensors: bool, kwargs: bool) -> None:
    """Depths and widths other than the named model's, told by the configuration or by the weights alone."""
    folder = toy.write_convnext(tmp_path / "convnext", safetensors=safetensors, kwargs=kwargs)
    encoder = OpenCLIPConvNeXtEncoder(str(folder), SIZE, dtype="float32")
    assert list(encoder.spec.stage_channels) == list(toy.STAGE_CHANNELS)
    assert list(encoder.spec.stage_strides) == [4, 8, 16, 32]
    assert encoder.spec.grid == 2
    assert [len(stage.blocks) for stage in encoder.vision_stages] == [1, 1, 2, 1]
    maps = encoder(pixels).maps
    assert [tuple(item.shape[2:]) for item in maps] == [(SIZE // s,) * 2 for s in list(encoder.spec.stage_strides)]
    with torch.no_grad():
        assert_equal_maps(maps, stage_maps(trunk_of(folder), pixels))


def test_open_clip_keys_are_the_references(toy_paths: dict[str, str]) -> None:
    encoder = OpenCLIPConvNeXtEncoder(toy_paths["convnext"], SIZE, dtype="float32")
    keys = set(encoder.state_dict())
    assert {"vision_stem.0.weight", "vision_stem.1.bias", "vision_stages.2.blocks.1.conv_dw.weight"} <= keys
    assert all(key.startswith(("vision_stem.", "vision_stages.")) for key in keys)


@pytest.mark.parametrize("name", ["convnext_atto", "convnext_base", "convnextv2_atto", "convnext_atto_ols"])
@pytest.mark.parametrize("told", [True, False])
def test_other_named_models(tmp_path: Path, pixels: Tensor, name: str, told: bool) -> None:
    """Convolutional MLPs (atto), global response norm and no layer scale (v2), an overlapping stem (ols)."""
    folder = tmp_path / name
    kwargs = {"depths": (1, 2, 1, 1), "dims": (8, 12, 16, 24)}
    if name.startswith("convnext_"):
        kwargs["ls_init_value"] = 1.0
    trunk = timm.create_model(name, num_classes=0, **kwargs).eval()
    for parameter in trunk.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    folder.mkdir()
    state = {f"visual.trunk.{k}": v.contiguous() for k, v in trunk.state_dict().items()}
    torch.save(state, folder / "open_clip_pytorch_model.bin")
    vision = {"timm_model_name": name} | ({"timm_model_kwargs": kwargs} if told else {})
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"vision_cfg": vision}}))
    encoder = OpenCLIPConvNeXtEncoder(str(folder), SIZE, dtype="float32")
    with torch.no_grad():
        assert_equal_maps(encoder(pixels).maps, stage_maps(trunk, pixels))


@pytest.mark.parametrize("name", ["convnext_large", "convnext_base", "convnext_xxlarge", "convnextv2_tiny"])
def test_inferred_arguments_change_nothing_of_a_named_model(name: str) -> None:
    """At full size: what is read from the weights builds the model that the name alone builds."""
    with torch.device("meta"):
        trunk = timm.create_model(name, num_classes=0)
        inferred = timm.create_model(name, num_classes=0, **infer_convnext_kwargs(trunk.state_dict()))
    mine = {key: value.shape for key, value in inferred.state_dict().items()}
    assert mine == {key: value.shape for key, value in trunk.state_dict().items()}


def test_published_encoder_sizes() -> None:
    with torch.device("meta"):
        trunk = timm.create_model("convnext_large", num_classes=0)
    assert infer_convnext_kwargs(trunk.state_dict())["depths"] == (3, 3, 27, 3)
    assert [info["num_chs"] for info in trunk.feature_info] == [192, 384, 768, 1536]


def test_dropped_keys_are_logged(toy_paths: dict[str, str], tmp_path: Path, logged: Callable[[], str]) -> None:
    folder = shutil.copytree(toy_paths["convnext"], tmp_path / "convnext")
    state = load_file(folder / "open_clip_model.safetensors")
    extra = {
        "visual.trunk.head.norm.weight": torch.ones(24),
        "visual.head.proj.bias": torch.ones(8),
        "transformer.resblocks.0.ln_1.weight": torch.ones(8),
        "something_else.weight": torch.ones(3),
    }
    save_file(state | extra, folder / "open_clip_model.safetensors")
    OpenCLIPConvNeXtEncoder(str(folder), SIZE, dtype="float32")
    message = logged()
    for part in (
        "2 of the projection head",
        "2 of the text tower",
        "1 of the logit scale",
        "of the trunk norm and head",
        "1 of the unknown part something_else",
    ):
        assert part in message, part


def test_normalization_of_the_folder(toy_paths: dict[str, str], tmp_path: Path) -> None:
    folder = shutil.copytree(toy_paths["convnext"], tmp_path / "convnext")
    rewrite(folder, lambda config: config.update(preprocess_cfg={"mean": [0.5] * 3, "std": [0.25] * 3}))
    encoder = OpenCLIPConvNeXtEncoder(str(folder), SIZE, dtype="float32")
    assert encoder.spec.mean == (0.5,) * 3 and encoder.spec.std == (0.25,) * 3


def test_weights_saved_from_a_wrapped_model(toy_paths: dict[str, str], tmp_path: Path, pixels: Tensor) -> None:
    folder = shutil.copytree(toy_paths["convnext"], tmp_path / "convnext")
    weights = folder / "open_clip_model.safetensors"
    state = {f"module.{key}": value for key, value in load_file(weights).items()}
    weights.unlink()
    torch.save({"state_dict": state, "epoch": 3}, folder / "open_clip_pytorch_model.bin")
    plain = OpenCLIPConvNeXtEncoder(toy_paths["convnext"], SIZE, dtype="float32")
    assert_equal_maps(
        OpenCLIPConvNeXtEncoder(str(folder), SIZE, dtype="float32")(pixels).maps, plain(pixels).maps, exact=True
    )


def test_open_clip_model_name() -> None:
    encoder = OpenCLIPConvNeXtEncoder("convnext_tiny", SIZE, dtype="float32")
    assert list(encoder.spec.stage_channels) == [96, 192, 384, 768] and encoder.spec.grid == 2
    assert len(encoder.vision_stages) == 4 and tuple(encoder.spec.mean) == CLIP_MEAN


# -- errors of open_clip folders ------------------------------------------------------------------------------------


@pytest.fixture()
def convnext_copy(toy_paths: dict[str, str], tmp_path: Path) -> Path:
    return shutil.copytree(toy_paths["convnext"], tmp_path / "convnext")


def test_unknown_model_name() -> None:
    with pytest.raises(ValueError, match=r"'convnext_lage' is neither an open_clip folder .*convnext_large"):
        OpenCLIPConvNeXtEncoder("convnext_lage", SIZE)


def test_open_clip_name_of_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip

    model = nn.Module()
    model.visual = nn.Linear(1, 1)
    monkeypatch.setattr(open_clip, "create_model", lambda *args, **kwargs: model)
    with pytest.raises(ValueError, match=r"ViT-B-32: .* so this is no ConvNeXt"):
        OpenCLIPConvNeXtEncoder("ViT-B-32", SIZE)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere does not exist; expected an open_clip folder"):
        OpenCLIPConvNeXtEncoder(str(tmp_path / "nowhere"), SIZE)


def test_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no open_clip_config.json; .* found: nothing"):
        OpenCLIPConvNeXtEncoder(str(tmp_path), SIZE)


def test_folder_without_weights(convnext_copy: Path) -> None:
    (convnext_copy / "open_clip_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no weights; expected one of open_clip_model.safetensors, "):
        OpenCLIPConvNeXtEncoder(str(convnext_copy), SIZE)


@pytest.mark.parametrize("safetensors", [True, False])
def test_truncated_weights(tmp_path: Path, safetensors: bool) -> None:
    folder = toy.write_convnext(tmp_path / "convnext", safetensors=safetensors)
    file = next(item for item in folder.iterdir() if item.suffix != ".json")
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(ValueError, match=rf"{file} \(2000 bytes\) cannot be read as a checkpoint .* It is truncated"):
        OpenCLIPConvNeXtEncoder(str(folder), SIZE)


class Code:
    """Runs when it is unpickled, if anything lets it."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return Path.touch, (self.trace,)


def test_a_pickle_with_code_is_refused_and_not_run(convnext_copy: Path, tmp_path: Path) -> None:
    weights = convnext_copy / "open_clip_model.safetensors"
    state = load_file(weights)
    weights.unlink()
    trace = tmp_path / "it_ran"
    torch.save(state | {"extra": Code(trace)}, convnext_copy / "open_clip_pytorch_model.bin")
    with pytest.raises(ValueError, match=r"1 entries .* are no tensors, .* was not run"):
        OpenCLIPConvNeXtEncoder(str(convnext_copy), SIZE)
    assert not trace.exists()


@pytest.mark.parametrize("content", [torch.ones(3), [1, 2], {"epoch": 3}])
def test_a_pickle_without_weights(convnext_copy: Path, content: object) -> None:
    (convnext_copy / "open_clip_model.safetensors").unlink()
    torch.save(content, convnext_copy / "open_clip_pytorch_model.bin")
    with pytest.raises(ValueError, match=r"open_clip_pytorch_model.bin holds no"):
        OpenCLIPConvNeXtEncoder(str(convnext_copy), SIZE)


def test_one_missing_key(convnext_copy: Path) -> None:
    weights = convnext_copy / "open_clip_model.safetensors"
    state = load_file(weights)
    del state["visual.trunk.stages.1.downsample.1.bias"]
    save_file(state, weights)
    with pytest.raises(ValueError, match=r"does not fit .*: 1 keys are missing: vision_stages.1.downsample.1.bias"):
        OpenCLIPConvNeXtEncoder(str(convnext_copy), SIZE)


def test_wrong_shapes_and_unexpected_keys_in_one_message(convnext_copy: Path) -> None:
    def smaller(config: dict) -> None:
        config["model_cfg"]["vision_cfg"]["timm_model_kwargs"] = {"depths": [1, 1, 1, 1], "dims": [8, 12, 16, 20]}

    with pytest.raises(ValueError, match=r"do not fit: vision_stages.3.*no part knows: vision_stages.2.blocks.1"):
        OpenCLIPConvNeXtEncoder(str(rewrite(convnext_copy, smaller)), SIZE)


def test_weights_of_another_kind(convnext_copy: Path) -> None:
    save_file({"model.layer.weight": torch.ones(2)}, convnext_copy / "open_clip_model.safetensors")
    with pytest.raises(ValueError, match=r"no visual.trunk.\* keys \(first key: model.layer.weight\)"):
        OpenCLIPConvNeXtEncoder(str(convnext_copy), SIZE)


def test_configuration_without_a_timm_model(convnext_copy: Path) -> None:
    rewrite(convnext_copy, lambda config: config["model_cfg"].update(vision_cfg={"layers": 24, "width": 1024}))
    with pytest.raises(ValueError, match="names no timm_model_name, so this is no ConvNeXt"):
        OpenCLIPConvNeXtEncoder(str(convnext_copy), SIZE)


def test_configuration_with_an_unknown_timm_model(convnext_copy: Path) -> None:
    rewrite(convnext_copy, lambda config: config["model_cfg"]["vision_cfg"].update(timm_model_name="convnext_hueg"))
    with pytest.raises(ValueError, match=r"open_clip_config.json: timm knows no model 'convnext_hueg'; nearest"):
        OpenCLIPConvNeXtEncoder(str(convnext_copy), SIZE)


def test_configuration_with_a_timm_model_of_another_kind(convnext_copy: Path) -> None:
    rewrite(convnext_copy, lambda config: config["model_cfg"]["vision_cfg"].update(timm_model_name="resnet18"))
    with pytest.raises(ValueError, match="'resnet18' does not take these arguments"):
        OpenCLIPConvNeXtEncoder(str(convnext_copy), SIZE)


def test_size_that_is_no_multiple_of_the_stride(toy_paths: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"image_size=70 is not a multiple of 32.*use 64 or 96"):
        OpenCLIPConvNeXtEncoder(toy_paths["convnext"], 70)


# -- timm backbones -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kwargs", "channels"),
    [
        ("resnet18", {}, [64, 64, 128, 256, 512]),
        ("convnext_atto", {"out_indices": [1, 2, 3]}, [80, 160, 320]),
        (
            # the first stage has as many channels as rows, so that only the model can say which axis is which
            "swin_tiny_patch4_window7_224",
            {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2), "window_size": 2},
            [16, 32, 64, 128],
        ),
    ],
)
def test_timm_backbones(tmp_path: Path, pixels: Tensor, name: str, kwargs: dict, channels: list[int]) -> None:
    """Built and loaded from a file that timm wrote, under timm's own names."""
    options = {key: value for key, value in kwargs.items() if key != "out_indices"}
    if name.startswith("swin"):
        options["img_size"] = SIZE
    whole = timm.create_model(name, num_classes=5, **options).eval()
    save_file({k: v.contiguous() for k, v in whole.state_dict().items()}, tmp_path / "model.safetensors")
    encoder = TimmEncoder(name, SIZE, checkpoint=str(tmp_path / "model.safetensors"), dtype="float32", **kwargs)
    maps = encoder(pixels).maps
    assert list(encoder.spec.stage_channels) == channels
    for item, width, stride in zip(maps, channels, list(encoder.spec.stage_strides), strict=True):
        assert item.shape == (2, width, SIZE // stride, SIZE // stride)
    indices = kwargs.get("out_indices")
    with torch.no_grad():
        expected = whole.forward_intermediates(pixels, indices=indices, intermediates_only=True)
    assert_equal_maps(maps, expected)
    assert tuple(encoder.spec.mean) == (0.485, 0.456, 0.406)
    assert encoder.spec.grid == SIZE // list(encoder.spec.stage_strides)[-1]


def test_timm_weights_that_do_not_fit(tmp_path: Path) -> None:
    save_file(timm.create_model("resnet10t", num_classes=0).state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"resnet18 does not fit TimmEncoder: (\d+ keys are missing|the whole part)"):
        TimmEncoder("resnet18", SIZE, checkpoint=str(tmp_path / "model.safetensors"))


def test_timm_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"timm knows no model 'resnet_18'; nearest names: .*resnet18"):
        TimmEncoder("resnet_18", SIZE)
    with pytest.raises(ValueError, match="not a multiple of 32"):
        TimmEncoder("resnet18", 50)
    with pytest.raises(FileNotFoundError):
        TimmEncoder("resnet18", SIZE, checkpoint=str(tmp_path / "nothing.safetensors"))


# -- what every encoder has in common -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoders(toy_paths: dict[str, str]) -> dict[str, nn.Module]:
    return {
        "clip": CLIPEncoder(toy_paths["clip"], dtype="float32"),
        "convnext": OpenCLIPConvNeXtEncoder(toy_paths["convnext"], SIZE, dtype="float32"),
        "timm": TimmEncoder("resnet18", SIZE, dtype="float32"),
    }


@pytest.mark.parametrize("kind", ["clip", "convnext", "timm"])
def test_no_gradients_and_always_in_eval_mode(encoders: dict[str, nn.Module], kind: str) -> None:
    encoder = encoders[kind]
    holder = nn.Sequential(encoder).train()
    assert holder.training and not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    pixels = torch.randn(1, 3, encoder.spec.image_size, encoder.spec.image_size, requires_grad=True)
    seen = encoder(pixels)
    for item in seen.maps or [seen.tokens]:
        assert not item.requires_grad


def test_drop_path_is_inactive(convnext_copy: Path, pixels: Tensor) -> None:
    def drop(config: dict) -> None:
        config["model_cfg"]["vision_cfg"]["timm_model_kwargs"]["drop_path_rate"] = 0.9

    encoder = OpenCLIPConvNeXtEncoder(str(rewrite(convnext_copy, drop)), SIZE, dtype="float32").train()
    assert any("DropPath" in type(module).__name__ for module in encoder.modules())
    assert_equal_maps(encoder(pixels).maps, encoder(pixels).maps, exact=True)
    with torch.no_grad():
        assert_equal_maps(encoder(pixels).maps, stage_maps(trunk_of(convnext_copy), pixels))


def test_own_dtype(toy_paths: dict[str, str], pixels: Tensor) -> None:
    encoder = OpenCLIPConvNeXtEncoder(toy_paths["convnext"], SIZE, dtype="bfloat16")
    assert encoder.dtype == torch.bfloat16
    assert all(item.dtype == torch.bfloat16 for item in encoder(pixels).maps)
    assert CLIPEncoder(toy_paths["clip"], dtype="float16").dtype == torch.float16


def test_dtype_names() -> None:
    assert resolve_dtype(torch.float64) == torch.float64
    assert resolve_dtype("auto") == (torch.bfloat16 if torch.cuda.is_available() else torch.float32)
    with pytest.raises(ValueError, match="unknown dtype 'bf16'; known: auto, float32"):
        resolve_dtype("bf16")


def test_hub_names_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    require_folder("organization/model", "config.json", "a folder")
    with pytest.raises(FileNotFoundError):
        require_folder("organization/model", "config.json", "a folder", allow_hub=False)
    (tmp_path / "organization").mkdir()
    with pytest.raises(FileNotFoundError, match="does not exist"):
        require_folder("organization/model", "config.json", "a folder")
    (tmp_path / "organization" / "model").write_text("")
    with pytest.raises(FileNotFoundError, match="is a file"):
        require_folder("organization/model", "config.json", "a folder")


def test_registry_names(toy_paths: dict[str, str]) -> None:
    for part in ("low_res_encoder", "high_res_encoder"):
        assert isinstance(MODELS.build(toy.model_config(toy_paths)[part]), nn.Module)


def test_views_equal_the_reference_processor() -> None:
    """Rescaled and normalized as CLIP's processor does; the low-resolution view without antialias."""
    from transformers import CLIPImageProcessor

    image = torch.randint(0, 256, (3, SIZE, SIZE), dtype=torch.uint8)
    processor = CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=SIZE)
    expected = processor(image.permute(1, 2, 0).numpy(), return_tensors="pt", input_data_format="channels_last")
    canvas = normalize(image[None])
    torch.testing.assert_close(canvas, expected["pixel_values"], rtol=0, atol=1e-5)
    view = resample(canvas, 28)
    reference = torch.nn.functional.interpolate(canvas, size=(28, 28), mode="bilinear", align_corners=False)
    assert torch.equal(view, reference) and resample(canvas, SIZE) is canvas
    assert normalize(canvas) is canvas
