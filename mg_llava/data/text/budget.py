"""The token budget: text, pictures and boxes of a sample never exceed the context together.

The text comes first and boxes get what is left: text is cut only where text and pictures alone are too long, boxes
wherever there is too little room for all of them, the worst ones first.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mg_llava.batch import TokenCount
from mg_llava.data.choices import wrong_count

_NO_TOKENS = TokenCount(0)


class BudgetError(ValueError):
    """A sample whose pictures alone exceed the context."""


@dataclass(frozen=True)
class TokenBudget:
    """How many tokens a sample may have.

    Args:
        context_length: Tokens of text, pictures and boxes together; None for no such limit.
        max_length: Ids of the text, a picture counting as one; None for no such limit.
        long_text_margin: Texts within this many ids of their limit get fewer boxes (see ``boxes.filter.cap_boxes``);
            None for no such rule.
        spare_picture: Text leaves the room of one picture free in every sample, also where it stands alone, as in the
            published training.
        tokens: Tokens of a picture with its boxes.

    Raises:
        ValueError: A limit is below one.
    """

    context_length: int | None = None
    max_length: int | None = None
    long_text_margin: int | None = 50
    spare_picture: bool = False
    tokens: TokenCount = _NO_TOKENS

    def __post_init__(self) -> None:
        wrong = [
            *wrong_count("context_length", self.context_length, none="no limit"),
            *wrong_count("max_length", self.max_length, none="no limit"),
            *wrong_count("long_text_margin", self.long_text_margin, least=0, none="no limit of boxes"),
        ]
        if wrong:
            raise ValueError("; ".join(wrong))

    def counting(self, tokens: TokenCount) -> "TokenBudget":
        """The budget with the tokens of a picture, and with ``max_length`` as short as ``spare_picture`` makes it.

        Raises:
            ValueError: A picture leaves no room for text.
        """
        counted = replace(self, tokens=tokens)
        if not self.spare_picture or self.context_length is None:
            return counted
        left = self.context_length - tokens(1, 0)
        if left < 1:
            raise ValueError(
                f"context_length {self.context_length} leaves no room for text beside the {tokens(1, 0)} tokens of a "
                "picture; raise it"
            )
        return replace(counted, max_length=left if self.max_length is None else min(left, self.max_length))

    @property
    def of_frames(self) -> "TokenBudget":
        """The budget where every picture is a frame of a video."""
        return replace(self, tokens=self.tokens.of_frames)

    def of(self, video: str | None) -> "TokenBudget":
        """The budget of a record about pictures, or about a video."""
        return self if video is None else self.of_frames

    def expanded(self, ids: int, pictures: int, boxes: int = 0, crops: int = 0) -> int:
        """Length of the sequence that the LLM sees, for ``ids`` ids of text with their placeholders."""
        return ids + self._visual(pictures, crops) + self.tokens.per_box * boxes

    def _visual(self, pictures: int, crops: int) -> int:
        """Tokens of pictures without boxes, and of object images, beyond their placeholders."""
        return pictures * (self.tokens(1, 0) - 1) + crops * (self.tokens.per_crop - 1)

    def text_limit(self, pictures: int, crops: int = 0) -> int | None:
        """Largest number of ids beside this many pictures without boxes and object images, placeholders included.

        Raises:
            BudgetError: Not even the placeholders and one id of an answer fit.
        """
        if self.context_length is None:
            return self.max_length
        left = self.context_length - self._visual(pictures, crops)
        if left < pictures + crops + 1:
            images = f", {crops} object images of {self.tokens.per_crop}" if crops else ""
            raise BudgetError(
                f"{pictures} pictures of {self.tokens(1, 0)} tokens{images} and one token of an answer exceed "
                f"context_length {self.context_length}; use fewer pictures or a longer context, or leave such samples "
                "out with over_budget='skip'"
            )
        return left if self.max_length is None else min(left, self.max_length)

    def box_room(self, ids: int, pictures: int, crops: int = 0) -> int | None:
        """Number of boxes that fit beside the text and the pictures; None for no limit."""
        if self.context_length is None or not self.tokens.per_box:
            return None
        return max(0, self.context_length - self.expanded(ids, pictures, crops=crops)) // self.tokens.per_box

    def is_long(self, ids: int, pictures: int, crops: int = 0) -> bool:
        """Whether a text of ``ids`` ids nearly fills its part of the context."""
        limit = self.text_limit(pictures, crops)
        return limit is not None and self.long_text_margin is not None and ids >= limit - self.long_text_margin


def share_room(counts: Sequence[int], room: int) -> list[int]:
    """Divide the room for boxes among pictures: those with the most boxes lose first, each keeps its best.

    Gives the boxes that each picture may keep, at most its count, ``room`` in all where there are as many. What cannot
    be divided goes to the first pictures.
    """
    level = 0
    while level < max(counts, default=0) and sum(min(count, level + 1) for count in counts) <= room:
        level += 1
    shares = [min(count, level) for count in counts]
    rest = room - sum(shares)
    for picture, count in enumerate(counts):
        if rest > 0 and count > level:
            shares[picture] += 1
            rest -= 1
    return shares
