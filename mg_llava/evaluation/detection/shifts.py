"""Shifted copies of pictures, which a detector was not trained on: contrast, noise, blur."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageFilter

ShiftKind = Literal["clean", "contrast", "noise", "blur"]
_MIDDLE = 127.5


@dataclass(frozen=True)
class Shift:
    """One way in which pictures are changed; boxes stay where they are.

    Args:
        kind: ``clean`` changes nothing; ``contrast`` multiplies the distance from the middle grey; ``noise`` adds
            Gaussian noise, the same for all channels; ``blur`` is Gaussian.
        severity: The factor of the contrast, the standard deviation of the noise in grey values of 255, the radius of
            the blur in pixels.

    Raises:
        ValueError: The kind is unknown or the severity negative.
    """

    kind: ShiftKind = "clean"
    severity: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(ShiftKind):
            raise ValueError(f"shift is {self.kind!r}; known: {', '.join(get_args(ShiftKind))}")
        if not 0 <= self.severity < float("inf"):
            raise ValueError(f"severity of {self.kind} is {self.severity}; it must be a number from 0 on")

    @classmethod
    def parse(cls, text: str) -> "Shift":
        """A shift from ``clean``, or ``KIND:SEVERITY`` such as ``blur:1.5``.

        Raises:
            ValueError: It is something else.
        """
        kind, _, severity = text.partition(":")
        try:
            return cls(kind, float(severity or (0 if kind == "clean" else "?")))  # type: ignore[arg-type]
        except ValueError as error:
            raise ValueError(f"shift {text!r}: {error}; write KIND:SEVERITY, such as blur:1.5, or clean") from error

    def __str__(self) -> str:
        return "clean" if self.kind == "clean" else f"{self.kind}:{self.severity:g}"

    def __call__(self, image: Image.Image, seed: int = 0) -> Image.Image:
        """The changed copy of an RGB picture; noise is drawn with ``seed``."""
        if self.kind == "clean":
            return image
        if self.kind == "blur":
            return image.filter(ImageFilter.GaussianBlur(self.severity))
        pixels = np.asarray(image, dtype=np.float32)
        if self.kind == "contrast":
            pixels = _MIDDLE + self.severity * (pixels - _MIDDLE)
        else:
            draw = np.random.default_rng(seed).normal(0, self.severity, pixels.shape[:2])
            pixels = pixels + draw.astype(np.float32)[..., None]
        return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
