"""What a conversion needs to know of a training config, read from the config file or from the checkpoint itself."""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mg_llava.conversion.files import ConversionError
from mg_llava.conversion.layout import Expected
from mg_llava.models.llm import LORA_DEFAULTS
from mg_llava.registry import MODELS, TRANSFORMS
from mg_llava.safe_config import UntrustedConfigError, check_config

KEYS = ("model", "tokenizer", "prompt_template", "picture_processor")
"""Keys of a training config that describe the model and how it is talked to."""

_REFERENCE_KINDS = {
    "fusion": "ConvGateFusion",
    "box_projector": "RoIAlignBoxProjector",
    "projector": "MLPProjector",
}
_PART_NAMES = {"fusion": "fuse_module", "box_projector": "bbox_projector", "projector": "projector"}


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

    def expected(self) -> Expected:
        """Parts that a checkpoint of this model has outside the LLM."""
        parts, plain, depths = set(), set(), {}
        for name, kind in _REFERENCE_KINDS.items():
            config = self.model.get(name)
            if config is None:
                continue
            part = _PART_NAMES[name]
            parts.add(part)
            if _class_name(config) != kind:
                plain.add(part)
            depths[part] = config.get("depth", 2)
        return Expected(frozenset(parts), frozenset(plain), depths)


def _class_name(config: Mapping[str, Any]) -> str:
    kind = config.get("type")
    return kind.rsplit(".", 1)[-1] if isinstance(kind, str) else getattr(kind, "__name__", "")


def read_settings(config: str | Path | None, stored: str | None, source: str) -> Settings | None:
    """Settings of a config file, else those that mmengine stored in the checkpoint, else None.

    Args:
        config: A training config; it is run, as every config is.
        stored: Text of the config in the checkpoint; it is read as data and never run.
        source: The checkpoint's path, for messages.

    Raises:
        ConversionError: If the config is no training config of this project.
    """
    if config is not None:
        return _from_config(config)
    values = parse_config(stored or "")
    model = values.get("model")
    if not isinstance(model, dict) or _class_name(model) != "MGLLaVA":  # the reference's configs have other classes
        return None
    stored_in = f"the config stored in {source}"
    try:
        known = check_config({key: values[key] for key in KEYS if key in values}, stored_in, MODELS, TRANSFORMS)
    except UntrustedConfigError as error:
        raise ConversionError(str(error)) from None
    return Settings(known, stored_in)


def _from_config(path: str | Path) -> Settings:
    from mmengine.config import Config

    if not Path(path).is_file():
        raise ConversionError(f"config {path} does not exist")
    config = Config.fromfile(path)
    return settings_of(config, str(path))


def settings_of(config: Any, source: str) -> Settings:
    """Settings of a config object.

    Raises:
        ConversionError: If it lacks the model, or the model is another one.
    """
    model = config.get("model")
    if model is None or _class_name(model) != "MGLLaVA":
        raise ConversionError(f"{source} is no training config of MG-LLaVA; its model must be MGLLaVA")
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
