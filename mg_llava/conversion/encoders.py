"""Weights of the frozen encoders, under the names they have in the model, from the folders a config names."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mg_llava.conversion.folders import find_folder, map_folder, read_config
from mg_llava.models.weights.loading import find_weights
from mg_llava.models.weights.stored import TensorMap, map_state_dict, map_weights

_FIRST_BLOCK = re.compile(r"vision_stages\.(\d+)\.blocks\.0\.conv_dw\.weight")
_CLIP_LAYER = re.compile(r"encoder\.layers\.(\d+)\.")


def encoder_tensors(prefix: str, config: Mapping[str, Any]) -> TensorMap:
    """Weights of one encoder under ``prefix``.

    CLIP, SigLIP and OpenCLIP folders are mapped, not loaded; other encoders are built, in float32, and kept.

    Args:
        prefix: ``visual_encoder`` or ``visual_encoder_aux``.
        config: The encoder's config.

    Raises:
        FileNotFoundError: If a file is absent.
        ValueError: If it is damaged or of another kind.
    """
    kind, path = _kind(config), config.get("path")
    if kind == "CLIPEncoder":
        tensors = _clip(find_folder(str(path)), int(config.get("layer", -2)))
    elif kind == "OpenCLIPConvNeXtEncoder" and Path(str(path)).is_dir():
        tensors = _open_clip(Path(str(path)))
    else:
        from mg_llava.registry import MODELS

        tensors = map_state_dict(MODELS.build({**config, "dtype": "float32"}).state_dict())
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def encoder_sizes(model: Mapping[str, Any]) -> dict[str, int]:
    """Widths that the folders of a model's encoders tell, by the names that the layout has for them.

    Args:
        model: The model's config.

    Returns:
        ``low``, ``high`` (last stage) and ``stages`` (all that the box projector reads), as far as the folders are
        here.

    Raises:
        ValueError: If a folder's files are damaged.
    """
    sizes: dict[str, int] = {}
    low, high = model.get("low_res_encoder") or {}, model.get("high_res_encoder") or {}
    if low and _kind(low) == "CLIPEncoder" and Path(str(low.get("path"))).is_dir():
        config = read_config(Path(str(low["path"])))
        width = config.get("vision_config", config).get("hidden_size")
        sizes |= {"low": int(width)} if width else {}
    if high and _kind(high) == "OpenCLIPConvNeXtEncoder" and Path(str(high.get("path"))).is_dir():
        channels = _stage_channels(_open_clip(Path(str(high["path"]))))
        chosen = (model.get("box_projector") or {}).get("stages") or range(len(channels))
        sizes |= {"high": channels[-1], "stages": sum(channels[index] for index in chosen)}
    return sizes


def _kind(config: Mapping[str, Any]) -> str:
    kind = config["type"] if isinstance(config["type"], str) else config["type"].__name__
    return kind.rsplit(".", 1)[-1]


def _stage_channels(tensors: TensorMap) -> list[int]:
    """Channels of each stage of a ConvNeXt, from the depthwise convolution of its first block."""
    found = {int(match[1]): t.shape[0] for name, t in tensors.items() if (match := _FIRST_BLOCK.fullmatch(name))}
    return [found[number] for number in sorted(found)]


def _clip(folder: Path, layer: int) -> TensorMap:
    config = read_config(folder)
    config = config.get("vision_config", config)
    depth = int(config.get("num_hidden_layers", 12))
    keep = layer if layer >= 0 else depth + 1 + layer
    tensors: TensorMap = {}
    for key, tensor in map_folder(folder).items():
        name = key.removeprefix("vision_model.")
        match = _CLIP_LAYER.match(name)
        if name == key or (match and int(match[1]) >= keep) or name.endswith("position_ids"):
            continue
        if match or name.startswith("embeddings."):
            tensors[name] = tensor
        elif name.startswith("pre_layrnorm."):
            tensors[name.replace("pre_layrnorm.", "pre_norm.")] = tensor
    return tensors


def _open_clip(folder: Path) -> TensorMap:
    weights, _ = map_weights(find_weights(folder, ("open_clip_model", "open_clip_pytorch_model")))
    trunk = "visual.trunk."
    names = {key.removeprefix("module."): tensor for key, tensor in weights.items()}
    return {
        f"vision_{name.removeprefix(trunk)}": tensor
        for name, tensor in names.items()
        if name.startswith((f"{trunk}stem.", f"{trunk}stages."))
    }
