"""From the text of a record to the text that is encoded: what stands for something else, and prompts made of boxes.

Boxes are known before the text is encoded, so that a prompt may depend on them; box tokens take the room that is left.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mg_llava.data.records.schema import BoxRecord, Turn
from mg_llava.registry import TRANSFORMS


class PromptPart(Protocol):
    """Changes the turns of a record by the boxes of its pictures; registered in ``TRANSFORMS``, without state."""

    def __call__(
        self,
        turns: tuple[Turn, ...],
        objects: Sequence[BoxRecord],
        sizes: Sequence[tuple[int, int]],
        draw: np.random.Generator | None,
    ) -> tuple[Turn, ...]:
        """The new turns, with the same placeholders of pictures.

        Args:
            turns: All turns of the record.
            objects: For each picture its boxes, original pixels, before the filter.
            sizes: For each picture its width and height.
            draw: Where random numbers come from in training; None elsewhere.
        """


def build_parts(specs: Sequence[PromptPart | Mapping[str, Any]]) -> tuple[PromptPart, ...]:
    """Prompt parts from their dicts."""
    return tuple(TRANSFORMS.build(dict(spec)) if isinstance(spec, Mapping) else spec for spec in specs)


def apply_parts(
    parts: Sequence[PromptPart],
    turns: tuple[Turn, ...],
    objects: Sequence[BoxRecord],
    sizes: Sequence[tuple[int, int]],
    draw: np.random.Generator | None = None,
) -> tuple[Turn, ...]:
    """The turns after all parts, one after the other."""
    for part in parts:
        turns = tuple(part(turns, objects, sizes, draw))
    return turns


def describe_parts(specs: Sequence[PromptPart | Mapping[str, Any]]) -> str:
    """Text that differs where parts differ, for keys of caches."""
    return repr([dict(spec) if isinstance(spec, Mapping) else _name(spec) for spec in specs])


def _name(part: PromptPart | Callable[..., Any]) -> str:
    name = getattr(part, "__qualname__", None)
    return repr(part) if name is None else f"{part.__module__}.{name}"
