"""A sample as one picture: its pictures with kept and dropped boxes, a list of all boxes, its tokens in color."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from mg_llava.data.boxes.filter import Reason
from mg_llava.data.pictures.processor import BoxFate
from mg_llava.drawing.lettering import Font, break_word, line_height, load_font, wrap
from mg_llava.drawing.marks import Mark, draw_marks, ink_on
from mg_llava.inspection.browse.samples import PictureView, SampleView, Token

PANEL = 768
"""Least side of a canvas in the drawing."""

REASON_COLORS: dict[Reason, str] = {
    "kept": "#12a150",
    "nms": "#e5484d",
    "cap": "#ffb224",
    "outside": "#c026d3",
    "too small": "#0ea5e9",
}
TOKEN_COLORS = {
    "image": ("#bfdbfe", "#bfdbfe"),
    "boxes": ("#fed7aa", "#fed7aa"),
    "supervised": ("#bbf7d0", "#86efac"),
    "text": ("#ffffff", "#eceef1"),
}
"""Two shades each, in turn, so that neighboring tokens can be told apart."""
TOKEN_LEGEND = {"image": "picture", "boxes": "boxes", "supervised": "text with loss", "text": "text without loss"}

_REGION_COLOR = "#2563eb"
_PAPER, _INK, _GRAY, _MAT = "#ffffff", "#16181d", "#6b7280", "#d4d7dd"
_MARGIN, _COLUMN, _LINE = 14, 760, 3
_MAT_SIDE = 48
_CROWD, _FULL_PANEL = 24, 12
_LONGEST_LABEL = 18


def draw_sample(view: SampleView, font: str | Path | None = None) -> Image.Image:
    """Draw a sample as an RGB picture: pictures on the left, text on the right.

    Boxes that were dropped have a panel of their own where one panel would be crowded. ``font`` is a TrueType file,
    for scripts that the default font does not have.

    Raises:
        OSError: If the font file cannot be read.
    """
    face = load_font(14, font)
    panels = [panel for picture in view.pictures for panel in _draw_panels(picture, face)]
    text = _draw_text(view, font)
    text_at = max(panel.width for panel in panels) + 2 * _MARGIN if panels else _MARGIN
    height = max(sum(panel.height + _MARGIN for panel in panels), text.height + _MARGIN) + _MARGIN
    sheet = Image.new("RGB", (text_at + text.width + _MARGIN, height), _PAPER)
    sheet.paste(text, (text_at, _MARGIN))
    top = _MARGIN
    for panel in panels:
        sheet.paste(panel, (_MARGIN, top))
        top += panel.height + _MARGIN
    return sheet


def token_style(token: Token) -> str:
    """Key of a token in ``TOKEN_COLORS``."""
    return "supervised" if token.supervised else token.kind


def visible(text: str) -> str:
    """A token's text with control characters spelled out."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def count_reasons(fates: Sequence[BoxFate]) -> dict[Reason, int]:
    """How many boxes there are of each reason, in the order of the legend."""
    return {reason: sum(fate.reason == reason for fate in fates) for reason in REASON_COLORS}


def _named(fates: Sequence[BoxFate]) -> list[tuple[str, BoxFate]]:
    """Boxes with their names in drawings: number of the token, then dropped boxes by their number in the file."""
    kept = sorted((fate for fate in fates if fate.token is not None), key=lambda fate: fate.token or 0)
    dropped = [(f"#{number}", fate) for number, fate in enumerate(fates) if fate.token is None]
    return [(str(fate.token), fate) for fate in kept] + dropped


def _draw_panels(picture: PictureView, face: Font) -> list[Image.Image]:
    named = _named(picture.fates)
    kept = [(name, fate) for name, fate in named if fate.kept]
    dropped = [(name, fate) for name, fate in named if not fate.kept]
    if picture.is_stand_in and len(picture.boxes):
        place = tuple(picture.boxes[0].tolist())
        kept = [("0", BoxFate("(no box)", 0.0, place, place, "kept", 0))]
    if not dropped or len(named) <= _FULL_PANEL:
        return [_draw_panel(picture, kept + dropped, "", face)]
    parts = ((kept, f"{len(kept)} kept boxes"), (dropped, f"{len(dropped)} dropped boxes"))
    return [_draw_panel(picture, part, title, face) for part, title in parts]


def _draw_panel(picture: PictureView, named: Sequence[tuple[str, BoxFate]], title: str, face: Font) -> Image.Image:
    """The canvas with boxes; a gray mat around it where some of them reach beyond it."""
    size = picture.canvas.size
    scale = max(1.0, PANEL / size)
    side = round(size * scale)
    places = np.array([fate.place for _, fate in named]).reshape(-1, 4)
    mat = _MAT_SIDE if ((places < -1) | (places > size + 1)).any() else 0
    sheet = Image.new("RGB", (side + 2 * mat, side + 2 * mat), _MAT)
    sheet.paste(Image.fromarray(picture.pixels).resize((side, side), Image.Resampling.BICUBIC), (mat, mat))
    boxes = np.clip(places * scale + mat, _LINE, side + 2 * mat - 1 - _LINE).tolist()
    marks = []
    for (name, fate), box in zip(named, boxes, strict=True):
        label = fate.label if len(fate.label) <= _LONGEST_LABEL else f"{fate.label[: _LONGEST_LABEL - 1]}…"
        caption = name if len(named) > _CROWD else f"{name} {label} {fate.score:.2f}".replace("  ", " ")
        marks.append(Mark(tuple(box), REASON_COLORS[fate.reason], caption, dashed=not fate.kept))
    for name, place in picture.regions:
        box = np.clip(np.array(place) * scale + mat, _LINE, side + 2 * mat - 1 - _LINE).tolist()
        marks.append(Mark(tuple(box), _REGION_COLOR, name))
    draw_marks(sheet, marks, _LINE, face)
    if not title:
        return sheet
    head = line_height(face) + 4
    titled = Image.new("RGB", (sheet.width, sheet.height + head), _PAPER)
    ImageDraw.Draw(titled).text((0, 0), title, fill=_INK, font=face)
    titled.paste(sheet, (0, head))
    return titled


class _Column:
    """A column of text that grows downward; colored chips flow like words."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.x = self.y = self._step = 0.0
        self._chips: list[tuple[float, float, float, str, str | None, str, Font]] = []

    def write(self, text: str, face: Font, color: str = _INK) -> None:
        """A paragraph of its own."""
        self.end_line()
        for line in wrap(text, self.width, face):
            self._put(line, face, None, color)
            self.end_line()

    def chip(self, text: str, face: Font, fill: str | None, color: str = _INK, pad: int = 1) -> None:
        """A piece of text on a ground of its own, in the line where there is room."""
        pieces = break_word(text, self.width - 2 * pad, face)
        for number, piece in enumerate(pieces):
            needed = face.getlength(piece if number else text) + 2 * pad
            if self.x and self.x + needed > self.width:
                self.end_line()
            self._put(piece, face, fill, color, pad)

    def end_line(self) -> None:
        """Go to the next line, if anything stands in this one."""
        if self.x:
            self.x, self.y, self._step = 0.0, self.y + self._step, 0.0

    def skip(self, pixels: int) -> None:
        """Leave some room."""
        self.end_line()
        self.y += pixels

    def render(self) -> Image.Image:
        """The column as a picture."""
        self.end_line()
        sheet = Image.new("RGB", (self.width, max(1, round(self.y))), _PAPER)
        draw = ImageDraw.Draw(sheet)
        for x, y, wide, text, fill, color, face in self._chips:
            if fill is not None:
                draw.rectangle((x, y, x + wide - 1, y + line_height(face) - 2), fill=fill)
            draw.text((x + (wide - face.getlength(text)) / 2, y), text, fill=color, font=face)
        return sheet

    def _put(self, text: str, face: Font, fill: str | None, color: str, pad: int = 0) -> None:
        wide = max(face.getlength(text) + 2 * pad, 1)
        self._chips.append((self.x, self.y, wide, text, fill, color, face))
        self.x += wide
        self._step = max(self._step, line_height(face))


def _draw_text(view: SampleView, font: str | Path | None) -> Image.Image:
    """Everything about a sample that is text."""
    title, body, small = load_font(20, font), load_font(15, font), load_font(13, font)
    column = _Column(_COLUMN)
    column.write(f"{view.source} [{view.index}]  id {view.id}", title)
    column.write(f"{view.length} positions, {view.supervised} with loss", body, _GRAY)
    for note in view.notes:
        column.write(f"Note: {note}", body, "#b42318")
    column.skip(8)
    _write_tokens(column, view.tokens, body, small)
    for number, picture in enumerate(view.pictures):
        column.skip(12)
        _write_boxes(column, picture, f"Picture {number}: " if len(view.pictures) > 1 else "Picture: ", body, small)
    return column.render()


def _write_tokens(column: _Column, tokens: Sequence[Token], body: Font, small: Font) -> None:
    for key, meaning in TOKEN_LEGEND.items():
        column.chip(meaning, small, TOKEN_COLORS[key][1], pad=6)
        column.x += 8
    column.skip(6)
    for number, token in enumerate(tokens):
        text = visible(token.text)
        column.chip(text, body, TOKEN_COLORS[token_style(token)][number % 2], _INK if text.strip() else _GRAY)
        if token.text.endswith("\n"):
            column.end_line()
    column.end_line()


def _write_boxes(column: _Column, picture: PictureView, name: str, body: Font, small: Font) -> None:
    canvas = picture.canvas
    sizes = f"{canvas.width} x {canvas.height} on a canvas of {canvas.size} x {canvas.size}"
    column.write(f"{name}{picture.path}", body)
    column.write(f"{sizes}; {len(picture.fates)} boxes before the filter, canvas pixels below", small, _GRAY)
    column.skip(4)
    for reason, count in count_reasons(picture.fates).items():
        color = REASON_COLORS[reason]
        column.chip(f"{count} {reason}", small, color, ink_on(color), pad=6)
        column.x += 8
    column.skip(6)
    named = _named(picture.fates)
    columns = 2 if len(named) > _FULL_PANEL else 1
    lines, wide = -(-len(named) // columns), column.width // columns
    for line in range(lines):
        for left, (name, fate) in enumerate(named[line::lines]):
            column.x = left * wide + 1
            column.chip("  ", small, REASON_COLORS[fate.reason])
            column.chip(_row(name, fate, wide - 20, small), small, None)
        column.end_line()


def _row(name: str, fate: BoxFate, width: int, face: Font) -> str:
    """One line of the list of boxes; the label gives way where there is no room."""
    place = ", ".join(f"{value:.0f}" for value in fate.place)
    rest = f"{fate.score:.2f} [{place}]{'' if fate.kept else f' {fate.reason}'}"
    label = fate.label
    while label and face.getlength(f" {name}  {label}… {rest}") > width:
        label = label[:-1]
    return f" {name}  {label}{'…' * (label != fate.label)} {rest}"
