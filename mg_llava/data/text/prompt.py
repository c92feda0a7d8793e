"""From the text of a record to the text that is encoded: what stands for something else, and prompts made of boxes.

Boxes are known before the text is encoded, so that a prompt may depend on them; box tokens take the room that is left.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from mg_llava.data.records.schema import BoxRecord, RecordError, Turn
from mg_llava.data.text.coordinates import BoxText
from mg_llava.registry import TRANSFORMS
from mg_llava.tokens import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER

PLACEHOLDERS: dict[str, re.Pattern[str]] = {
    "picture": re.compile(re.escape(IMAGE_PLACEHOLDER)),
    "video": re.compile(re.escape(VIDEO_PLACEHOLDER)),
    "box": re.compile(r"<box:([0-9]{1,6})>"),
    "object": re.compile(r"<object:([0-9]{1,6})>"),
}
"""What stands in a text for something else: the tokens of a picture, of all frames of a video side by side, the text
of box number i, the picture of object number i. Numbers count from 0."""


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


@TRANSFORMS.register_module()
@dataclass(frozen=True)
class BoxesAsText:
    """Prompt part: writes the text of a box wherever ``<box:i>`` stands, in questions and answers.

    Args:
        text: How boxes are written, or a dict of its settings.

    Raises:
        RecordError: A record names a box that its pictures do not have.
    """

    text: BoxText | Mapping[str, Any] = field(default_factory=BoxText)

    def __post_init__(self) -> None:
        if isinstance(self.text, Mapping):
            object.__setattr__(self, "text", BoxText(**self.text))

    def __call__(
        self,
        turns: tuple[Turn, ...],
        objects: Sequence[BoxRecord],
        sizes: Sequence[tuple[int, int]],
        draw: np.random.Generator | None = None,
    ) -> tuple[Turn, ...]:
        """Turns with coordinates; boxes are numbered through all pictures."""
        assert isinstance(self.text, BoxText)
        boxes = [(box, size) for record, size in zip(objects, sizes, strict=True) for box in record.boxes[:, None, :]]

        def write(match: re.Match[str]) -> str:
            number = int(match[1])
            if number >= len(boxes):
                raise RecordError(f"{match[0]} stands in the text, but there are {len(boxes)} boxes, from 0 on")
            box, size = boxes[number]
            return self.text.write(box, size)  # type: ignore[union-attr]

        return tuple(replace(turn, text=PLACEHOLDERS["box"].sub(write, turn.text)) for turn in turns)


def _name(part: PromptPart | Callable[..., Any]) -> str:
    name = getattr(part, "__qualname__", None)
    return repr(part) if name is None else f"{part.__module__}.{name}"
