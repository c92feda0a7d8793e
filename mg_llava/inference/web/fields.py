"""Bodies of the page's requests."""

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mg_llava.inference.serving.errors import RequestLimits
from mg_llava.inference.serving.fields import field_fault
from mg_llava.inference.serving.question import parse_body
from mg_llava.inference.web.boards import DRAWN, BoardBox, Side

_LABEL = 200
"""Most characters of a box's name."""
_Pixel = Annotated[float, Field(allow_inf_nan=False)]


class _Fields(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class BoxField(_Fields):
    """A box, xyxy in pixels of the picture."""

    box: Annotated[list[_Pixel], Field(min_length=4, max_length=4)]
    label: Annotated[str, Field(max_length=_LABEL)] = ""
    score: Annotated[float, Field(ge=0, le=1)] = DRAWN
    on: bool = True

    def board_box(self) -> BoardBox:
        """The same as a board has it."""
        x1, y1, x2, y2 = self.box
        return BoardBox((x1, y1, x2, y2), self.label, self.score, self.on)


class BoxesBody(_Fields):
    """All boxes of a board."""

    boxes: list[BoxField]


class AskBody(_Fields):
    """A question; asked in both conversations, or in one."""

    question: str
    sides: Annotated[list[Side], Field(min_length=1, max_length=2)] = ["with"]


class SideBody(_Fields):
    """A conversation, and the next question of it where there is one."""

    side: Side = "with"
    question: str = ""


_Body = TypeVar("_Body", bound=_Fields)


def parse(kind: type[_Body], data: bytes, limits: RequestLimits) -> _Body:
    """A checked body.

    Raises:
        RefusedRequest: It is no JSON, or a field is wrong.
    """
    try:
        return kind.model_validate(parse_body(data, limits))
    except ValidationError as error:
        raise field_fault(error) from None
