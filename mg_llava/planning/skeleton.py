"""The model of a config on the meta device: every part with its shapes and what of it is trained, but no weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from mg_llava.models.architectures import find_architecture, sizes_from
from mg_llava.models.counting import build_empty
from mg_llava.models.parts import kind_of
from mg_llava.models.recompute import Checkpointing


@dataclass
class Skeleton:
    """A model without weights, and how its config wants it trained.

    Attributes:
        model: The model on the meta device.
        quantized: Whether the linear layers of the LLM are held in 4 bits.
        checkpointing: What activations of the LLM are computed again in the backward pass.
        notes: Where the sizes of each part come from.
    """

    model: Any
    quantized: bool
    checkpointing: Checkpointing
    notes: list[str] = field(default_factory=list)

    def parts(self) -> dict[str, nn.Module]:
        """The parts that the model has, by attribute."""
        return {part.key: module for part, module in self.model.named_parts()}


def build_skeleton(settings: Mapping[str, Any], published: str | Path | None = None) -> Skeleton:
    """Build the model of a config without its weights.

    Args:
        settings: The config's ``model``.
        published: Folder with the sizes of models that are not here, beside those of this package.

    Raises:
        ArchitectureError: Nothing says how large a part is.
        ValueError: The parts do not go together, with every reason in one message.
    """
    model = dict(settings)
    for part in kind_of(settings).parts:
        given = model.get(part.config)
        # 16 bits on the GPUs that a plan is for
        if isinstance(given, Mapping) and part.role != "connector" and given.get("dtype", "auto") == "auto":
            model[part.config] = {**given, "dtype": "bfloat16"}
    llm = settings.get("llm") or {}
    checkpointing = llm.get("gradient_checkpointing", True) if llm else False
    if llm:  # what checkpointing costs is added by those who count
        model["llm"] = {**model["llm"], "gradient_checkpointing": False, "trust_remote_code": False}
    with sizes_from(published):
        built = build_empty(model)
        found = find_architecture(llm["path"], "transformers") if llm else None
    notes = [
        f"{part.config}: {settings[part.config].get('path') or settings[part.config].get('name')}, sizes from "
        f"{module.spec.source}"
        for part, module in built.named_parts()
        if part.role == "encoder"
    ]
    if found is not None:
        notes += [f"llm: {found.path}, sizes from {found.source}", *([found.note] if found.note else [])]
    return Skeleton(built, llm.get("tuning") == "qlora", checkpointing, notes)
