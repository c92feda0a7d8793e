"""Boxes as text and back: the place that writes coordinates into text and reads them from it.

Replies of published benchmarks are read as ``published_boxes`` says.

Shapes: ``n`` boxes of one text. Frames and shares as in ``mg_llava.data.pictures.frames``. Numbers alone: neither PIL
nor torch.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

import numpy as np

from mg_llava.data.choices import wrong_choices, wrong_count
from mg_llava.data.pictures.frames import Frame, frame_size, from_shares, to_shares

Style = Literal["unit3", "unit2", "shikra", "int1000", "int100", "bins", "kosmos2", "qwen"]

_NUMBER = r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
_FIND_NUMBER = re.compile(_NUMBER)
_PIECE = re.compile(rf"[\s,]*{_NUMBER}(?:[\s,]+{_NUMBER}){{3}}[\s,]*")
_BRACKET = re.compile(r"\[([^\[\]]*)(\]?)")
_SMALLEST_SIDE = 1.0
_CELLS = 32
"""Cells of Kosmos-2's grid along each side."""
_ROUNDING = 1e-9


class _Writing(NamedTuple):
    """How a style writes a box: with coordinates as one of ``steps`` equal parts of a side each."""

    steps: int
    form: str
    """Of a box, with places for its numbers."""
    run: re.Pattern[str] | None = None
    """Items that stand one after the other, with what may stand around them; None for numbers in brackets."""
    is_unit: bool = False
    """Whether numbers are shares, not steps."""


def _runs(item: str, opened: str = "", closed: str = "") -> re.Pattern[str]:
    return re.compile(rf"{opened}(?:{item}[\s,]*)+{closed}")


_ITEM = rf"\s*{_NUMBER}\s*"
_PAIR = rf"\([\s,]*{_NUMBER}(?:[\s,]+{_NUMBER})*[\s,]*\)"
_WRITINGS: dict[str, _Writing] = {
    "unit3": _Writing(1000, "[{:.3f}, {:.3f}, {:.3f}, {:.3f}]", is_unit=True),
    "unit2": _Writing(100, "[{:.2f}, {:.2f}, {:.2f}, {:.2f}]", is_unit=True),
    "shikra": _Writing(1000, "[{:.3f},{:.3f},{:.3f},{:.3f}]", is_unit=True),
    "int1000": _Writing(1000, "[{}, {}, {}, {}]"),
    "int100": _Writing(100, "{{<{}><{}><{}><{}>}}", _runs(f"<{_ITEM}>", r"\{?", r"\}?")),
    "bins": _Writing(1000, "<bin_{:03d}><bin_{:03d}><bin_{:03d}><bin_{:03d}>", _runs(f"<bin_{_ITEM}>")),
    "kosmos2": _Writing(
        _CELLS,
        "<object><patch_index_{:04d}><patch_index_{:04d}></object>",
        _runs(f"<patch_index_{_ITEM}>", r"(?:<object>\s*)?", "(?:</object>)?"),
    ),
    "qwen": _Writing(
        1000,
        "<|box_start|>({},{}),({},{})<|box_end|>",
        _runs(_PAIR, r"(?:(?:<\|box_start\|>|<box>)\s*)?", r"(?:<\|box_end\|>|</box>)?"),
    ),
}
_NUMBERED_WORDS = re.compile("bin_|patch_index_")


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
        style: ``unit3`` (GroundingGPT) and ``unit2`` (LLaVA): ``[0.123, 0.456, 0.789, 0.900]``, shares with a fixed
            number of decimals; ``shikra``: the same without blanks; ``int1000`` (Ferret): ``[123, 456, 789, 900]``,
            thousandths; ``int100`` (MiniGPT-v2, XTuner): ``{<12><46><79><90>}``, percent; ``bins``:
            ``<bin_123><bin_456><bin_789><bin_900>``, words of their own (see ``words``); ``kosmos2``:
            ``<object><patch_index_0044><patch_index_0863></object>``, the cells of two corners; ``qwen`` (Qwen2-VL):
            ``<|box_start|>(123,456),(789,900)<|box_end|>``, thousandths.
        frame: Shares of what: ``original``, width and height on their own, or ``padded``, the centered square.
        separator: Stands between boxes.
        bins: Number of words of ``bins``.

    Raises:
        ValueError: A setting is unknown, or the separator could be taken for a part of a box.
    """

    style: Style = "unit3"
    frame: Frame = "padded"
    separator: str = "; "
    bins: int = 1000

    def __post_init__(self) -> None:
        for wrong in [*wrong_choices(self), *wrong_count("bins", self.bins, least=2)]:
            raise ValueError(f"boxes in text: {wrong}")
        if re.search(r"[0-9.<>\[\]{}()+-]", self.separator) or not self.separator.strip(" ,\n\t"):
            raise ValueError(
                f"separator of boxes in text is {self.separator!r}; it needs a character such as ';' that is no part "
                "of a box: no digit, dot, sign, comma or bracket"
            )

    @classmethod
    def build(cls, given: Any) -> "BoxText":
        """The one that was given, or one of a dict of settings.

        Raises:
            ValueError: It is something else, or a setting is unknown or not allowed.
        """
        if isinstance(given, cls):
            return given
        known = [field.name for field in fields(cls)]
        if not isinstance(given, Mapping) or not set(given) <= set(known):
            raise ValueError(f"boxes in text are set by {given!r}; allowed is a dict of {', '.join(known)}")
        return cls(**given)

    @property
    def words(self) -> tuple[str, ...]:
        """The words that the tokenizer must have for this style; none where it writes plain text."""
        if self.style == "kosmos2":
            return ("<object>", "</object>", *(f"<patch_index_{cell:04d}>" for cell in range(_CELLS**2)))
        return tuple(f"<bin_{number:03d}>" for number in range(self.bins)) if self.style == "bins" else ()

    @property
    def steps(self) -> int:
        """Number of different values of a coordinate, or one less where both edges of the frame are values."""
        return self.bins if self.style == "bins" else _WRITINGS[self.style].steps

    def bound(self, size: tuple[int, int]) -> tuple[float, float]:
        """By how many pixels at most writing and reading moves an edge inside of the frame (x, y).

        Args:
            size: Width and height of the picture.
        """
        width, height = frame_size(size, self.frame)
        steps = self.steps if self.style == "kosmos2" else 2 * self.steps
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
        if self.style == "kosmos2":
            numbers = _to_cells(shares)
        elif self.style == "bins":
            numbers = np.minimum(np.floor(shares * self.steps + _ROUNDING), self.steps - 1)
        else:
            numbers = np.rint(shares * self.steps)
        rows = numbers.astype(int).tolist()
        if writing.is_unit:
            rows = [[number / self.steps for number in row] for row in rows]
        return self.separator.join(writing.form.format(*row) for row in rows)

    def numbers(self, boxes: np.ndarray, size: tuple[int, int]) -> list[list[str]]:
        """The four numbers of each box as they are written; arguments and errors as for :meth:`write`."""
        return [_FIND_NUMBER.findall(self.write(box, size)) for box in np.asarray(boxes).reshape(-1, 1, 4)]

    def read(self, text: str, size: tuple[int, int]) -> BoxesInText:
        """Boxes of a text, in original pixels of a picture of width and height ``size``; never raises."""
        found = self.find(text)
        return found._replace(boxes=from_shares(found.boxes, size, self.frame))

    def find(self, text: str) -> BoxesInText:
        """Boxes of a text, as shares of the frame; for pictures whose size is not known. Never raises."""
        writing = _WRITINGS[self.style]
        count = 2 if self.style == "kosmos2" else 4
        pieces = list(_pieces_in_brackets(text) if writing.run is None else _pieces_in_runs(text, writing.run))
        good = [(numbers, span) for numbers, span in pieces if len(numbers) == count]
        values = np.array([numbers for numbers, _ in good], dtype=np.float64).reshape(-1, count)
        if self.style == "kosmos2":
            inside = np.clip(values, 0, _CELLS**2 - 1)
            clamped, shares = (inside != values).any(axis=1), _from_cells(np.floor(inside))
        else:
            values += 0.5 if self.style == "bins" else 0.0  # the middle of the bin
            values = values if writing.is_unit else values / self.steps
            shares = np.clip(values, 0, 1)
            clamped = (shares != values).any(axis=1)
        corners = shares.reshape(-1, 2, 2)
        boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
        return BoxesInText(boxes, tuple(span for _, span in good), clamped, len(pieces) - len(good))


def are_writable(boxes: np.ndarray) -> np.ndarray:
    """(n,) bool: which of (n, 4) boxes in original pixels are at least a pixel wide and high, as targets must be."""
    return (boxes[:, 2:] - boxes[:, :2] >= _SMALLEST_SIDE).all(axis=1)


def _to_cells(shares: np.ndarray) -> np.ndarray:
    """(n, 2) Kosmos-2's cells of the upper left and lower right corners of (n, 4) shares of the frame."""
    first = np.clip(np.floor(shares[:, :2] * _CELLS + _ROUNDING), 0, _CELLS - 1)
    last = np.maximum(np.ceil(shares[:, 2:] * _CELLS - 1 - _ROUNDING), first)
    return np.stack([corner[:, 0] + _CELLS * corner[:, 1] for corner in (first, last)], axis=1)


def _from_cells(cells: np.ndarray) -> np.ndarray:
    """(n, 4) shares of (n, 2) cells: from middle to middle, or from edge to edge in one row or column."""
    first, last = (np.stack([cells[:, end] % _CELLS, cells[:, end] // _CELLS], axis=1) for end in (0, 1))
    is_narrow = (first == last).any(axis=1, keepdims=True)
    return np.concatenate([first + np.where(is_narrow, 0, 0.5), last + np.where(is_narrow, 1, 0.5)], axis=1) / _CELLS


def _pieces_in_runs(text: str, pattern: re.Pattern[str]) -> Iterator[tuple[list[float], tuple[int, int]]]:
    """Numbers and span of each run of items."""
    for run in pattern.finditer(text):
        found = run.group().rstrip(" \n\t,")
        yield _numbers_of(_NUMBERED_WORDS.sub("", found)), (run.start(), run.start() + len(found))


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
