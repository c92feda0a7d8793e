"""Two figures of how a model reads an answer: its tokens' probabilities, and where they look in the picture."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from mg_llava.drawing.boxes import MARGIN, PAPER, draw_text
from mg_llava.drawing.heat import draw_heat
from mg_llava.drawing.lettering import load_font
from mg_llava.inference.explaining import AnswerReading, heat_on_picture

_COLUMNS = 4
_SIDE = 320
_INK = "#222222"


def compare_readings(readings: Mapping[str, AnswerReading]) -> dict[str, Any]:
    """The probabilities of an answer's tokens after several questions, as plain values for JSON."""
    first = next(iter(readings.values()))
    return {
        "tokens": list(first.tokens),
        "probabilities": {name: reading.probabilities.round(6).tolist() for name, reading in readings.items()},
        "mean": {name: round(reading.mean_probability, 6) for name, reading in readings.items()},
    }


def format_comparison(found: Mapping[str, Any]) -> str:
    """The same for the terminal: a row for each token, and their mean."""
    names = list(found["probabilities"])
    width = max(10, *(len(repr(token)) for token in found["tokens"]))
    rows = [("token", *names)]
    columns = list(found["probabilities"].values())
    rows += [(repr(token), *(f"{own[n]:.4f}" for own in columns)) for n, token in enumerate(found["tokens"])]
    rows.append(("mean", *(f"{found['mean'][name]:.4f}" for name in names)))
    return "\n".join("  ".join([row[0].ljust(width), *(cell.rjust(12) for cell in row[1:])]) for row in rows)


def draw_attention(image: Image.Image, reading: AnswerReading, picture: int = 0, most: int = 15) -> Image.Image:
    """The attention of an answer's tokens to a picture: their mean, then each of the first ones.

    Args:
        image: The picture as the model saw it, RGB.
        reading: With attention.
        picture: Number of the picture.
        most: Tokens that are drawn.

    Raises:
        ValueError: The visual tokens of the picture are on no grid.
    """
    maps = reading.maps[picture]
    if maps is None:
        raise ValueError("the visual tokens of this model are on no grid of the picture; there is no map to draw")
    canvas = reading.canvases[picture]
    masses = reading.masses[picture]
    titles = [f"mean of {len(maps)} tokens, {masses.mean():.1%} on the picture"]
    titles += [
        f"{token!r}  p {chance:.2f}, {mass:.1%}"
        for token, chance, mass in zip(reading.tokens, reading.probabilities, masses, strict=True)
    ]
    grids = [maps.mean(axis=0), *maps[:most]]
    panels = [_panel(image, heat_on_picture(grid, canvas), title) for grid, title in zip(grids, titles, strict=False)]
    return _sheet(panels)


def _panel(image: Image.Image, heat: np.ndarray, title: str) -> Image.Image:
    drawn = draw_heat(image, heat)
    scale = _SIDE / max(drawn.size)
    drawn = drawn.resize((max(1, round(drawn.width * scale)), max(1, round(drawn.height * scale))))
    text = draw_text([(title, _INK)], _SIDE, load_font(14))
    panel = Image.new("RGB", (_SIDE, drawn.height + text.height), PAPER)
    panel.paste(drawn, (0, 0))
    panel.paste(text, (0, drawn.height))
    return panel


def _sheet(panels: Sequence[Image.Image]) -> Image.Image:
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    height = max(panel.height for panel in panels)
    sheet = Image.new("RGB", (columns * (_SIDE + MARGIN) + MARGIN, rows * (height + MARGIN) + MARGIN), PAPER)
    for number, panel in enumerate(panels):
        row, column = divmod(number, columns)
        sheet.paste(panel, (MARGIN + column * (_SIDE + MARGIN), MARGIN + row * (height + MARGIN)))
    return sheet
