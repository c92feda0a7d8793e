"""Pictures and boxes from original pixels to the square canvas of the encoders, by the arithmetic of ``frames``.

Shapes: ``n`` boxes, ``S`` canvas side.
"""

import math
from typing import Literal

import numpy as np
from PIL import Image

from mg_llava.data.choices import wrong_choice
from mg_llava.data.pictures.frames import Canvas

BoxMode = Literal["reference", "exact"]

PAD_COLOR = (122, 116, 104)
"""The mean color of CLIP's training pictures, as 8-bit RGB."""


def picture_to_canvas(image: Image.Image, canvas: Canvas, pad_color: tuple[int, int, int] = PAD_COLOR) -> np.ndarray:
    """Pad, resize (PIL bicubic) and crop an RGB picture of the size that ``canvas`` was made for: (3, S, S) uint8.

    Divided by 255 and normalized, the result equals what transformers' PIL-based CLIPImageProcessor makes of the
    padded picture.

    Raises:
        ValueError: The picture is not RGB or has another size than the canvas was made for.
    """
    if image.mode != "RGB" or image.size != (canvas.width, canvas.height):
        raise ValueError(
            f"found a picture of mode {image.mode} and size {image.size}; the canvas needs mode RGB and size "
            f"{(canvas.width, canvas.height)}: convert with mg_llava.data.pictures.files.to_rgb first"
        )
    if image.size != canvas.padded_size:
        return _pad_and_resize(image, canvas, pad_color)
    resized = image.resize(canvas.resized_size, Image.Resampling.BICUBIC)
    if resized.size != (canvas.size, canvas.size):
        left, top = canvas.crop_offset
        resized = resized.crop((left, top, left + canvas.size, top + canvas.size))
    return np.stack([np.asarray(plane) for plane in resized.split()])


def _pad_and_resize(image: Image.Image, canvas: Canvas, pad_color: tuple[int, int, int]) -> np.ndarray:
    """(3, S, S) uint8: the padded square, resized; only the band that the picture reaches is computed.

    Pillow resizes a square by columns first and by rows then, and a ``box`` of whole pixels with the weights of the
    whole; so the values are the same.
    """
    size, side, offset = canvas.size, max(image.size), max(canvas.pad_offset)
    scale = side / size
    reach = 2 * max(scale, 1.0) + 1  # of the bicubic kernel, in padded pixels, and a pixel more
    step = size // math.gcd(side, size)  # so many canvas pixels are a whole number of padded ones
    first = max(0, math.floor((offset - reach) / scale / step) * step)
    last = min(size, math.ceil((offset + min(image.size) + reach) / scale / step) * step)
    start = max(0, math.floor(first * scale - reach))
    stop = min(side, math.ceil(last * scale + reach))
    low, high = first * side // size - start, last * side // size - start
    bicubic = Image.Resampling.BICUBIC
    pixels = np.empty((3, size, size), dtype=np.uint8)
    padding = np.array(pad_color, dtype=np.uint8)[:, None, None]
    if image.width > image.height:
        strip = Image.new("RGB", (size, stop - start), pad_color)
        strip.paste(image.resize((size, image.height), bicubic), (0, offset - start))
        band = strip.resize((size, last - first), bicubic, (0, low, size, high))
        pixels[:, :first], pixels[:, last:], inside = padding, padding, pixels[:, first:last]
    else:
        strip = Image.new("RGB", (stop - start, side), pad_color)
        strip.paste(image, (offset - start, 0))
        columns = strip.resize((last - first, side), bicubic, (low, 0, high, side))
        band = columns.resize((last - first, size), bicubic)
        pixels[:, :, :first], pixels[:, :, last:], inside = padding, padding, pixels[:, :, first:last]
    for own, plane in zip(inside, band.split(), strict=True):  # faster than to turn (S, S, 3) around afterwards
        own[:] = np.asarray(plane)
    return pixels


def place_boxes(
    boxes: np.ndarray, canvas: Canvas, mode: BoxMode = "reference", min_area: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Place boxes on a canvas.

    ``reference`` places them the way the published weights were trained: integer pixels, not clipped to the picture.
    The center-crop correction is computed from ``int(side * (S / side))``, which is S - 1 for some sides, so that all
    boxes move by +1 pixel there; boxes reach into the padding; a box that only touches the right or lower edge stays
    with zero area. ``squash`` scales without rounding, clipping or dropping. ``exact`` does not round, and clips to
    the picture first and to the canvas then.

    Args:
        boxes: (n, 4) original pixels.
        canvas: The frame to place them on.
        mode: ``reference`` or ``exact``.
        min_area: In ``exact`` mode boxes with a smaller area on the canvas (square canvas pixels) are dropped.

    Returns:
        (k, 4) float64 canvas pixels, and (k,) int64 indices of the boxes that are left, ascending.

    Raises:
        ValueError: ``mode`` is unknown.
    """
    for wrong in wrong_choice("box mode", mode, BoxMode):
        raise ValueError(wrong)
    if mode == "exact":
        return _place_exact(boxes, canvas, min_area)
    if canvas.resize == "squash":
        return canvas.to_canvas(boxes), np.arange(len(boxes))
    size = canvas.size
    scale = size / min(canvas.padded_size)
    shift = np.tile([(int(side * scale) - size) // 2 for side in canvas.padded_size], 2)
    placed = np.round(canvas.to_padded(boxes) * scale) - shift
    placed[:, :2] = np.maximum(placed[:, :2], 0)
    placed[:, 2:] = np.minimum(placed[:, 2:], size)
    inside = (placed[:, 2:] >= 0).all(axis=1) & (placed[:, :2] <= size).all(axis=1)
    return placed[inside], np.flatnonzero(inside)


def _place_exact(boxes: np.ndarray, canvas: Canvas, min_area: float) -> tuple[np.ndarray, np.ndarray]:
    clipped = np.clip(boxes, 0, np.tile([canvas.width, canvas.height], 2))
    placed = np.clip(canvas.to_canvas(clipped), 0, canvas.size)
    area = (placed[:, 2] - placed[:, 0]) * (placed[:, 3] - placed[:, 1])
    large = (area >= min_area) & (area > 0)
    return placed[large], np.flatnonzero(large)
