"""Arithmetic of frames: where a point of a picture lies in its padded square, on its canvas, as shares of a frame.

Frames, all with continuous xyxy coordinates in pixels: original (W x H, as decoded), padded (the centered square
around the original, or the original itself without padding) and canvas (S x S, what the encoders see). Shares are
pixels of a frame divided by its width and height. Shapes: ``n`` boxes, ``S`` canvas side. Neither PIL nor torch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Frame = Literal["original", "padded"]
Resize = Literal["shortest_edge", "squash"]


def frame_size(size: tuple[int, int], frame: Frame) -> tuple[int, int]:
    """Width and height of a frame of a picture of width and height ``size``."""
    return (max(size), max(size)) if frame == "padded" else size


def frame_offset(size: tuple[int, int], frame: Frame) -> tuple[int, int]:
    """Where the original's top left corner lies in a frame (x, y), in whole pixels."""
    width, height = frame_size(size, frame)
    return (width - size[0]) // 2, (height - size[1]) // 2


def to_shares(boxes: np.ndarray, size: tuple[int, int], frame: Frame) -> np.ndarray:
    """Map (n, 4) boxes from original pixels to shares of a frame: neither rounded nor clipped."""
    return (boxes + np.tile(frame_offset(size, frame), 2)) / np.tile(frame_size(size, frame), 2)


def from_shares(shares: np.ndarray, size: tuple[int, int], frame: Frame) -> np.ndarray:
    """Map (n, 4) boxes from shares of a frame to original pixels: the inverse of ``to_shares``."""
    return shares * np.tile(frame_size(size, frame), 2) - np.tile(frame_offset(size, frame), 2)


def crop_of(box: Sequence[float], size: tuple[int, int], context: float = 0.0) -> tuple[int, int, int, int]:
    """Whole pixels of a picture of width and height ``size`` around a box, at least one of each side.

    Args:
        box: xyxy in original pixels.
        size: Width and height of the picture.
        context: Share of its width and height by which the crop is wider on each side.
    """
    corners = []
    for low, high, side in zip(box[:2], box[2:], size, strict=True):
        more = context * (high - low)
        first = min(max(math.floor(low - more), 0), side - 1)
        corners.append((first, max(min(math.ceil(high + more), side), first + 1)))
    (left, right), (top, bottom) = corners
    return left, top, right, bottom


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
        return frame_size((self.width, self.height), "padded" if self.pad_to_square else "original")

    @property
    def pad_offset(self) -> tuple[int, int]:
        """Where the original's top left corner lies in the padded frame (x, y)."""
        return frame_offset((self.width, self.height), "padded" if self.pad_to_square else "original")

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

    def from_centers(self, boxes: np.ndarray) -> np.ndarray:
        """Map (n, 4) cxcywh shares of the canvas to xyxy in original pixels, clipped to the picture."""
        corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)
        return np.clip(self.to_original(corners * self.size), 0, np.tile((self.width, self.height), 2))

    def misses(self, boxes: np.ndarray) -> np.ndarray:
        """(n,) bool: which of (n, 4) boxes in original pixels have no part of the picture that the canvas shows."""
        left, top, right, bottom = self.to_original(self.picture_box[None])[0]
        shown = np.clip([left, top, right, bottom], 0, [self.width, self.height] * 2)
        return (boxes[:, 2:] <= shown[:2]).any(axis=1) | (boxes[:, :2] >= shown[2:]).any(axis=1)

    def _scale(self) -> np.ndarray:
        """(4,) resized pixels per padded pixel, for x, y, x, y."""
        return np.tile(np.array(self.resized_size, dtype=np.float64) / np.array(self.padded_size), 2)
