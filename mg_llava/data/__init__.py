"""Records, pictures and boxes: everything between the files and the batch that the model takes.

Registered classes and functions are attributes of this package, so that configs need not know their files.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    from mg_llava.registry import (  # not before it is needed: it loads mmengine and torch
        DATA_SAMPLERS,
        DATASETS,
        FUNCTIONS,
        TRANSFORMS,
        registered,
    )

    return registered(name, __name__, DATA_SAMPLERS, DATASETS, FUNCTIONS, TRANSFORMS)
