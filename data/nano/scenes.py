"""Scenes of the miniature: handwritten digits and distractor shapes on dimmed photographs, with exact boxes.

Frames: *original* is the pixels of the picture as written to disk, *canvas* is the padded square of ``CANVAS`` pixels
that the model sees. The canvas is divided into ``GRID`` x ``GRID`` cells; every mark lies inside one cell.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import skimage
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits

CANVAS = 256
GRID = 8
CELL = CANVAS // GRID
PAD_COLOR = (122, 116, 104)
LEVELS = ("small", "medium", "large")
LEVEL_HEIGHTS = ((12.0, 13.0), (15.0, 16.2), (18.5, 20.0))
"""Height of the ink of a mark, in canvas pixels, by level; the gaps keep "largest" unambiguous."""
SHAPES = ("disc", "square", "plus", "cross", "triangle", "diamond")
HELD_OUT_DIGITS = 360
BACKGROUNDS = {
    "train": (
        "astronaut.png",
        "camera.png",
        "coffee.png",
        "rocket.jpg",
        "brick.png",
        "grass.png",
        "moon.png",
        "motorcycle_left.png",
        "ihc.png",
        "retina.jpg",
    ),
    "heldout": ("chelsea.png", "gravel.png", "hubble_deep_field.jpg", "cell.png"),
}
Split = Literal["train", "heldout"]
Sampler = Callable[[np.random.Generator, list[int], list[int]], list[tuple[int, int, int, int]]]


@dataclass(frozen=True)
class Mark:
    """One digit or distractor. ``digit`` is -1 for a distractor; ``box`` is xyxy in original pixels."""

    digit: int
    row: int
    column: int
    level: int
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Scene:
    """A drawn picture and what is on it."""

    image: Image.Image
    marks: tuple[Mark, ...]

    @property
    def digits(self) -> tuple[Mark, ...]:
        """The marks that are digits."""
        return tuple(mark for mark in self.marks if mark.digit >= 0)


@dataclass(frozen=True)
class Frame:
    """Size of a picture and its place on the canvas."""

    width: int
    height: int

    @property
    def scale(self) -> float:
        """Canvas pixels per original pixel."""
        return CANVAS / max(self.width, self.height)

    @property
    def offset(self) -> tuple[int, int]:
        """Padding at the left and at the top, in original pixels."""
        side = max(self.width, self.height)
        return (side - self.width) // 2, (side - self.height) // 2

    def usable_cells(self) -> tuple[list[int], list[int]]:
        """Grid rows and columns that lie wholly inside the picture."""
        left, top = self.offset
        columns = _whole_cells(left * self.scale, (left + self.width) * self.scale)
        rows = _whole_cells(top * self.scale, (top + self.height) * self.scale)
        return rows, columns

    def to_original(self, x: float, y: float) -> tuple[float, float]:
        """Canvas point to original pixels."""
        left, top = self.offset
        return x / self.scale - left, y / self.scale - top


def _whole_cells(start: float, stop: float) -> list[int]:
    return [i for i in range(GRID) if i * CELL >= start - 1 and (i + 1) * CELL <= stop + 1]


@lru_cache(maxsize=2)
def digit_tiles(split: Split) -> tuple[tuple[Image.Image, ...], ...]:
    """Handwritten digits by class, cropped to their ink, 8-bit gray; the two splits share no picture."""
    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    chosen = order[:HELD_OUT_DIGITS] if split == "heldout" else order[HELD_OUT_DIGITS:]
    tiles: list[list[Image.Image]] = [[] for _ in range(10)]
    for index in chosen:
        pixels = np.clip(bunch.images[index] / 16.0 * 1.25, 0, 1)
        tiles[int(bunch.target[index])].append(_crop_to_ink((pixels * 255).astype(np.uint8)))
    return tuple(tuple(group) for group in tiles)


def _crop_to_ink(pixels: np.ndarray) -> Image.Image:
    rows, columns = np.where(pixels > 80)
    cropped = pixels[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    return Image.fromarray(np.pad(cropped, 1))


@lru_cache(maxsize=1)
def shape_tiles() -> tuple[Image.Image, ...]:
    """Distractors, as tiles of about the size of a digit's tile."""
    return tuple(_draw_shape(name) for name in SHAPES)


def _draw_shape(name: str) -> Image.Image:
    big = Image.new("L", (80, 80))
    draw = ImageDraw.Draw(big)
    low, high, middle = 10, 69, 40
    if name == "disc":
        draw.ellipse((low, low, high, high), fill=255)
    elif name == "square":
        draw.rectangle((low, low, high, high), outline=255, width=13)
    elif name == "plus":
        draw.rectangle((middle - 7, low, middle + 6, high), fill=255)
        draw.rectangle((low, middle - 7, high, middle + 6), fill=255)
    elif name == "cross":
        draw.line((low, low, high, high), fill=255, width=15)
        draw.line((low, high, high, low), fill=255, width=15)
    elif name == "triangle":
        draw.polygon((middle, low, high, high, low, high), fill=255)
    else:
        draw.polygon((middle, low, high, middle, middle, high, low, middle), fill=255)
    return big.resize((10, 10), Image.Resampling.BOX)


@lru_cache(maxsize=2)
def photographs(split: Split) -> tuple[Image.Image, ...]:
    """Photographs that scikit-image ships inside its wheel (no download), long side at most 512 px."""
    folder = Path(skimage.__file__).parent / "data"
    pictures = []
    for name in BACKGROUNDS[split]:
        picture = Image.open(folder / name).convert("RGB")
        picture.thumbnail((512, 512))
        pictures.append(picture)
    return tuple(pictures)


def draw_background(rng: np.random.Generator, split: Split, frame: Frame) -> np.ndarray:
    """A dimmed random crop of a photograph, (height, width, 3) float32, values below about 120."""
    pictures = photographs(split)
    picture = pictures[rng.integers(len(pictures))]
    fraction = rng.uniform(0.5, 0.95)
    ratio = min(picture.width / frame.width, picture.height / frame.height) * fraction
    width, height = frame.width * ratio, frame.height * ratio
    left = rng.uniform(0, picture.width - width)
    top = rng.uniform(0, picture.height - height)
    crop = picture.resize(
        (frame.width, frame.height), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height)
    )
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    low, span = rng.uniform(8, 35), rng.uniform(40, 85)
    pixels = np.asarray(crop, np.float32) * (span / 255.0) + low
    return pixels * rng.uniform(0.8, 1.1, 3).astype(np.float32)


def _draw_tile(
    rng: np.random.Generator, pixels: np.ndarray, tile: Image.Image, center: tuple[float, float], height: float
) -> tuple[float, float, float, float]:
    """Blend a tile into ``pixels`` (in place) around ``center``; returns the box of its ink in the same pixels."""
    zoom = (tile.height - 2) / height
    angle = math.radians(rng.uniform(-7, 7))
    cosine, sine = math.cos(angle) * zoom, math.sin(angle) * zoom
    wide, tall = math.ceil((tile.width - 2) / zoom) + 4, math.ceil(height) + 4
    left, top = round(center[0] - wide / 2), round(center[1] - tall / 2)
    dx, dy = center[0] - left, center[1] - top
    shift_x = tile.width / 2 - cosine * dx - sine * dy
    shift_y = tile.height / 2 + sine * dx - cosine * dy
    matrix = (cosine, sine, shift_x, -sine, cosine, shift_y)
    ink = tile.transform((wide, tall), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    alpha = np.asarray(ink, np.float32) * (1.1 / 255.0)
    alpha = np.minimum(alpha, 1.0)
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + wide, pixels.shape[1]), min(top + tall, pixels.shape[0])
    alpha = alpha[y0 - top : y1 - top, x0 - left : x1 - left]
    color = rng.uniform(0.78, 1.0, 3).astype(np.float32) * np.float32(rng.uniform(225, 255))
    region = pixels[y0:y1, x0:x1]
    region += alpha[..., None] * (color - region)
    rows, columns = np.where(alpha > 0.45)
    return (x0 + columns.min(), y0 + rows.min(), x0 + columns.max() + 1.0, y0 + rows.max() + 1.0)


def random_frame(rng: np.random.Generator) -> Frame:
    """A picture size: long side around the canvas side, aspect ratio up to 4:3 either way."""
    side = int(rng.choice((240, 256, 256, 256, 272, 288)))
    short = round(side * float(rng.choice((0.75, 0.85, 1.0))))
    return Frame(side, short) if rng.random() < 0.5 else Frame(short, side)


def place(
    rng: np.random.Generator,
    pixels: np.ndarray,
    frame: Frame,
    split: Split,
    digit: int,
    cell: tuple[int, int],
    level: int,
    spread: float = 1.0,
) -> Mark:
    """Draw a digit, or a distractor for -1, into a cell of ``pixels`` (in place).

    Anywhere in the cell, or around its middle: ``spread`` is a share of the room that there is.
    """
    tiles = digit_tiles(split)[digit] if digit >= 0 else shape_tiles()
    tile = tiles[rng.integers(len(tiles))]
    height = rng.uniform(*LEVEL_HEIGHTS[level])
    half_width = height * (tile.width - 2) / (tile.height - 2) / 2 + 2
    half_height = height / 2 + 2
    row, column = cell
    x = column * CELL + CELL / 2 + rng.uniform(-1, 1) * spread * max(CELL / 2 - half_width - 1, 0)
    y = row * CELL + CELL / 2 + rng.uniform(-1, 1) * spread * max(CELL / 2 - half_height - 1, 0)
    box = _draw_tile(rng, pixels, tile, frame.to_original(x, y), height / frame.scale)
    return Mark(digit, row, column, level, box)


def finish(rng: np.random.Generator, pixels: np.ndarray, marks: list[Mark]) -> Scene:
    """The picture, with some noise."""
    pixels = pixels + rng.normal(0, 2.0, pixels.shape[:2]).astype(np.float32)[..., None]
    return Scene(Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), tuple(marks))


def sample_layout(rng: np.random.Generator, rows: list[int], columns: list[int]) -> list[tuple[int, int, int, int]]:
    """What is where: tuples of (digit or -1, row, column, level).

    Two to five different digits, at most one per grid row and column, exactly one of the highest level among them;
    one to four distractors in other cells.
    """
    count = int(rng.integers(2, 6))
    digits = rng.permutation(10)[:count]
    digit_rows = rng.permutation(rows)[:count]
    digit_columns = rng.permutation(columns)[:count]
    top_level = int(rng.integers(1, 3))
    levels = rng.integers(0, top_level, count)
    levels[rng.integers(count)] = top_level
    layout = [tuple(map(int, item)) for item in zip(digits, digit_rows, digit_columns, levels, strict=True)]
    taken = {(row, column) for _, row, column, _ in layout}
    wanted = len(layout) + int(rng.integers(1, 5))
    while len(layout) < wanted:
        cell = (int(rng.choice(rows)), int(rng.choice(columns)))
        if cell not in taken:
            taken.add(cell)
            layout.append((-1, *cell, int(rng.integers(0, 3))))
    return layout


def draw_scene(rng: np.random.Generator, split: Split, sample: Sampler = sample_layout, spread: float = 1.0) -> Scene:
    """A picture of the task: few digits, few distractors, any of the picture sizes; ``sample`` says what is where.

    ``spread`` as of :func:`place`.
    """
    frame = random_frame(rng)
    pixels = draw_background(rng, split, frame)
    layout = sample(rng, *frame.usable_cells())
    marks = [
        place(rng, pixels, frame, split, digit, (row, column), level, spread) for digit, row, column, level in layout
    ]
    return finish(rng, pixels, marks)


def draw_dense_scene(rng: np.random.Generator, split: Split, fill: float = 0.8) -> Scene:
    """A picture with a mark in most cells, for the pretraining of the encoders (many digits per picture)."""
    frame = random_frame(rng)
    pixels = draw_background(rng, split, frame)
    rows, columns = frame.usable_cells()
    marks = []
    for row in rows:
        for column in columns:
            if rng.random() < fill:
                digit = int(rng.integers(10)) if rng.random() < 0.8 else -1
                marks.append(place(rng, pixels, frame, split, digit, (row, column), int(rng.integers(3))))
    return finish(rng, pixels, marks)


def to_canvas(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Canvas (CANVAS, CANVAS, 3) uint8 and the boxes of the marks (n, 4) float32 in canvas pixels."""
    frame = Frame(*scene.image.size)
    side = max(frame.width, frame.height)
    square = Image.new("RGB", (side, side), PAD_COLOR)
    square.paste(scene.image, frame.offset)
    if side != CANVAS:
        square = square.resize((CANVAS, CANVAS), Image.Resampling.BICUBIC)
    boxes = np.array([mark.box for mark in scene.marks], np.float32).reshape(-1, 4)
    boxes += np.array(frame.offset * 2, np.float32)
    return np.asarray(square), boxes * frame.scale
