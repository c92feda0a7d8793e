"""Systems without weights: their shapes, and how many tokens a placeholder stands for."""

from collections.abc import Mapping
from typing import Any

import torch

from mg_llava.batch import TokenCount
from mg_llava.compat import whole_parameters
from mg_llava.models.parts import build_part
from mg_llava.registry import MODELS


def build_empty(settings: Mapping[str, Any], with_llm: bool = True) -> Any:
    """The system of a config on the meta device; no weights are read.

    Args:
        settings: The config's ``model``.
        with_llm: Whether to build the LLM; connectors are as wide as one channel without.

    Raises:
        FileNotFoundError: Nothing says how large a part is.
        ValueError: The parts do not go together, with every reason in one message.
    """
    own: dict[str, Any] = {"pretrained_pth": None, "compile_vision": False}
    with torch.device("meta"), whole_parameters():
        return build_part({**settings, **own} if with_llm else {**settings, **own, "llm": None, "trains": None})


@MODELS.register_module()
def count_tokens(model: Mapping[str, Any]) -> TokenCount:
    """Tokens of a placeholder in the system of a config, for data that is read before the system is built.

    Args:
        model: The config's ``model``.
    """
    return build_empty(model, with_llm=False).token_count
