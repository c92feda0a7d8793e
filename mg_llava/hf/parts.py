"""Builds the system that a config describes, without weights; says what of a model is quantized."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from mg_llava.hf.configuration import MGLLaVAConfig
from mg_llava.hf.keys import PREFIX, all_parts
from mg_llava.models.interfaces import Encoder, Spec
from mg_llava.models.system import System
from mg_llava.models.weights.loading import Unfilled
from mg_llava.registry import MODELS
from mg_llava.safe_config import UntrustedConfigError, check_config

_SHORTHAND = ("load_in_4bit", "load_in_8bit")
_SOURCE = "the model's config.json"


def build_system(config: MGLLaVAConfig, llm: Any) -> Any:
    """The system of a config around an LLM; nothing is built but what is registered.

    Raises:
        ValueError: A type is unknown, or parts do not go together.
    """
    kind = MODELS.find(config.system)
    if not (isinstance(kind, type) and issubclass(kind, System)):
        raise UntrustedConfigError(f"{_SOURCE} names the system {config.system!r}, which is not registered")
    attention = config._attn_implementation_internal or "sdpa"
    parts: dict[str, Any] = {name: _build_part(part, attention) for name, part in config.parts.items()}
    return kind(**{"llm": llm, **parts})


def _build_part(part: Mapping[str, Any], attention: str) -> Any:
    """An encoder from its spec; the config of any other part."""
    checked = check_config(part, _SOURCE, MODELS)
    kind = MODELS.find(checked["type"])
    if not (isinstance(kind, type) and issubclass(kind, Encoder)):
        return checked
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in checked.items()
    }
    values |= {"type": kind.__name__, "architecture": {**checked["architecture"], "attention": attention}}
    return kind.from_spec(Spec(**values), torch.get_default_dtype())


@torch.no_grad()
def restore_buffers(system: System, config: MGLLaVAConfig) -> None:
    """Give tables that no folder holds, such as CLIP's position ids, the values that their modules are built with.

    Transformers 5 builds on the meta device and fills in those of its own models alone; the LLM is one.
    """
    lost = {name: buffer for name, buffer in system.named_buffers() if not name.startswith("llm.")}
    lost = {name: buffer for name, buffer in lost.items() if name not in nn.Module.state_dict(system)}
    if not lost:
        return
    with torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(config.text_config)
    unread = Unfilled(lambda tensor: isinstance(tensor, nn.Parameter))
    with torch.device("cpu"), unread, torch.random.fork_rng(devices=[]):
        made = dict(build_system(config, llm).named_buffers())
    for name, buffer in lost.items():
        buffer.copy_(made[name])


def spare_vision_parts(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Keep quantization away from all parts but the LLM, whose share of the memory is small.

    Args:
        kwargs: Arguments of ``from_pretrained``.

    Returns:
        The same, with the modules that are not to be quantized; a list that is given already is left as it is.
    """
    kwargs = dict(kwargs)
    spared = sorted({part.key for part in all_parts() if part.role != "llm"})
    quantization = copy.deepcopy(kwargs.pop("quantization_config", None))
    shorthand = {name: kwargs.pop(name) for name in _SHORTHAND if kwargs.get(name)}
    if quantization is None and shorthand:
        quantization, kwargs = BitsAndBytesConfig.from_dict(shorthand, return_unused_kwargs=True, **kwargs)
    elif isinstance(quantization, dict) and any(quantization.get(name) for name in _SHORTHAND):
        quantization = BitsAndBytesConfig.from_dict(quantization)
    for name in ("llm_int8_skip_modules", "modules_to_not_convert"):
        if hasattr(quantization, name) and getattr(quantization, name) is None:
            # releases look for these names anywhere, or at the beginning
            setattr(
                quantization, name, [*spared, *(PREFIX + key for key in spared), "lm_head", f"{PREFIX}llm.lm_head"]
            )
    return kwargs if quantization is None else {**kwargs, "quantization_config": quantization}
