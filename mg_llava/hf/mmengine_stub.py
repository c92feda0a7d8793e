"""Stands for mmengine where its training is not needed: in folders that bring their own copy of the model's code."""

import logging
from collections.abc import Callable
from typing import Any

from torch import nn


class BaseModel(nn.Module):
    """A module with the arguments of mmengine's class of this name."""

    def __init__(self, data_preprocessor: Any = None) -> None:
        super().__init__()


class Registry:
    """Classes by name, built from configs."""

    def __init__(self) -> None:
        self.module_dict: dict[str, Any] = {}

    def register_module(self) -> Callable[[Any], Any]:
        """A decorator that registers a class or function under its name."""

        def register(item: Any) -> Any:
            self.module_dict[item.__name__] = item
            return item

        return register

    def find(self, name: str) -> Any:
        """The class or function under a name, with or without a module before it; else None."""
        return self.module_dict.get(name.rsplit(".", 1)[-1])

    get = find

    def build(self, config: dict[str, Any]) -> Any:
        """Call what ``type`` names with the rest of a config.

        Raises:
            KeyError: Nothing is registered under this name.
        """
        arguments = dict(config)
        kind = arguments.pop("type")
        found = self.get(kind) if isinstance(kind, str) else kind
        if found is None:
            raise KeyError(
                f"{kind!r} is not part of this folder's code; it has: {', '.join(sorted(self.module_dict))}"
            )
        return found(**arguments)


SCOPE = "mg_llava"
MODELS = Registry()
DATASETS = Registry()
DATA_SAMPLERS = Registry()
EXPORTERS = Registry()
PROPOSERS = Registry()
FUNCTIONS = Registry()
TRANSFORMS = Registry()


def print_log(message: str, logger: Any = None, level: int = logging.INFO) -> None:
    """Log a message, as mmengine's function of this name."""
    logging.getLogger("mg_llava").log(level, message)
