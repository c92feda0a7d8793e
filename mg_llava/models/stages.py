"""The parts that a stage trains: the one place that says so. What trains is saved, and what is saved loads."""

from collections.abc import Sequence
from typing import Any

from mmengine.logging import print_log
from torch import nn


def set_trained(system: Any, trains: Sequence[str] | None) -> None:
    """Switch the gradients of all parts, and log how much of each is trained.

    Args:
        system: A :class:`mg_llava.models.system.System` with its parts built.
        trains: Names of the parts in the config, such as ``["fusion", "projector"]``. None trains every connector, and
            of the LLM what its ``tuning`` says; encoders are trained only where they are named.

    Raises:
        ValueError: A name is of no part that the system has; or a parameter would train although it belongs to no
            part, so that no checkpoint would hold it.
    """
    here = {part.config: part for part in system.parts if getattr(system, part.key, None) is not None}
    unknown = sorted(set(trains or ()) - set(here))
    if unknown:
        raise ValueError(f"trains names {', '.join(unknown)}; the parts of this system are {', '.join(here)}")
    for name, part in here.items():
        module = getattr(system, part.key)
        is_trained = part.role != "encoder" if trains is None else name in trains
        if part.role == "encoder":
            module.is_trained = is_trained
        if part.role != "llm" or not is_trained:
            module.requires_grad_(is_trained)
    keys = {part.key for part in system.parts}
    lost = [name for name, p in system.named_parameters() if p.requires_grad and name.split(".", 1)[0] not in keys]
    if lost:
        raise ValueError(
            f"{len(lost)} parameters would train but are in no checkpoint, e.g. {lost[0]}: they belong to no part of "
            f"{type(system).__name__}; add their module to its table of parts"
        )
    if any(parameter.is_meta for parameter in system.parameters()):
        return  # nothing is going to be trained
    for name, part in here.items():
        sizes = [(_numel(p), p.requires_grad) for p in getattr(system, part.key).parameters()]
        trained = sum(size for size, on in sizes if on)
        print_log(f"{name}: {trained:,} of {sum(size for size, _ in sizes):,} parameters trained", logger="current")


def _numel(parameter: nn.Parameter) -> int:
    return getattr(parameter, "ds_numel", parameter.numel())
