"""Options of a config that nothing reads: misspelt, or of another class."""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from mmengine.utils import get_object_from_string
from torch.utils.data import DataLoader

from mg_llava.data.config import MIXED
from mg_llava.data.dataset import SETTINGS, LLaVADataset
from mg_llava.data.mixture import MixtureDataset
from mg_llava.data.settings import GROUPS, unknown_settings
from mg_llava.registry import DATA_SAMPLERS, DATASETS, FUNCTIONS, HOOKS, PARAM_SCHEDULERS, SCOPE, TRANSFORMS

_BUILDERS = {"type", "_scope_", "priority", "convert_to_iter_based"}
"""Keys that mmengine's builders take out before they call the class."""
_LOADERS = {"num_batch_per_epoch"}
_REGISTRIES = (DATASETS, DATA_SAMPLERS, FUNCTIONS, HOOKS, PARAM_SCHEDULERS, TRANSFORMS)


def unknown_options(config: Mapping[str, Any]) -> Iterator[str]:
    """One sentence for each option that the class or function beside it does not take.

    The model's are left out: they are said where it is built.
    """
    for key, value in config.items():
        if key.endswith("_dataloader") and isinstance(value, Mapping):
            yield from _unknown(key, DataLoader, set(value) - _LOADERS)
        if key != "model":
            yield from _look(key, value)


def _look(path: str, value: Any) -> Iterator[str]:
    if isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _look(f"{path}.{number}", item)
    elif isinstance(value, Mapping):
        kind = _find(value.get("type"))
        if kind is MixtureDataset:
            yield from _unknown_data(path, {name: part for name, part in value.items() if name != MIXED})
            for number, source in enumerate(value.get(MIXED, ())):
                if isinstance(source, Mapping) and "type" not in source:
                    yield from _unknown_data(f"{path}.{MIXED}.{number}", source)
        elif kind is LLaVADataset:
            yield from _unknown_data(path, value)
        elif kind is not None:
            yield from _unknown(path, kind, set(value) - _BUILDERS)
        for key, item in value.items():
            yield from _look(f"{path}.{key}", item)


def _find(kind: Any) -> Any:
    """The class or function of a ``type``; None where it is not found so easily."""
    if not isinstance(kind, str):
        return kind
    if kind.startswith(f"{SCOPE}.") and kind.count(".") == 1:
        return next((found for registry in _REGISTRIES if (found := registry.find(kind)) is not None), None)
    try:
        return get_object_from_string(kind)
    except (ImportError, AttributeError, ValueError):
        return None


def _unknown_data(path: str, settings: Mapping[str, Any]) -> Iterator[str]:
    """Unknown settings of a data set, those of its groups too."""
    yield from unknown_settings(set(settings) - _BUILDERS, SETTINGS, path)
    for name, group in GROUPS.items():
        if isinstance(settings.get(name), Mapping):
            known = [field.name for field in fields(group)]
            yield from unknown_settings(set(settings[name]) - _BUILDERS, known, f"{path}.{name}")


def _unknown(path: str, kind: Any, given: set[str]) -> Iterator[str]:
    try:
        known = inspect.signature(kind).parameters
    except (TypeError, ValueError):
        return
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        return
    for name in sorted(given - set(known)):
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        yield f"{path}.{name} is no option of {kind.__name__}; {hint}"
