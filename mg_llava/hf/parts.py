"""Builds the encoders that a config describes, without weights; says what of a model is quantized."""

import copy
from dataclasses import replace
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from mg_llava.hf.configuration import MGLLaVAConfig
from mg_llava.models.encoders.base import VisionEncoder
from mg_llava.models.encoders.clip import CLIPEncoder
from mg_llava.models.encoders.convnext import OpenCLIPConvNeXtEncoder
from mg_llava.models.encoders.timm import TimmEncoder
from mg_llava.models.encoders.views import CLIP_MEAN, CLIP_STD

VISION_PARTS = ("visual_encoder", "visual_encoder_aux", "fuse_module", "projector", "bbox_projector")
"""Attributes of ``MGLLaVA`` beside the LLM; small, and never quantized."""

_SHORTHAND = ("load_in_4bit", "load_in_8bit")


def low_resolution_encoder(config: MGLLaVAConfig) -> VisionEncoder:
    """Build the low-resolution encoder without weights."""
    attention = config.vision_config._attn_implementation_internal or "sdpa"
    low = config.low_resolution_config
    spec = CLIPEncoder.spec_of(
        config.vision_config,
        low.get("layer", -2),
        low.get("image_mean", CLIP_MEAN),
        low.get("image_std", CLIP_STD),
    )
    spec = replace(spec, architecture={**spec.architecture, "attention": attention})
    return CLIPEncoder.from_spec(spec, torch.get_default_dtype())


def high_resolution_encoder(config: dict[str, Any] | None) -> VisionEncoder | None:
    """Build the high-resolution encoder without weights.

    Raises:
        ValueError: Its type is unknown.
    """
    if config is None:
        return None
    dtype: Any = torch.get_default_dtype()
    normalization = {name: tuple(config[name]) for name in ("image_mean", "image_std")}
    name, image_size, options = config["timm_name"], config["image_size"], config.get("timm_kwargs") or {}
    mean, std = normalization["image_mean"], normalization["image_std"]
    if config["type"] == OpenCLIPConvNeXtEncoder.__name__:
        spec = OpenCLIPConvNeXtEncoder.spec_of(name, options, image_size, mean, std)
        return OpenCLIPConvNeXtEncoder.from_spec(spec, dtype)
    if config["type"] == TimmEncoder.__name__:
        spec = TimmEncoder.describe({"name": name, "image_size": image_size, **options})
        return TimmEncoder.from_spec(replace(spec, mean=mean, std=std), dtype)
    known = ", ".join(part.__name__ for part in (OpenCLIPConvNeXtEncoder, TimmEncoder))
    raise ValueError(f"high_resolution_config has type {config['type']!r}; known: {known}")


def spare_vision_parts(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Keep quantization away from encoders, fusion and projectors, whose share of the memory is small.

    Args:
        kwargs: Arguments of ``from_pretrained``.

    Returns:
        The same, with the modules that are not to be quantized; a list that is given already is left as it is.
    """
    kwargs = dict(kwargs)
    quantization = copy.deepcopy(kwargs.pop("quantization_config", None))
    shorthand = {name: kwargs.pop(name) for name in _SHORTHAND if kwargs.get(name)}
    if quantization is None and shorthand:
        quantization, kwargs = BitsAndBytesConfig.from_dict(shorthand, return_unused_kwargs=True, **kwargs)
    elif isinstance(quantization, dict) and any(quantization.get(name) for name in _SHORTHAND):
        quantization = BitsAndBytesConfig.from_dict(quantization)
    for name in ("llm_int8_skip_modules", "modules_to_not_convert"):
        if hasattr(quantization, name) and getattr(quantization, name) is None:
            setattr(quantization, name, [*VISION_PARTS, "lm_head"])
    return kwargs if quantization is None else {**kwargs, "quantization_config": quantization}
