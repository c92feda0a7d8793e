"""Boxes without a trained detector: bright small marks, found as connected components."""

from typing import NamedTuple

import numpy as np
from PIL import Image

from mg_llava.registry import PROPOSERS

POOL = 4
"""Side of the blocks of pixels on which the surroundings are estimated."""


class Proposals(NamedTuple):
    """Boxes of one picture.

    Attributes:
        boxes: (n, 4) float64, xyxy in pixels of the original picture, best score first.
        scores: n floats in (0, 1].
        labels: n strings.
    """

    boxes: np.ndarray
    scores: list[float]
    labels: list[str]


@PROPOSERS.register_module()
class ConnectedComponentProposals:
    """Propose a box around every small mark that is brighter than what surrounds it.

    The picture's gray opening (everything bright and narrower than ``max_side`` removed) is subtracted; what is left
    above a threshold is joined over gaps of up to two pixels and labeled. The threshold is relative to the brightest
    mark of the picture, but never below ``min_contrast``.

    Args:
        min_side: marks whose longer side is below this many pixels are dropped.
        max_side: marks with a side above this many pixels are dropped.
        min_contrast: least brightness above the surroundings, 0..255.
        relative_contrast: least brightness above the surroundings relative to the brightest mark, 0..1.
        max_boxes: keep this many at most, best score first.
        label: the tag that every box gets.

    Raises:
        ValueError: if a size or a contrast is out of range.
    """

    def __init__(
        self,
        min_side: float = 7,
        max_side: float = 32,
        min_contrast: float = 40.0,
        relative_contrast: float = 0.42,
        max_boxes: int = 100,
        label: str = "mark",
    ):
        if not 0 < min_side <= max_side:
            raise ValueError(f"min_side={min_side} and max_side={max_side}: need 0 < min_side <= max_side")
        if not (0 <= min_contrast <= 255 and 0 < relative_contrast <= 1):
            raise ValueError(
                f"min_contrast={min_contrast} has to be in 0..255 and relative_contrast={relative_contrast} in (0, 1]"
            )
        if max_boxes < 1:
            raise ValueError(f"max_boxes={max_boxes} has to be at least 1")
        self.min_side = min_side
        self.max_side = max_side
        self.min_contrast = min_contrast
        self.relative_contrast = relative_contrast
        self.max_boxes = max_boxes
        self.label = label

    def __call__(self, image: Image.Image) -> Proposals:
        """Find the marks of one picture.

        Args:
            image: any mode, any size; not changed.

        Returns:
            The boxes, possibly none.
        """
        from scipy import ndimage

        contrast = self._contrast(image)
        peak = float(contrast.max())
        bright = contrast > max(self.min_contrast, self.relative_contrast * peak)
        components, _ = ndimage.label(ndimage.binary_dilation(bright), np.ones((3, 3)))
        components[~bright] = 0
        found: list[tuple[float, tuple[int, int, int, int]]] = []
        for number, place in enumerate(ndimage.find_objects(components), start=1):
            if place is None:
                continue
            rows, columns = place
            sides = rows.stop - rows.start, columns.stop - columns.start
            if max(sides) < self.min_side or max(sides) > self.max_side:
                continue
            strength = contrast[place][components[place] == number].mean() / 255.0
            found.append((min(float(strength), 1.0), (columns.start, rows.start, columns.stop, rows.stop)))
        found = sorted(found, key=lambda item: (-item[0], item[1]))[: self.max_boxes]
        boxes = np.array([box for _, box in found], dtype=np.float64).reshape(-1, 4)
        return Proposals(boxes, [score for score, _ in found], [self.label] * len(found))

    def _contrast(self, image: Image.Image) -> np.ndarray:
        """Brightness above the surroundings, (height, width) float32.

        The opening runs on the minima of blocks of ``POOL`` x ``POOL`` pixels, which is many times faster and, for
        marks wider than a block, the same up to the blocks' edges.
        """
        from scipy import ndimage

        gray = np.asarray(image.convert("RGB"), np.float32).mean(axis=2)
        height, width = gray.shape
        padded = np.pad(gray, ((0, -height % POOL), (0, -width % POOL)), mode="edge")
        # (h, POOL, w, POOL) -> (h, w): least value of each block
        blocks = padded.reshape(padded.shape[0] // POOL, POOL, padded.shape[1] // POOL, POOL).min(axis=(1, 3))
        size = int(self.max_side) // POOL + 1
        floor = ndimage.grey_opening(blocks, size=(size, size))
        return gray - floor.repeat(POOL, axis=0).repeat(POOL, axis=1)[:height, :width]
