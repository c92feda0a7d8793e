"""What a picture without a box record gets: an error, a stand-in, or boxes that are found now."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from mg_llava.data.choices import wrong_choice
from mg_llava.data.faults import Tally
from mg_llava.data.pictures.files import to_rgb
from mg_llava.data.records.schema import NO_BOXES, BoxRecord, RecordError, make_box_record
from mg_llava.registry import PROPOSERS

MissingBox = Literal["error", "empty", "picture", "corner", "detect"]
Picture = Image.Image | Callable[[], Image.Image]

_MEANING = {
    "empty": ("none", "they get no box tokens"),
    "picture": ("picture", "they get one box around the whole picture"),
    "corner": ("corner", "they get the corner box"),
    "detect": (None, "their boxes are found when they are used"),
}
"""Stand-in of each policy, and what it does."""


@dataclass(frozen=True)
class StandIn(BoxRecord):
    """No boxes, with the stand-in that ``PictureProcessor`` is to take in place of its own ``empty_box``."""

    empty_box: Literal["none", "picture", "corner"] | None = None


class MissingBoxes:
    """The policy for pictures without a box record; counts over all worker processes.

    Args:
        policy: ``error``; ``empty``, no box tokens; ``picture``, one box around the whole picture; ``corner``, the
            reference's corner box; ``detect``, let the proposer find boxes now.
        proposer: For ``detect``: takes an RGB picture and gives boxes in its pixels, scores and labels; or a dict to
            build it from, such as ``dict(type="mg_llava.ConnectedComponentProposals")``. Built when it is first
            needed, in each process.
        to_frame: For ``detect``: brings an opened picture into the frame that boxes are in; None for
            ``pictures.to_rgb``.

    Raises:
        ValueError: The policy is unknown, or ``detect`` has no proposer.
        KeyError: The proposer's type is not registered.
    """

    def __init__(
        self,
        policy: MissingBox,
        proposer: Any = None,
        to_frame: Callable[[Image.Image], Image.Image] | None = None,
    ) -> None:
        for wrong in wrong_choice("missing", policy, MissingBox):
            raise ValueError(wrong)
        if policy == "detect" and proposer is None:
            raise ValueError(
                "missing='detect' needs a proposer, such as proposer=dict(type='mg_llava.ConnectedComponentProposals')"
            )
        if isinstance(proposer, Mapping):  # a misspelled type is found at the start and not in the middle of training
            kind = proposer.get("type")
            if kind is None or (isinstance(kind, str) and PROPOSERS.find(kind) is None):
                raise KeyError(f"proposer: {PROPOSERS.unknown(str(kind))}")
        self.policy = policy
        self._proposer = proposer
        self._to_frame = to_frame or to_rgb
        self._applied = Tally()

    @property
    def count(self) -> int:
        """Number of times that the policy was applied so far, by all workers."""
        return self._applied.total

    @property
    def meaning(self) -> str:
        """What the policy does, for the log."""
        return _MEANING[self.policy][1]

    def __call__(self, owner: str, picture: Picture | None = None) -> BoxRecord:
        """The boxes of a picture that has no record; ``detect`` needs the picture, or a function that opens it.

        Raises:
            RecordError: The policy is ``error``, or the proposer's boxes are wrong.
            ValueError: The policy is ``detect`` and there is no picture.
        """
        if self.policy == "error":
            raise RecordError(f"{owner}; {advice()}")
        self._applied.add(f"{owner}; such pictures are counted, {self.meaning}")
        if self.policy == "detect":
            return self._detect(owner, picture)
        return StandIn(NO_BOXES.boxes, NO_BOXES.scores, (), _MEANING[self.policy][0])  # type: ignore[arg-type]

    def _detect(self, owner: str, picture: Picture | None) -> BoxRecord:
        if picture is None:
            raise ValueError(f"{owner}; missing='detect' needs the picture, which was not given")
        if isinstance(self._proposer, Mapping):
            self._proposer = PROPOSERS.build(dict(self._proposer))
        image = self._to_frame(picture if isinstance(picture, Image.Image) else picture())
        boxes, scores, labels = self._proposer(image)
        return make_box_record(np.asarray(boxes), scores, labels, f"{owner}; proposals")


def advice() -> str:
    """How to go on without a box record."""
    return "make boxes for it, or use such pictures without boxes with missing_box='empty'"
