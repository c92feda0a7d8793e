"""Reads the parts of a ``config.json`` that was written before parts were described in one table."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from mg_llava.models.encoders.clip import CLIPEncoder
from mg_llava.models.encoders.convnext import OpenCLIPConvNeXtEncoder
from mg_llava.models.encoders.timm import TimmEncoder
from mg_llava.models.encoders.views import CLIP_MEAN, CLIP_STD
from mg_llava.models.interfaces import Spec


def read_parts(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The parts, by their names in a training config.

    Args:
        config: ``vision_config`` and ``low_resolution_config`` of the low-resolution encoder,
            ``high_resolution_config``, and ``fusion_config``, ``box_projector_config`` and ``projector_config``.

    Raises:
        ValueError: The type of the high-resolution encoder is unknown.
    """
    found = {
        "low_res_encoder": _values(_low_resolution(config["vision_config"], config["low_resolution_config"] or {})),
        "projector": config["projector_config"] or {"type": "MLPProjector"},
        "fusion": config["fusion_config"],
        "box_projector": config["box_projector_config"],
    }
    high = config["high_resolution_config"]
    if high is not None:
        found["high_res_encoder"] = _values(_high_resolution(high))
    return {name: part for name, part in found.items() if part is not None}


def _values(spec: Spec) -> dict[str, Any]:
    return {name: value for name, value in asdict(spec).items() if name != "source"}


def _low_resolution(vision: Mapping[str, Any] | PretrainedConfig | None, low: Mapping[str, Any]) -> Spec:
    if not isinstance(vision, PretrainedConfig):
        vision = AutoConfig.for_model(**{"model_type": "clip_vision_model", **(vision or {})})
    mean, std = low.get("image_mean", CLIP_MEAN), low.get("image_std", CLIP_STD)
    return CLIPEncoder.spec_of(vision, low.get("layer", -2), mean, std)


def _high_resolution(high: Mapping[str, Any]) -> Spec:
    mean, std = tuple(high["image_mean"]), tuple(high["image_std"])
    name, size, options = high["timm_name"], high["image_size"], high.get("timm_kwargs") or {}
    if high["type"] == OpenCLIPConvNeXtEncoder.__name__:
        return OpenCLIPConvNeXtEncoder.spec_of(name, options, size, mean, std)
    if high["type"] == TimmEncoder.__name__:
        return replace(TimmEncoder.describe({"name": name, "image_size": size, **options}), mean=mean, std=std)
    known = f"{OpenCLIPConvNeXtEncoder.__name__}, {TimmEncoder.__name__}"
    raise ValueError(f"high_resolution_config has type {high['type']!r}; known: {known}")
