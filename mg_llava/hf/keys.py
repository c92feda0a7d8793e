"""Names of tensors: those of our checkpoints, and those in a Hugging Face folder. One to one, in both directions."""

from mg_llava.models.interfaces import Part
from mg_llava.models.system import System
from mg_llava.models.systems.mg_llava import MGLLaVA

PREFIX = "model."
"""The Hugging Face model holds ours under this name; beyond it the names are the same."""


def hf_key(name: str) -> str:
    """Name in a Hugging Face folder of a tensor of a system, such as ``projector.model.0.weight``.

    The encoders' tensors, which our checkpoints leave out, belong into the folder as well.

    Raises:
        ValueError: The name is none of the model's, or that of an adapter, which has to be merged first.
    """
    part, _, rest = name.partition(".")
    known = {part.key for part in all_parts()}
    if part not in known or not rest:
        raise ValueError(f"{name!r} is no tensor of the model; names begin with {', '.join(sorted(known))}")
    if rest.startswith("base_model.model.") or ".lora_" in rest:
        raise ValueError(f"{name!r} belongs to an adapter; merge it into the LLM first")
    return PREFIX + name


def own_key(name: str) -> str:
    """Name in our checkpoints of a tensor in a Hugging Face folder: the inverse of :func:`hf_key`.

    Raises:
        ValueError: The name is none of a folder of this model.
    """
    own = name.removeprefix(PREFIX)
    if own == name or hf_key(own) != name:
        raise ValueError(f"{name!r} is no tensor of an MG-LLaVA folder; its names begin with {PREFIX!r}")
    return own


def all_parts(kind: type[System] = System) -> set[Part]:
    """Rows of the tables of parts of MG-LLaVA, of a kind of systems, and of those derived from it."""
    return set(MGLLaVA.parts).union(kind.parts, *map(all_parts, kind.__subclasses__()))
