"""Pictures and boxes from original pixels to the square canvas of the high-resolution encoder, and back.

The only place that knows coordinates. Frames, all with continuous xyxy coordinates in pixels:
original (W x H, as decoded), padded (the centered square around the original, or the original itself without padding)
and canvas (S x S, what the encoders see). Shapes: ``n`` boxes, ``S`` canvas side.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

Resize = Literal["shortest_edge", "squash"]
BoxMode = Literal["reference", "exact"]

PAD_COLOR = (122, 116, 104)
"""The mean color of CLIP's training pictures, as 8-bit RGB."""


@dataclass(frozen=True)
class Canvas:
    """Where one picture lies on its canvas.

    Args:
        width: Width of the original in pixels.
        height: Height of the original in pixels.
        size: Side S of the canvas in pixels.
        pad_to_square: Pad the original to a centered square first. Without it the longer side is cropped
            (``shortest_edge``) or the aspect ratio is lost (``squash``).
        resize: ``shortest_edge`` scales the shorter side to S and crops the center; ``squash`` scales each side to S
            (for processors without a crop size, such as SigLIP's). The same thing where ``pad_to_square`` is set.

    Raises:
        ValueError: A side is not positive, or ``resize`` is unknown.
    """

    width: int
    height: int
    size: int
    pad_to_square: bool = True
    resize: Resize = "shortest_edge"

    def __post_init__(self) -> None:
        if min(self.width, self.height, self.size) < 1:
            raise ValueError(f"a picture of {self.width} x {self.height} does not fit a canvas of side {self.size}")
        if self.resize not in ("shortest_edge", "squash"):
            raise ValueError(f"resize is {self.resize!r}; allowed: 'shortest_edge', 'squash'")

    @property
    def padded_size(self) -> tuple[int, int]:
        """Width and height of the padded frame."""
        side = max(self.width, self.height)
        return (side, side) if self.pad_to_square else (self.width, self.height)

    @property
    def pad_offset(self) -> tuple[int, int]:
        """Where the original's top left corner lies in the padded frame (x, y)."""
        width, height = self.padded_size
        return (width - self.width) // 2, (height - self.height) // 2

    @property
    def resized_size(self) -> tuple[int, int]:
        """Width and height after resizing, before the center crop."""
        width, height = self.padded_size
        if self.resize == "squash":
            return self.size, self.size
        longer = int(self.size * max(width, height) / min(width, height))
        return (self.size, longer) if width <= height else (longer, self.size)

    @property
    def crop_offset(self) -> tuple[int, int]:
        """Where the canvas' top left corner lies in the resized picture (x, y)."""
        width, height = self.resized_size
        return (width - self.size) // 2, (height - self.size) // 2

    @property
    def picture_box(self) -> np.ndarray:
        """(4,) the part of the canvas that the picture covers, canvas pixels."""
        corners = self.to_canvas(np.array([[0, 0, self.width, self.height]], dtype=np.float64))[0]
        return np.clip(corners, 0, self.size)

    def to_padded(self, boxes: np.ndarray) -> np.ndarray:
        """Move (n, 4) boxes from original to padded pixels."""
        return boxes + np.tile(self.pad_offset, 2)

    def to_canvas(self, boxes: np.ndarray) -> np.ndarray:
        """Map (n, 4) boxes from original to canvas pixels: exact, neither rounded nor clipped."""
        return self.to_padded(boxes) * self._scale() - np.tile(self.crop_offset, 2)

    def to_original(self, boxes: np.ndarray) -> np.ndarray:
        """Map (n, 4) boxes from canvas to original pixels: the inverse of ``to_canvas``."""
        return (boxes + np.tile(self.crop_offset, 2)) / self._scale() - np.tile(self.pad_offset, 2)

    def misses(self, boxes: np.ndarray) -> np.ndarray:
        """(n,) bool: which of (n, 4) boxes in original pixels have no part of the picture that the canvas shows."""
        left, top, right, bottom = self.to_original(self.picture_box[None])[0]
        shown = np.clip([left, top, right, bottom], 0, [self.width, self.height] * 2)
        return (boxes[:, 2:] <= shown[:2]).any(axis=1) | (boxes[:, :2] >= shown[2:]).any(axis=1)

    def _scale(self) -> np.ndarray:
        """(4,) resized pixels per padded pixel, for x, y, x, y."""
        return np.tile(np.array(self.resized_size, dtype=np.float64) / np.array(self.padded_size), 2)


def picture_to_canvas(image: Image.Image, canvas: Canvas, pad_color: tuple[int, int, int] = PAD_COLOR) -> np.ndarray:
    """Pad, resize (PIL bicubic) and crop an RGB picture.

    Divided by 255 and normalized, the result equals what transformers' PIL-based CLIPImageProcessor makes of the
    padded picture.

    Args:
        image: RGB picture of the size that ``canvas`` was made for.
        canvas: The frame to draw on.
        pad_color: 8-bit RGB of the padding.

    Returns:
        (S, S, 3) uint8.

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
    return np.array(resized, dtype=np.uint8)


def _pad_and_resize(image: Image.Image, canvas: Canvas, pad_color: tuple[int, int, int]) -> np.ndarray:
    """(S, S, 3) uint8: the padded square, resized; only the band that the picture reaches is computed.

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
    pixels = np.empty((size, size, 3), dtype=np.uint8)
    padding = np.tile(np.array(pad_color, dtype=np.uint8), (size, 1))  # (S, 3): whole rows are copied faster
    if image.width > image.height:
        strip = Image.new("RGB", (size, stop - start), pad_color)
        strip.paste(image.resize((size, image.height), bicubic), (0, offset - start))
        pixels[:first], pixels[last:] = padding, padding
        pixels[first:last] = np.asarray(strip.resize((size, last - first), bicubic, (0, low, size, high)))
    else:
        strip = Image.new("RGB", (stop - start, side), pad_color)
        strip.paste(image, (offset - start, 0))
        columns = strip.resize((last - first, side), bicubic, (low, 0, high, side))
        pixels[:, :first], pixels[:, last:] = padding[:first], padding[last:]
        pixels[:, first:last] = np.asarray(columns.resize((last - first, size), bicubic))
    return pixels


def place_boxes_reference(boxes: np.ndarray, canvas: Canvas) -> tuple[np.ndarray, np.ndarray]:
    """Place boxes the way the published weights were trained: integer pixels, not clipped to the picture.

    The center-crop correction is computed from ``int(side * (S / side))``, which is S - 1 for some sides, so that all
    boxes move by +1 pixel there; boxes reach into the padding; a box that only touches the right or lower edge stays
    with zero area. ``squash`` scales without rounding, clipping or dropping.

    Args:
        boxes: (n, 4) original pixels.
        canvas: The frame to place them on.

    Returns:
        (k, 4) float64 canvas pixels, and (k,) int64 indices of the boxes that are left, ascending.
    """
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


def place_boxes_exact(boxes: np.ndarray, canvas: Canvas, min_area: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Place boxes without rounding, clipped to the picture first and to the canvas then.

    Args:
        boxes: (n, 4) original pixels.
        canvas: The frame to place them on.
        min_area: Boxes with a smaller area on the canvas (square canvas pixels) are dropped.

    Returns:
        (k, 4) float64 canvas pixels, and (k,) int64 indices of the boxes that are left, ascending.
    """
    clipped = np.clip(boxes, 0, np.tile([canvas.width, canvas.height], 2))
    placed = np.clip(canvas.to_canvas(clipped), 0, canvas.size)
    area = (placed[:, 2] - placed[:, 0]) * (placed[:, 3] - placed[:, 1])
    large = (area >= min_area) & (area > 0)
    return placed[large], np.flatnonzero(large)


def place_boxes(
    boxes: np.ndarray, canvas: Canvas, mode: BoxMode = "reference", min_area: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Place (n, 4) boxes in original pixels on the canvas; see the functions of the two modes.

    Raises:
        ValueError: ``mode`` is unknown.
    """
    if mode == "reference":
        return place_boxes_reference(boxes, canvas)
    if mode == "exact":
        return place_boxes_exact(boxes, canvas, min_area)
    raise ValueError(f"box mode is {mode!r}; allowed: 'reference', 'exact'")
