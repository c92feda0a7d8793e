"""Positions of an LLM beyond those that it was made for: a training with longer rows teaches them."""

from typing import Any


def has_further_positions(config: Any) -> bool:
    """Whether there are any: rotary ones, which no scaling ties to their number.

    Args:
        config: The LLM's, as transformers has it.
    """
    rotary = getattr(config, "rope_parameters", None)  # transformers 5 alone has these, and no base beside them
    if rotary is None:
        return hasattr(config, "rope_theta") and not getattr(config, "rope_scaling", None)
    kinds = [rotary] if "rope_theta" in rotary else [kind or {} for kind in rotary.values()]  # by kind of layers
    return bool(kinds) and all(kind.get("rope_type", "default") == "default" for kind in kinds)


def take_positions(config: Any, length: int | None) -> bool:
    """Let an LLM have as many positions as the rows that it was trained with, where it has fewer and there are more.

    Args:
        config: The LLM's, which is changed.
        length: Of the rows; None where it is not known.

    Returns:
        Whether it was changed.
    """
    lacks = bool(length) and has_further_positions(config) and length > config.max_position_embeddings
    if lacks:
        config.max_position_embeddings = length
    return lacks
