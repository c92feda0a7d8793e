"""Settings of a training config that conversions need, read from the config file or from the checkpoint itself."""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mg_llava.conversion.files import ConversionError
from mg_llava.data.config import ConfigError, load_config, trained_length
from mg_llava.models.adapters.lora import LORA_DEFAULTS
from mg_llava.registry import MODELS, TRANSFORMS
from mg_llava.safe_config import UntrustedConfigError, check_config

_KEYS = ("model", "tokenizer", "prompt_template", "picture_processor")
"""Keys of a training config that describe the model and how it is talked to."""
_LOADER = "train_dataloader"
_READ = (*_KEYS, _LOADER)


@dataclass(frozen=True)
class ModelSettings:
    """The part of a training config that describes the model; types are classes or their names."""

    values: Mapping[str, Any]

    @property
    def model(self) -> Mapping[str, Any]:
        """The model's config."""
        return self.values["model"]

    @property
    def llm(self) -> Mapping[str, Any]:
        """The LLM's config."""
        return self.model.get("llm") or {}

    @property
    def lora(self) -> dict[str, Any]:
        """Arguments of ``peft.LoraConfig`` that the config stands for."""
        return LORA_DEFAULTS | dict(self.llm.get("lora") or {})


def config_settings(path: str | Path) -> ModelSettings:
    """Settings of a config file, which is run, as every config is.

    Raises:
        ConversionError: It is not there, or no training config of this project.
    """
    try:
        config = load_config(path)
    except (FileNotFoundError, ConfigError) as error:
        raise ConversionError(str(error)) from error
    return settings_of(config, str(path))


def settings_of(config: Any, source: str) -> ModelSettings:
    """Settings of a config object.

    Raises:
        ConversionError: It lacks the model, or the model is another one.
    """
    if not _is_system(config.get("model")):
        raise ConversionError(
            f"{source} is no training config of this project; its model must be MGLLaVA, or a system"
        )
    values = {key: config.get(key) for key in _KEYS if config.get(key) is not None}
    return ModelSettings(values | _rows(trained_length(config)))


def stored_settings(text: str, source: str) -> ModelSettings | None:
    """Settings of the config that mmengine stored in a checkpoint; None for the reference's, and for none.

    Args:
        text: The config; it is read as data and never run. What is neither a literal nor ``dict(...)`` is left out.
        source: The checkpoint's path, for messages.

    Raises:
        ConversionError: It names something that is not built from data.
    """
    values: dict[str, Any] = {}
    try:
        body = _Dicts().visit(ast.parse(text)).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    for node in body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in _READ:
            try:
                values[node.targets[0].id] = ast.literal_eval(node.value)
            except (ValueError, TypeError, RecursionError, MemoryError):
                continue
    rows = _rows(trained_length(values))  # no more of the data, which may be of any kinds
    values.pop(_LOADER, None)
    if not _is_system(values.get("model")):
        return None
    try:
        return ModelSettings(check_config(values | rows, f"the config stored in {source}", MODELS, TRANSFORMS))
    except UntrustedConfigError as error:
        raise ConversionError(str(error)) from None


class _Dicts(ast.NodeTransformer):
    """Turns ``dict(a=1)`` into ``{"a": 1}``."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        names = [item.arg for item in node.keywords]
        if not isinstance(node.func, ast.Name) or node.func.id != "dict" or node.args or None in names:
            return node
        return ast.Dict([ast.Constant(name) for name in names], [item.value for item in node.keywords])


def _rows(length: int | None) -> dict[str, Any]:
    """What a training config says of the length of its rows, where it says it."""
    return {} if length is None else {_LOADER: {"dataset": {"budget": {"context_length": length}}}}


def _is_system(model: Any) -> bool:
    """True for a config of a system of this package; those of the reference have classes of other names."""
    kind = model.get("type") if isinstance(model, Mapping) else None
    return hasattr(MODELS.find(kind.rpartition(".")[2]) if isinstance(kind, str) else kind, "parts")
