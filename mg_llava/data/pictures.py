"""Picture files to RGB pictures: one place for decoding, color modes and orientation."""

import struct
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .geometry import BoxMode

_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
_ALPHA_BACKGROUND = (255, 255, 255, 255)


class PictureError(ValueError):
    """A picture file that cannot be read."""


def open_picture(path: str | Path, owner: str = "") -> Image.Image:
    """Open and fully decode a picture file, in the color mode of the file.

    Args:
        path: The file.
        owner: Whose picture it is, for the message, such as ``"record 17 of train.json"``.

    Raises:
        PictureError: The file is missing, truncated or not a picture; the message names file and owner.
    """
    suffix = f" of {owner}" if owner else ""
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError as error:
        raise PictureError(f"picture {path}{suffix} does not exist; check image_folder and the record") from error
    except _DECODE_ERRORS as error:
        raise PictureError(
            f"picture {path}{suffix} cannot be read ({type(error).__name__}: {error}); replace the file, remove the "
            "record or skip bad pictures with bad_image='skip'"
        ) from error


def to_rgb(image: Image.Image, mode: BoxMode = "reference", apply_exif: bool = False) -> Image.Image:
    """Convert a picture of any color mode to RGB; the input is left alone.

    ``reference`` is PIL's plain conversion: transparency is dropped and 16-bit gray saturates. ``exact`` lays
    transparent pictures on white and scales 16-bit gray to 8 bits.

    Args:
        image: Any PIL picture.
        mode: ``reference`` or ``exact``.
        apply_exif: Rotate as the EXIF orientation says. The published data did not, and boxes must be in the frame of
            the picture that results.
    """
    if apply_exif:
        image = ImageOps.exif_transpose(image)
    if image.mode == "RGB":
        return image
    if mode == "exact":
        if image.mode.startswith(("I", "F")):
            return _deep_gray_to_rgb(image)
        if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
            rgba = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", rgba.size, _ALPHA_BACKGROUND), rgba).convert("RGB")
    return image.convert("RGB")


def _deep_gray_to_rgb(image: Image.Image) -> Image.Image:
    """Gray with more than 8 bits per pixel to RGB, values above 255 read as 16-bit."""
    values = np.asarray(image, dtype=np.float64)
    if image.mode.startswith("I;16") or (values.size and values.max() > 255):
        values = values // 256
    gray = np.nan_to_num(values).clip(0, 255).astype(np.uint8)
    return Image.fromarray(gray).convert("RGB")
