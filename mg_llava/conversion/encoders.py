"""Weights and widths of a model's encoders, as their classes tell them."""

from collections.abc import Mapping
from typing import Any

from mg_llava.models.parts import kind_of
from mg_llava.models.weights.stored import TensorMap


def encoder_tensors(prefix: str, config: Mapping[str, Any]) -> TensorMap:
    """Weights of one encoder under ``prefix``, unread where its files allow it.

    Args:
        prefix: ``visual_encoder`` or ``visual_encoder_aux``.
        config: The encoder's config.

    Raises:
        FileNotFoundError: If a file is absent.
        ValueError: If it is damaged or of another kind.
    """
    return {f"{prefix}.{name}": tensor for name, tensor in kind_of(config).map_weights(config).items()}


def encoder_sizes(model: Mapping[str, Any]) -> dict[str, int]:
    """Widths that a model's encoders have, by the names that the layout has for them.

    Args:
        model: The model's config.

    Returns:
        ``low``, ``high`` (last stage) and ``stages`` (all that the box projector reads), as far as they are known.

    Raises:
        ValueError: If a folder's files are damaged.
    """
    sizes: dict[str, int] = {}
    low, high = model.get("low_res_encoder") or {}, model.get("high_res_encoder") or {}
    try:
        if low:
            sizes["low"] = kind_of(low).describe(low).channels
        if high:
            channels = kind_of(high).describe(high).stage_channels
            chosen = (model.get("box_projector") or {}).get("stages") or range(len(channels))
            sizes |= {"high": channels[-1], "stages": sum(channels[index] for index in chosen)}
    except FileNotFoundError:
        pass  # the checkpoint has to tell them
    return sizes
