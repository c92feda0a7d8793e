"""Configs that come as data: stored in a checkpoint, in a ``config.json``, in a detector's JSON file.

Only what this package registers, tokenizers of transformers and plain values are taken from them. Code comes from a
config file that the user names, and from nothing else.
"""

import re
from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log

from mg_llava.registry import SCOPE

_TOKENIZER = re.compile(r"transformers\.(?:[\w.]+\.)?(\w*Tokenizer(?:Fast)?)(?:\.from_pretrained)?")
_TRUST = "trust_remote_code"


class UntrustedConfigError(ValueError):
    """A config that comes as data and names something that is not built from data."""


def check_config(value: Any, source: str, *registries: Any) -> Any:
    """A copy of a config of which nothing but known things can be built.

    Every ``type`` is replaced by the registered name of the class or function that its last component names, so that
    dotted paths of before a move of files are understood. ``trust_remote_code`` is left out.

    Args:
        value: The config.
        source: Where it comes from, for messages.
        *registries: Registries of this package in which its types are looked up.

    Raises:
        UntrustedConfigError: A type is not registered, a value is not plain, or it is nested too deeply; nothing
            has been called.
    """
    try:
        return _checked(value, source, *registries)
    except RecursionError as error:
        raise UntrustedConfigError(f"{source} is nested too deeply to be a config") from error


def _checked(value: Any, source: str, *registries: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            str(key): (_known_type if key == "type" else _checked)(item, source, *registries)
            for key, item in value.items()
            if not (key == _TRUST and _leave_out(item, source))
        }
    if isinstance(value, list | tuple):
        return type(value)(_checked(item, source, *registries) for item in value)
    if value is None or isinstance(value, str | int | float):
        return value
    raise UntrustedConfigError(f"{source} holds a {type(value).__name__}; only plain values are read from it")


def _leave_out(trust: Any, source: str) -> bool:
    if trust:
        print_log(f"{source} asks for {_TRUST}, which only a config file can allow: left out", logger="current")
    return True


def _known_type(kind: Any, source: str, *registries: Any) -> str:
    if isinstance(kind, str):
        tokenizer = _TOKENIZER.fullmatch(kind)
        if tokenizer:
            return f"transformers.{tokenizer[1]}"
        name = kind.rpartition(".")[2]
        if any(registry.find(name) is not None for registry in registries):
            return f"{SCOPE}.{name}"
    raise UntrustedConfigError(
        f"{source} names {kind!r}, which is not built from data: known are the classes that this package registers, "
        "and transformers.AutoTokenizer. If it is a class of yours, give the training config with --config, or import "
        "the module that registers it first"
    )
