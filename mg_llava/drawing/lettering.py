"""Fonts and line breaks for drawings; needs no screen and no font file."""

import math
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

from PIL import ImageFont

Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

_SYSTEM_FONTS = ("DejaVuSans.ttf", "Arial.ttf")
"""Tried first: PIL's own font has little beyond ASCII."""


def load_font(size: int, path: str | Path | None = None) -> Font:
    """A font file in some size, or what is there: a common font of the system, else PIL's own.

    Raises:
        OSError: If the font file cannot be read.
    """
    if path is None:
        return _default_font(size)
    try:
        return ImageFont.truetype(str(path), size)
    except OSError as error:
        raise OSError(f"font file {path} cannot be read ({error}); give a TrueType or OpenType file") from error


@lru_cache(maxsize=32)
def _default_font(size: int) -> Font:
    for name in _SYSTEM_FONTS:
        try:
            return ImageFont.truetype(name, size)
        except (ImportError, OSError):
            continue
    try:
        return ImageFont.load_default(size)
    except (ImportError, OSError):  # PIL without FreeType has one small font
        return ImageFont.load_default()


def line_height(face: Font) -> int:
    """Pixels from one line to the next."""
    _, top, _, bottom = face.getbbox("Ägjy|")
    return math.ceil(1.25 * (bottom - min(top, 0)))


def wrap(text: str, width: float, face: Font) -> list[str]:
    """Break a text into lines of at most ``width`` pixels; words that are longer are broken too.

    Control characters, which untrained models write and layout engines refuse, become blanks.
    """
    lines = []
    printable = "".join(letter if letter.isprintable() or letter == "\n" else " " for letter in text)
    for paragraph in printable.split("\n"):
        line = ""
        for word in paragraph.split(" "):
            joined = f"{line} {word}" if line else word
            if face.getlength(joined) <= width:
                line = joined
                continue
            if line:
                lines.append(line)
            *full, line = break_word(word, width, face)
            lines += full
        lines.append(line)
    return lines


def break_word(word: str, width: float, face: Font) -> list[str]:
    """Pieces of at most ``width`` pixels (one letter at least)."""
    pieces = [""]
    for letter in word:
        if pieces[-1] and face.getlength(pieces[-1] + letter) > width:
            pieces.append("")
        pieces[-1] += letter
    return pieces
