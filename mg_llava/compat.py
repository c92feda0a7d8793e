"""Two stacks from one source: what transformers 4.48 and 5, torch 2.5 and newer ones call differently.

No other file asks for versions. Importing this imports nothing of them, because torch itself does it: an entry point
of the group ``torch.backends`` calls :func:`await_xtuner` at the end of ``import torch``. So the command ``xtuner``
works as it is installed, in its own process and in those that it starts.
"""

import importlib
import importlib.util
import sys
from contextlib import AbstractContextManager
from importlib.abc import MetaPathFinder
from typing import Any

GONE = {"transformers.utils": ("is_safetensors_available",)}
"""Names that XTuner 0.2.0 imports and transformers 5 has no more; what each says is so: its answer is always yes."""


def await_xtuner() -> None:
    """Complete transformers when XTuner is imported, before it imports those names; costs nothing where it is not."""
    if not any(isinstance(finder, _XTunerFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _XTunerFinder())


class _XTunerFinder(MetaPathFinder):
    """Finds nothing itself; acts before the module is found that all of XTuner imports, and goes."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        """See :class:`MetaPathFinder`."""
        if fullname == "xtuner.utils":
            sys.meta_path.remove(self)
            complete_transformers()


def complete_transformers() -> None:
    """Add the names that are gone; without transformers 5, or without transformers, nothing."""
    for module, names in GONE.items():
        try:
            home = importlib.import_module(module)
        except ImportError:  # XTuner says so better
            return
        for name in names:
            if not hasattr(home, name):
                setattr(home, name, _always)


def _always() -> bool:
    return True


# -- transformers -----------------------------------------------------------------------------------------------------


def no_init_weights() -> AbstractContextManager[None]:
    """Inside, models of transformers are built without drawing their weights."""
    home = _first("transformers.initialization", "transformers.modeling_utils")
    return home.no_init_weights()


def vision_network(model: Any) -> Any:
    """What has the embeddings and the encoder of a CLIP or SigLIP vision model: since transformers 5 the model."""
    return getattr(model, "vision_model", model)


def _first(*modules: str) -> Any:
    """The first of some modules that is there."""
    for name in modules[:-1]:
        if importlib.util.find_spec(name) is not None:
            return importlib.import_module(name)
    return importlib.import_module(modules[-1])
