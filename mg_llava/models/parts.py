"""Building the parts of a system, and saying which of them do not go together."""

import inspect
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from mg_llava.models.interfaces import Encoder, Fusion, ObjectReader, Spec
from mg_llava.registry import MODELS

PartOrConfig = nn.Module | dict[str, Any]

STEPS: dict[type, tuple[str, ...]] = {ObjectReader: ("pool", "project")}
"""Methods that a class of a kind must write; ``forward`` for other kinds."""

SIZES: dict[type, str] = {Fusion: "out_channels", ObjectReader: "in_channels"}
"""Attribute that an object of a kind must have."""


def build_part(part: PartOrConfig | None, **sizes: Any) -> Any:
    """Build a part from its config, with sizes that follow from other parts; modules and ``None`` pass.

    Raises:
        KeyError: Its type is unknown; names those that are known and the nearest one.
        ValueError: Its config has an argument that it does not know, or it does not say a size that others need.
    """
    if isinstance(part, Mapping):
        raise_together(argument_faults(part))
        part = MODELS.build({**sizes, **part, "type": kind_of(part)})
    for kind, size in SIZES.items():
        if isinstance(part, kind) and not hasattr(part, size):
            raise ValueError(f"{type(part).__name__} is a {kind.__name__} that sets no {size}; set it in __init__")
    return part


def try_part(name: str, part: Any, **sizes: Any) -> tuple[Any, list[str]]:
    """Build a part without weights, to find what is impossible in its config before any weights are read.

    The sizes win over those that the config states, and arguments that its constructor does not know are left out:
    both are for :func:`check_part` to name.

    Args:
        name: Its name in the config.
        part: Built, its config, or None.
        **sizes: Arguments that follow from other parts, or stand in for them.

    Returns:
        The part, None where it cannot be built; and why not. Nothing is said of what fails for another reason than its
        arguments: a part of a user may read values that are not there yet.
    """
    if isinstance(part, Mapping):
        without = {*sizes, *_unknown(part)}
        part = {key: value for key, value in part.items() if key not in without}
    try:
        # no number is drawn for it: the weights that come after are those that they would be without it
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return build_part(part, **sizes), []
    except (ValueError, TypeError) as error:
        return None, [f"{name}: {error}"]
    except (RuntimeError, AssertionError):
        return None, []


def argument_faults(part: Any) -> list[str]:
    """A sentence for each argument of a part's config that its constructor does not know."""
    faults, unknown = [], _unknown(part)
    known = list(inspect.signature(kind_of(part)).parameters) if unknown else []
    for name in unknown:
        near = get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        faults.append(f"{kind_of(part).__name__} has no argument {name}{hint} (known: {', '.join(known)})")
    return faults


def _unknown(part: Any) -> list[str]:
    """Arguments of a part's config that its constructor does not know."""
    if not isinstance(part, Mapping):
        return []
    known = inspect.signature(kind_of(part)).parameters
    if any(one.kind is one.VAR_KEYWORD for one in known.values()):
        return []
    return sorted(key for key in part if key not in known and key != "type" and not key.startswith("_"))


def taken(part: Any, **sizes: Any) -> dict[str, Any]:
    """Those of the sizes that the constructor of a part has arguments for."""
    known = {} if part is None else inspect.signature(kind_of(part)).parameters
    return {name: size for name, size in sizes.items() if name in known}


def kind_of(part: Any) -> Any:
    """The class, or function, of a part that is built or given as a config.

    Raises:
        KeyError: Its type is unknown; names those that are known and the nearest one.
        ValueError: Its config has no type.
    """
    if not isinstance(part, Mapping):
        return type(part)
    kind = part.get("type")
    if not isinstance(kind, str) and not callable(kind):
        raise ValueError(f"the type of a part is {kind!r}, in {dict(part)}; it is a registered name or a class")
    # a plain name is ours, whatever scope a runner has made the default
    return MODELS.get(kind) if isinstance(kind, str) else kind


def spec_of(name: str, part: Any) -> Any:
    """The spec of an encoder that is built or given as a config, found without its weights; None for none.

    Raises:
        ValueError: It is no encoder.
        FileNotFoundError: Its folder and published sizes are absent.
    """
    if part is None:
        return None
    kind = kind_of(part)
    if not (isinstance(kind, type) and issubclass(kind, Encoder)):
        raise ValueError(
            f"{name} is a {getattr(kind, '__name__', kind)}, which is no encoder; derive it from "
            "mg_llava.models.encoders.base.VisionEncoder, so that it is frozen, described and saved as encoders are"
        )
    spec: Spec = kind.describe(part) if isinstance(part, Mapping) else part.spec
    return spec


def check_part(name: str, part: Any, kind: type[nn.Module], sizes: Mapping[str, Any]) -> list[str]:
    """Faults of a part: of another kind, or with sizes that other parts have otherwise.

    Args:
        name: Its name in the config.
        part: Built, its config, or None.
        kind: The interface that it must have.
        sizes: Arguments that follow from other parts.
    """
    if part is None:
        return []
    own = kind_of(part)
    if not is_of(part, kind):
        there = getattr(own, "__name__", own)
        return [f"{name} is a {there}; derive it from mg_llava.models.interfaces.{kind.__name__}"]
    lacking = [step for step in STEPS.get(kind, ("forward",)) if getattr(own, step) is getattr(kind, step)]
    if lacking:
        there = f"{own.__name__} does not write {' and '.join(lacking)}"
        return [f"{name}: {there}; see mg_llava.models.interfaces.{kind.__name__}"]
    return [f"{name}: {fault}" for fault in argument_faults(part)] + size_faults(name, part, sizes)


def size_faults(name: str, part: Any, sizes: Mapping[str, Any]) -> list[str]:
    """A sentence for each size of a part, in its config or an attribute of a built one, that others have otherwise.

    Args:
        name: Its name in the config.
        part: Built, its config, or None.
        sizes: Arguments that follow from other parts.
    """
    stated, fix = stated_by(part), "leave it out" if isinstance(part, Mapping) else "give its config instead"
    wrong = [key for key, size in sizes.items() if key in stated and _plain(stated[key]) != _plain(size)]
    return [f"{name} has {key}={stated[key]}, but the other parts give {sizes[key]}; {fix}" for key in wrong]


def stated_by(part: Any) -> Mapping[str, Any]:
    """The arguments that a config states, or the attributes of a built part; nothing of None."""
    return part if isinstance(part, Mapping) else getattr(part, "__dict__", {})


def is_of(part: Any, kind: type) -> bool:
    """Whether a part, built or given as a config, is of a class; a config may name a function, which is of none."""
    own = kind_of(part)
    return isinstance(own, type) and issubclass(own, kind)


def raise_together(problems: Sequence[str]) -> None:
    """Raise all problems in one message, if there are any.

    Raises:
        ValueError: There are.
    """
    if problems:
        raise ValueError("these parts do not go together: " + "; ".join(problems))


def for_any_machine(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a system without what only its training needs: a GPU, a package or a compiler, perhaps."""
    return {key: value for key, value in settings.items() if key not in kind_of(settings).training_only}


def _plain(size: Any) -> Any:
    return list(size) if isinstance(size, tuple) else size
