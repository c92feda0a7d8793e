"""Where boxes come from: taggers, detectors, and the pipeline of both for one picture or for millions.

Registered classes and functions are attributes of this package, so that configs need not know their files.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    from mg_llava.registry import (  # not before it is needed: it loads mmengine and torch
        DETECTORS,
        PROPOSERS,
        TAGGERS,
        registered,
    )

    return registered(name, __name__, DETECTORS, PROPOSERS, TAGGERS)
