"""Boxes with labels and scores, and text, as pictures; needs no screen and no font file."""

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from mg_llava.drawing.lettering import Font, line_height, load_font, wrap
from mg_llava.drawing.marks import Mark, draw_marks

COLORS = ("#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231", "#42d4f4", "#f032e6", "#bfef45", "#fabed4", "#469990")
PAPER = "#ffffff"
MARGIN = 12


def draw_boxes(
    image: Image.Image,
    boxes: np.ndarray | Sequence[Sequence[float]],
    labels: Sequence[str] = (),
    scores: Sequence[float] = (),
    min_side: int = 640,
    max_side: int = 1600,
    font: str | Path | None = None,
) -> Image.Image:
    """Draw boxes on a copy of a picture.

    Args:
        image: The picture; not changed.
        boxes: (n, 4) xyxy in its pixels.
        labels: n labels, or none at all; boxes with the same label have the same color.
        scores: n scores, or none at all.
        min_side: Small pictures are enlarged until their longer side has this many pixels.
        max_side: Large ones are reduced to this.
        font: A TrueType file, for scripts that PIL's own font does not have.

    Returns:
        An RGB picture, enlarged or reduced.
    """
    longer = max(image.size)
    scale = min(max(1.0, min_side / longer), max_side / longer)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    sheet = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    placed = (np.asarray(boxes, dtype=np.float64).reshape(-1, 4) * scale).tolist()
    marks = [
        Mark(tuple(box), _color(labels[number] if labels else "", number), _caption(number, labels, scores))
        for number, box in enumerate(placed)
    ]
    draw_marks(sheet, marks, max(2, round(max(size) / 320)), load_font(max(12, round(max(size) / 45)), font))
    return sheet


def draw_text(paragraphs: Sequence[tuple[str, str]], width: int, face: Font) -> Image.Image:
    """A strip of text, ``width`` wide; each paragraph has its color."""
    lines = [(line, color) for text, color in paragraphs for line in wrap(text, width - 2 * MARGIN, face)]
    step = line_height(face)
    strip = Image.new("RGB", (width, step * len(lines) + 2 * MARGIN), PAPER)
    draw = ImageDraw.Draw(strip)
    for number, (line, color) in enumerate(lines):
        draw.text((MARGIN, MARGIN + number * step), line, fill=color, font=face)
    return strip


def _caption(number: int, labels: Sequence[str], scores: Sequence[float]) -> str:
    parts = [labels[number] if labels else "", f"{scores[number]:.2f}" if scores else ""]
    return " ".join(part for part in parts if part)


def _color(label: str, number: int) -> str:
    """The color of a label, the same in every picture; without labels one after the other."""
    return COLORS[(zlib.crc32(label.encode()) if label else number) % len(COLORS)]
