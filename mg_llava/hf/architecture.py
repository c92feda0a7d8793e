"""What a training config says about the architecture, read from the folders it names, without their weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from mg_llava.data.pictures.processor import PictureProcessor
from mg_llava.data.text.stopping import Stops
from mg_llava.data.text.tokenizer import build_tokenizer
from mg_llava.hf.configuration import MGLLaVAConfig
from mg_llava.hf.image_processing import MGLLaVAImageProcessor
from mg_llava.hf.processing import MGLLaVAProcessor
from mg_llava.hf.prompts import template_of, template_to_dict
from mg_llava.models.encoders.clip import read_normalization
from mg_llava.models.encoders.views import CLIP_MEAN, CLIP_STD
from mg_llava.models.weights.loading import find_weights, infer_convnext_kwargs
from mg_llava.models.weights.stored import map_weights
from mg_llava.registry import MODELS, TRANSFORMS

NEW_TOKENS = 100
"""Default limit of an answer, as the predictor has it."""


def describe_model(config: Mapping[str, Any], dtype: torch.dtype) -> MGLLaVAConfig:
    """The Hugging Face config of what a training config builds.

    Args:
        config: A training config, of which ``model``, ``picture_processor`` and ``prompt_template`` are read.
        dtype: Dtype that the weights are stored in.

    Raises:
        FileNotFoundError: A folder or a file of it is absent.
        ValueError: The LLM brings code of its own, or a part is of a kind that cannot be described.
    """
    model = config["model"]
    text = _llm_config(model["llm"])
    vision, low = _low_resolution(model["low_res_encoder"])
    return MGLLaVAConfig(
        text_config=text,
        vision_config=vision,
        low_resolution_config=low,
        high_resolution_config=_high_resolution(model.get("high_res_encoder")),
        fusion_config=_part(model.get("fusion")),
        box_projector_config=_part(model.get("box_projector")),
        projector_config=_part(model["projector"]),
        picture_config=_picture_processor(config).to_dict(),
        template_config=template_to_dict(config["prompt_template"]),
        torch_dtype=dtype,
        architectures=["MGLLaVAForConditionalGeneration"],
    )


def describe_generation(config: Mapping[str, Any], tokenizer: Any) -> GenerationConfig:
    """Greedy, with the ends of an answer that the predictor knows."""
    path = config["model"]["llm"]["path"]
    try:
        given = GenerationConfig.from_pretrained(path)
    except OSError:
        given = GenerationConfig.from_model_config(AutoConfig.from_pretrained(path))
    ends = given.eos_token_id
    stops = Stops(tokenizer, template_of(config["prompt_template"]), [ends] if isinstance(ends, int) else ends or [])
    pad = tokenizer.pad_token_id
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=stops.ids,
        pad_token_id=stops.ids[0] if pad is None and stops.ids else pad,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
    )


def build_processor(config: Mapping[str, Any]) -> MGLLaVAProcessor:
    """The processor that gives a model what it was trained on.

    Raises:
        TokenizerError: The tokenizer's files are absent.
    """
    tokenizer = build_tokenizer(config["tokenizer"])
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"  # the latter is what is saved
    image_processor = MGLLaVAImageProcessor(**_picture_processor(config).to_dict())
    return MGLLaVAProcessor(image_processor, tokenizer, template=config["prompt_template"])


def _picture_processor(config: Mapping[str, Any]) -> PictureProcessor:
    spec = config["picture_processor"]
    return TRANSFORMS.build(dict(spec)) if isinstance(spec, Mapping) else spec


def _llm_config(spec: Mapping[str, Any]) -> PretrainedConfig:
    path = spec["path"]
    config = AutoConfig.from_pretrained(path, trust_remote_code=bool(spec.get("trust_remote_code", False)))
    if config.model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"the LLM {path} is a {config.model_type!r}, which brings code of its own; a Hugging Face folder of the "
            "whole model can hold architectures that transformers knows; convert to separate parts instead"
        )
    for name in ("quantization_config", "auto_map"):
        if hasattr(config, name):
            delattr(config, name)
    return config


def _low_resolution(spec: Mapping[str, Any]) -> tuple[PretrainedConfig, dict[str, Any]]:
    _kind(spec, ("CLIPEncoder",))
    config = AutoConfig.from_pretrained(spec["path"])
    vision = getattr(config, "vision_config", config)
    mean, std = read_normalization(spec["path"], config.model_type.removesuffix("_vision_model"))
    return vision, {"layer": spec.get("layer", -2), "image_mean": list(mean), "image_std": list(std)}


def _high_resolution(spec: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if spec is None:
        return None
    kind = _kind(spec, ("OpenCLIPConvNeXtEncoder", "TimmEncoder"))
    described = {"type": kind, "image_size": spec["image_size"]}
    if kind == "TimmEncoder":
        return {**described, **_timm(spec)}
    path = str(spec["path"])
    return {**described, **(_open_clip_folder(Path(path)) if Path(path).is_dir() else _open_clip_tag(path))}


def _timm(spec: Mapping[str, Any]) -> dict[str, Any]:
    import timm

    cfg = timm.get_pretrained_cfg(spec["name"], allow_unregistered=True)
    if cfg is None:
        raise ValueError(f"timm knows no model {spec['name']!r}")
    own = ("type", "name", "image_size", "checkpoint", "pretrained", "dtype")
    return {
        "timm_name": spec["name"],
        "timm_kwargs": {key: _plain(value) for key, value in spec.items() if key not in own},
        "image_mean": list(cfg.mean),
        "image_std": list(cfg.std),
    }


def _open_clip_folder(folder: Path) -> dict[str, Any]:
    """Name and options as ``OpenCLIPConvNeXtEncoder`` finds them, from the header of the weights alone."""
    config = json.loads((folder / "open_clip_config.json").read_text())
    vision = config.get("model_cfg", config)["vision_cfg"]
    preprocess = config.get("preprocess_cfg", {})
    file = find_weights(folder, ("open_clip_model", "open_clip_pytorch_model"))
    shapes = {
        key.removeprefix("module.").removeprefix("visual.trunk."): torch.empty(stored.shape, device="meta")
        for key, stored in map_weights(file)[0].items()
    }
    kwargs = infer_convnext_kwargs(shapes) | dict(vision.get("timm_model_kwargs") or {})
    return {
        "timm_name": vision["timm_model_name"],
        "timm_kwargs": {key: _plain(value) for key, value in kwargs.items()},
        "image_mean": list(preprocess.get("mean", CLIP_MEAN)),
        "image_std": list(preprocess.get("std", CLIP_STD)),
    }


def _open_clip_tag(name: str) -> dict[str, Any]:
    import open_clip

    known = open_clip.get_model_config(name)
    if known is None:
        raise ValueError(f"{name!r} is neither an open_clip folder nor a model that open_clip knows")
    vision = known["vision_cfg"]
    return {
        "timm_name": vision["timm_model_name"],
        "timm_kwargs": {key: _plain(value) for key, value in (vision.get("timm_model_kwargs") or {}).items()},
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
    }


def _part(spec: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A part's config with the plain name of its type."""
    if spec is None:
        return None
    return {"type": _kind(spec)} | {key: _plain(value) for key, value in spec.items() if key != "type"}


def _kind(spec: Any, allowed: tuple[str, ...] | None = None) -> str:
    """Plain name of a config's type.

    Raises:
        ValueError: The part is no config, or of a kind that is not allowed here.
    """
    if not isinstance(spec, Mapping):
        raise ValueError(f"a part is given as {type(spec).__name__}; give its config, a dict with type")
    kind = spec["type"]
    name = kind.rsplit(".", 1)[-1] if isinstance(kind, str) else kind.__name__
    if allowed is not None and name not in allowed:
        raise ValueError(f"a Hugging Face folder can describe {', '.join(allowed)} here, not {name!r}")
    if MODELS.find(name) is None:
        raise ValueError(f"{name!r} is not registered in MODELS; import the module that registers it first")
    return name


def _plain(value: Any) -> Any:
    """Values for JSON: tuples and the configs' own dicts and lists as plain ones."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
