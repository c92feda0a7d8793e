"""The model and its parts: tensors in, tensors out.

Registered classes and functions are attributes of this package, so that configs need not know their files.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    from mg_llava.registry import MODELS, registered  # not before it is needed: it loads mmengine and torch

    return registered(name, __name__, MODELS)
