"""Boxes as text and back: the one place that writes coordinates into text and reads them from it.

Shapes: ``n`` boxes of one text. Frames and shares as in ``mg_llava.data.pictures.frames``. Numbers alone: neither PIL
nor torch.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from mg_llava.data.choices import wrong_choices
from mg_llava.data.pictures.frames import Frame, frame_size, from_shares, to_shares

Style = Literal["unit3", "unit2", "int1000", "int100", "bins"]

_NUMBER = r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
_FIND_NUMBER = re.compile(_NUMBER)
_PIECE = re.compile(rf"[\s,]*{_NUMBER}(?:[\s,]+{_NUMBER}){{3}}[\s,]*")
_BRACKET = re.compile(r"\[([^\[\]]*)(\]?)")
_SMALLEST_SIDE = 1.0


class _Writing(NamedTuple):
    """How a style writes a coordinate: as one of ``steps`` equal parts of a side."""

    steps: int
    item: str
    between: str
    around: tuple[str, str]
    is_bracketed: bool
    is_unit: bool = False


_WRITINGS: dict[str, _Writing] = {
    "unit3": _Writing(1000, "{:.3f}", ", ", ("[", "]"), True, True),
    "unit2": _Writing(100, "{:.2f}", ", ", ("[", "]"), True, True),
    "int1000": _Writing(1000, "{}", ", ", ("[", "]"), True),
    "int100": _Writing(100, "<{}>", "", ("{", "}"), False),
    "bins": _Writing(1000, "<bin_{:03d}>", "", ("", ""), False),
}


def _runs(item: str, opened: str = "", closed: str = "") -> re.Pattern[str]:
    """Items one after the other, with what may stand around them."""
    one = item.format(rf"\s*{_NUMBER}\s*")
    return re.compile(rf"{opened}(?:{one}[\s,]*)+{closed}")


_RUNS = {"int100": _runs("<{}>", r"\{?", r"\}?"), "bins": _runs("<bin_{}>")}


class BoxesInText(NamedTuple):
    """The boxes that a text names.

    ``boxes`` are (n, 4) float64 xyxy with x1 <= x2 and y1 <= y2: original pixels from ``BoxText.read``, shares of the
    frame from ``BoxText.find``; ``spans`` say where their texts begin and end, ``clamped``, (n,) bool, which had
    coordinates outside of the frame; ``failures`` counts what looks like a box and is none, such as three numbers.
    """

    boxes: np.ndarray
    spans: tuple[tuple[int, int], ...]
    clamped: np.ndarray
    failures: int


@dataclass(frozen=True)
class BoxText:
    """A way to write boxes as text.

    Reading is tolerant: blanks, boxes joined by ``;`` in one pair of brackets, missing leading zeros, swapped corners
    and coordinates outside of the frame are understood.

    Args:
        style: ``unit3`` or ``unit2``: ``[0.123, 0.456, 0.789, 0.900]``, shares with a fixed number of decimals;
            ``int1000``: ``[123, 456, 789, 900]``, thousandths; ``int100``: ``{<12><46><79><90>}``, percent; ``bins``:
            ``<bin_123><bin_456><bin_789><bin_900>``, words of their own (see ``words``).
        frame: Shares of what: ``original``, width and height on their own, or ``padded``, the centered square.
        separator: Stands between boxes.

    Raises:
        ValueError: A setting is unknown, or the separator could be taken for a part of a box.
    """

    style: Style = "unit3"
    frame: Frame = "padded"
    separator: str = "; "

    def __post_init__(self) -> None:
        for wrong in wrong_choices(self):
            raise ValueError(f"boxes in text: {wrong}")
        if re.search(r"[0-9.<>\[\]{}+-]", self.separator) or not self.separator.strip(" ,\n\t"):
            raise ValueError(
                f"separator of boxes in text is {self.separator!r}; it needs a character such as ';' that is no part "
                "of a box: no digit, dot, sign, comma or bracket"
            )

    @property
    def words(self) -> tuple[str, ...]:
        """The words that the tokenizer must have for this style; none where it writes plain text."""
        writing = _WRITINGS[self.style]
        return tuple(writing.item.format(number) for number in range(writing.steps)) if self.style == "bins" else ()

    def bound(self, size: tuple[int, int]) -> tuple[float, float]:
        """By how many pixels at most writing and reading moves an edge inside of the frame (x, y).

        Args:
            size: Width and height of the picture.
        """
        width, height = frame_size(size, self.frame)
        steps = 2 * _WRITINGS[self.style].steps
        return width / steps, height / steps

    def write(self, boxes: np.ndarray, size: tuple[int, int]) -> str:
        """Text of (n, 4) boxes in original pixels of a picture of width and height ``size``, clamped to the frame.

        Raises:
            ValueError: A coordinate is not finite, or corners are swapped.
        """
        array = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        if not np.isfinite(array).all() or (array[:, 2:] < array[:, :2]).any():
            raise ValueError(f"boxes are {array.tolist()}; they must be finite [x1, y1, x2, y2], x1 <= x2, y1 <= y2")
        writing, shares = _WRITINGS[self.style], np.clip(to_shares(array, size, self.frame), 0, 1)
        if self.style == "bins":
            numbers = np.minimum(np.floor(shares * writing.steps), writing.steps - 1)
        else:
            numbers = np.rint(shares * writing.steps)
        return self.separator.join(_write_one(row, writing) for row in numbers.astype(int).tolist())

    def read(self, text: str, size: tuple[int, int]) -> BoxesInText:
        """Boxes of a text, in original pixels of a picture of width and height ``size``; never raises."""
        found = self.find(text)
        return found._replace(boxes=from_shares(found.boxes, size, self.frame))

    def find(self, text: str) -> BoxesInText:
        """Boxes of a text, as shares of the frame; for pictures whose size is not known. Never raises."""
        writing = _WRITINGS[self.style]
        pieces = list(_pieces_in_brackets(text) if writing.is_bracketed else self._pieces_in_runs(text))
        good = [(numbers, span) for numbers, span in pieces if len(numbers) == 4]
        values = np.array([numbers for numbers, _ in good], dtype=np.float64).reshape(-1, 4)
        if self.style == "bins":
            values += 0.5  # the middle of the bin
        shares = values if writing.is_unit else values / writing.steps
        inside = np.clip(shares, 0, 1)
        boxes = np.concatenate([np.minimum(inside[:, :2], inside[:, 2:]), np.maximum(inside[:, :2], inside[:, 2:])], 1)
        clamped = (inside != shares).any(axis=1)
        return BoxesInText(boxes, tuple(span for _, span in good), clamped, len(pieces) - len(good))

    def _pieces_in_runs(self, text: str) -> Iterator[tuple[list[float], tuple[int, int]]]:
        """Numbers and span of each run of items."""
        for run in _RUNS[self.style].finditer(text):
            span = run.start(), run.start() + len(run.group().rstrip(" \n\t,"))
            yield _numbers_of(run.group().replace("bin_", "")), span


def are_writable(boxes: np.ndarray) -> np.ndarray:
    """(n,) bool: which of (n, 4) boxes in original pixels are at least a pixel wide and high, as targets must be."""
    return (boxes[:, 2:] - boxes[:, :2] >= _SMALLEST_SIDE).all(axis=1)


def _write_one(numbers: list[int], writing: _Writing) -> str:
    values = [number / writing.steps if writing.is_unit else number for number in numbers]
    return writing.around[0] + writing.between.join(map(writing.item.format, values)) + writing.around[1]


def _pieces_in_brackets(text: str) -> Iterator[tuple[list[float], tuple[int, int]]]:
    """Numbers and span of each part of a pair of brackets that has a digit; no numbers where it is no box."""
    for bracket in _BRACKET.finditer(text):
        parts, start = bracket.group(1).split(";"), bracket.start(1)
        for number, part in enumerate(parts):
            end = start + len(part)
            is_cut = not bracket.group(2) and number == len(parts) - 1
            span = (bracket.start() if number == 0 else start, bracket.end() if number == len(parts) - 1 else end)
            if any(character in "0123456789" for character in part):
                yield _numbers_of(part) if _PIECE.fullmatch(part) and not is_cut else [], span
            start = end + 1


def _numbers_of(text: str) -> list[float]:
    return [float(number) for number in _FIND_NUMBER.findall(text)]
