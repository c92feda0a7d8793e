"""Around the training loop: hooks, exact resume, launching without a GPU.

Registered classes and functions are attributes of this package, so that configs need not know their files.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    from mg_llava.registry import (  # not before it is needed: it loads mmengine and torch
        HOOKS,
        LOOPS,
        PARAM_SCHEDULERS,
        registered,
    )

    return registered(name, __name__, HOOKS, LOOPS, PARAM_SCHEDULERS)
