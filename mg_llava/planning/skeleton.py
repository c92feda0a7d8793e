"""The model of a config on the meta device: every part with its shapes and what of it is trained, but no weights."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from mg_llava.models import llm as language_model
from mg_llava.models.encoders.clip import CLIPEncoder
from mg_llava.models.encoders.convnext import OpenCLIPConvNeXtEncoder
from mg_llava.models.encoders.timm import TimmEncoder
from mg_llava.models.parts import for_any_machine
from mg_llava.models.recompute import Checkpointing
from mg_llava.planning.architectures import Architecture, find_architecture
from mg_llava.registry import MODELS

PARTS = ("llm", "fuse_module", "projector", "bbox_projector", "visual_encoder", "visual_encoder_aux")
"""Attributes of the model that hold its parts."""


@dataclass
class Skeleton:
    """A model without weights, and how its config wants it trained.

    Attributes:
        model: The model on the meta device.
        quantized: Whether the linear layers of the LLM are held in 4 bits.
        checkpointing: What activations of the LLM are computed again in the backward pass.
        architectures: Where the numbers of each part come from, by part of the config.
    """

    model: Any
    quantized: bool
    checkpointing: Checkpointing
    architectures: dict[str, Architecture] = field(default_factory=dict)

    def parts(self) -> dict[str, nn.Module]:
        """The parts that the model has, by attribute."""
        found = {name: getattr(self.model, name, None) for name in PARTS}
        return {name: part for name, part in found.items() if part is not None}


def build_skeleton(settings: Mapping[str, Any], published: str | Path | None = None) -> Skeleton:
    """Build the model of a config without its weights.

    Args:
        settings: The config's ``model``.
        published: Folder with the numbers of models that are not here (see :func:`find_architecture`).

    Raises:
        ArchitectureError: Nothing says how large a part is.
        ValueError: The parts do not go together, with every reason in one message.
    """
    model = for_any_machine(settings) | {"pretrained_pth": None}
    architectures: dict[str, Architecture] = {}
    with torch.device("meta"), tempfile.TemporaryDirectory() as folder:
        for part in ("low_res_encoder", "high_res_encoder"):
            if model.get(part) is not None:
                model[part], found = _build_encoder(dict(model[part]), published)
                architectures |= {} if found is None else {part: found}
        architectures["llm"] = find_architecture(model["llm"]["path"], "transformers", published)
        model["llm"] = _llm_settings(dict(model["llm"]), architectures["llm"].write(folder, "transformers"))
        # the very function of training, but for its reader of weights
        with patch.object(language_model, "load_hugging_face", _make_from_config):
            built = MODELS.build(model)
    quantized = settings["llm"].get("tuning") == "qlora"
    checkpointing = settings["llm"].get("gradient_checkpointing", True)
    return Skeleton(built, quantized, checkpointing, architectures)


def _build_encoder(settings: dict[str, Any], published: str | Path | None) -> tuple[nn.Module, Architecture | None]:
    """An encoder without weights, in 16 bits unless its settings say otherwise, and where its sizes come from."""
    if settings.get("dtype", "auto") == "auto":
        settings["dtype"] = "bfloat16"
    kind = settings.pop("type")
    kind = MODELS.get(kind) if isinstance(kind, str) else kind
    if kind is TimmEncoder:
        return TimmEncoder(**settings | {"pretrained": False, "checkpoint": None}), None
    if kind is CLIPEncoder:
        from transformers import AutoConfig

        found = find_architecture(settings.pop("path"), "transformers", published)
        config = AutoConfig.for_model(**found.config)
        return CLIPEncoder.from_architecture(getattr(config, "vision_config", config), **settings), found
    if kind is OpenCLIPConvNeXtEncoder:
        found = find_architecture(settings.pop("path"), "open_clip", published)
        settings.pop("pretrained", None)
        vision = found.config.get("model_cfg", found.config)["vision_cfg"]
        options = dict(vision.get("timm_model_kwargs") or {})
        return OpenCLIPConvNeXtEncoder.from_architecture(vision["timm_model_name"], **settings, **options), found
    raise ValueError(f"{kind} is no encoder that can be made without weights; known: CLIP, OpenCLIP, timm")


def _llm_settings(settings: dict[str, Any], path: str) -> dict[str, Any]:
    """Settings of an LLM of which there is the configuration alone."""
    if settings.get("dtype", "auto") == "auto":
        settings["dtype"] = "bfloat16"
    if settings.get("tuning") == "qlora":
        settings["tuning"] = "lora"
    # what checkpointing costs is added by those who count
    return settings | {"path": path, "gradient_checkpointing": False, "trust_remote_code": False}


def _make_from_config(model_class: Any, path: str, **options: Any) -> Any:
    """As ``load_hugging_face``, without weights."""
    from transformers import AutoConfig

    # FlashAttention is not there to be counted, and counts the same
    attention = "eager" if options.get("attn_implementation") == "eager" else "sdpa"
    dtype = options.get("torch_dtype", torch.float32)
    return model_class.from_config(AutoConfig.from_pretrained(path), torch_dtype=dtype, attn_implementation=attention)
