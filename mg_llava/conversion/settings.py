"""What a conversion needs to know of a training config, read from the config file or from the checkpoint itself."""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mg_llava.conversion.files import ConversionError
from mg_llava.models.adapters.lora import LORA_DEFAULTS
from mg_llava.registry import MODELS, TRANSFORMS
from mg_llava.safe_config import UntrustedConfigError, check_config

KEYS = ("model", "tokenizer", "prompt_template", "picture_processor")
"""Keys of a training config that describe the model and how it is talked to."""


@dataclass(frozen=True)
class Settings:
    """The part of a training config that describes the model."""

    values: Mapping[str, Any]
    """The config's values by :data:`KEYS`; types are classes or their dotted names."""
    source: str

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


def _is_system(model: Any) -> bool:
    """Whether a config is that of a system of this package; those of the reference have classes of other names."""
    kind = model.get("type") if isinstance(model, Mapping) else None
    return hasattr(MODELS.find(kind.rpartition(".")[2]) if isinstance(kind, str) else kind, "parts")


def stored_settings(text: str, source: str) -> Settings | None:
    """Settings of the config that mmengine stored in a checkpoint; None for the reference's, and for none.

    Args:
        text: The config; it is read as data and never run.
        source: The checkpoint's path, for messages.

    Raises:
        ConversionError: It names something that is not built from data.
    """
    values = parse_config(text)
    if not _is_system(values.get("model")):
        return None
    stored_in = f"the config stored in {source}"
    try:
        known = check_config({key: values[key] for key in KEYS if key in values}, stored_in, MODELS, TRANSFORMS)
    except UntrustedConfigError as error:
        raise ConversionError(str(error)) from None
    return Settings(known, stored_in)


def config_settings(path: str | Path) -> Settings:
    """Settings of a config file, which is run, as every config is.

    Raises:
        ConversionError: If it is not there, or no training config of this project.
    """
    from mmengine.config import Config

    if not Path(path).is_file():
        raise ConversionError(f"config {path} does not exist")
    return settings_of(Config.fromfile(path), str(path))


def settings_of(config: Any, source: str) -> Settings:
    """Settings of a config object.

    Raises:
        ConversionError: If it lacks the model, or the model is another one.
    """
    model = config.get("model")
    if not _is_system(model):
        raise ConversionError(
            f"{source} is no training config of this project; its model must be MGLLaVA, or a system"
        )
    return Settings({key: config.get(key) for key in KEYS if config.get(key) is not None}, source)


def parse_config(text: str) -> dict[str, Any]:
    """Values of a dumped config that are literals, lists and ``dict(...)``; everything else is left out."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    values: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            try:
                values[node.targets[0].id] = _literal(node.value)
            except ValueError:
                continue
    return values


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Call):
        if not isinstance(node.func, ast.Name) or node.func.id != "dict" or node.args:
            raise ValueError("not a literal")
        return {str(item.arg): _literal(item.value) for item in node.keywords if item.arg is not None}
    if isinstance(node, ast.List):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Tuple):
        return tuple(_literal(item) for item in node.elts)
    if isinstance(node, ast.Dict):
        keys = [_literal(key) for key in node.keys if key is not None]
        return dict(zip(keys, (_literal(value) for value in node.values), strict=True))
    return ast.literal_eval(node)
