"""Child registries of mmengine's, so that ``type='mg_llava.X'`` works in any config without custom imports.

Looking a name up imports the modules of the registry's own rooms alone. A module in one of them registers what it
has; nothing else lists it.
"""

from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from mmengine.registry import DATA_SAMPLERS as MMENGINE_DATA_SAMPLERS
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import FUNCTIONS as MMENGINE_FUNCTIONS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import LOOPS as MMENGINE_LOOPS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import PARAM_SCHEDULERS as MMENGINE_PARAM_SCHEDULERS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import Registry as MMEngineRegistry

SCOPE = "mg_llava"


class Registry(MMEngineRegistry):
    """A registry that fills itself from rooms of this package, and answers unknown names with the known ones.

    Args:
        name: Of what is registered, for messages.
        *rooms: Modules, or packages whose modules (below them, too) are imported at the first look-up.
        parent: mmengine's registry of the same kind.
    """

    def __init__(self, name: str, *rooms: str, parent: MMEngineRegistry | None = None) -> None:
        super().__init__(name, parent=parent, scope=SCOPE, locations=[m for room in rooms for m in _modules(room)])

    def find(self, name: str) -> Any:
        """What is registered here under a name, with or without the scope before it; else None."""
        self.import_from_location()
        return self.module_dict.get(name.removeprefix(f"{SCOPE}."))

    def get(self, key: str) -> Any:
        """As mmengine's, but that an unknown name is an error.

        Raises:
            KeyError: Nothing is found under the name; names those that are known and the nearest one.
        """
        found = self.find(key)
        if found is None:
            try:
                found = super().get(key)
            except RuntimeError:  # of mmengine, for a path that cannot be imported
                found = None
        if found is None:
            raise KeyError(self.unknown(key))
        return found

    def unknown(self, name: str) -> str:
        """Message for a name that is not known."""
        self.import_from_location()
        near = get_close_matches(name.removeprefix(f"{SCOPE}."), self.module_dict, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"{name!r} is no known {self.name}{hint} (known: {', '.join(sorted(self.module_dict))})"


def registered(name: str, package: str, *registries: Registry) -> Any:
    """A class or function that a module of a package registers; for the package's ``__getattr__``.

    Args:
        name: Its name.
        package: Name of the package.
        *registries: Where to look.

    Raises:
        AttributeError: Nothing is registered under the name.
    """
    # private names and modules are asked for by the import system itself, before anything is registered
    if not name.startswith("_") and name not in _names_below(package):
        for registry in registries:
            found = registry.find(name)
            if found is not None:
                return found
    raise AttributeError(f"module {package!r} has no attribute {name!r}")


@cache
def _names_below(package: str) -> set[str]:
    """First names of the modules and packages below a package."""
    return {module.removeprefix(f"{package}.").split(".")[0] for module in _modules(package)}


def _modules(room: str) -> list[str]:
    """Names of a module, or of all modules below a package of this project."""
    place = Path(__file__).parent.joinpath(*room.split(".")[1:])
    if not place.is_dir():
        return [room]
    files = sorted(place.rglob("*.py"))
    below = [file.relative_to(place).with_suffix("").parts for file in files if file.name != "__init__.py"]
    return [".".join([room, *parts]) for parts in below]


MODELS = Registry("model part", "mg_llava.models", parent=MMENGINE_MODELS)
DATASETS = Registry(
    "data set",
    "mg_llava.data.dataset",
    "mg_llava.data.mixture",
    "mg_llava.evaluation.xtuner_loop",
    parent=MMENGINE_DATASETS,
)
DATA_SAMPLERS = Registry("data sampler", "mg_llava.data.samplers", parent=MMENGINE_DATA_SAMPLERS)
FUNCTIONS = Registry("function", "mg_llava.data.collate", parent=MMENGINE_FUNCTIONS)
TRANSFORMS = Registry(
    "transform",
    "mg_llava.data.pictures.processor",
    "mg_llava.data.boxes.augment",
    "mg_llava.data.text.perception",
    "mg_llava.data.text.pieces",
    parent=MMENGINE_TRANSFORMS,
)
HOOKS = Registry("hook", "mg_llava.engine", parent=MMENGINE_HOOKS)
LOOPS = Registry("loop", "mg_llava.engine.resume", parent=MMENGINE_LOOPS)
PARAM_SCHEDULERS = Registry("parameter scheduler", "mg_llava.engine.schedulers", parent=MMENGINE_PARAM_SCHEDULERS)
METRICS = Registry("metric", "mg_llava.evaluation.xtuner_loop", parent=MMENGINE_METRICS)
DETECTORS = Registry("detector", "mg_llava.detection")
TAGGERS = Registry("tagger", "mg_llava.detection")
PROPOSERS = Registry("proposer", "mg_llava.detection")
EXPORTERS = Registry("exporter", "mg_llava.conversion.pth_to_hf")
