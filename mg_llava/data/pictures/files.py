"""Picture files to RGB pictures: the one place for decoding, color modes, orientation and what can be wrong with them.

Files are recognized by their content, whatever their names end in; of animations and multi-page files the first
picture is taken.
"""

import hashlib
import io
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from PIL import Image, ImageOps

from mg_llava.data.pictures.geometry import BoxMode
from mg_llava.data.pictures.places import StoredPath, is_stored, stored_path
from mg_llava.work.urls import TransferError, without_scheme

PictureFault = Literal[
    "missing", "empty", "zero size", "truncated", "not a picture", "undecodable", "too large", "outside"
]

_ALPHA_BACKGROUND = (255, 255, 255, 255)
_ORIENTATION_TAG = 0x0112
_UPRIGHT = 1
_HASH_DIGITS = 32
_HEADER_BYTES = 32
_SHOWN = 200
_SAME_FORMAT = {"MPO": "JPEG"}
"""Formats that share the extensions of another: phones write several JPEGs into one file."""

_SIDES = {b"\x89PNG": (16, 4), b"GIF8": (6, 2), b"BM": (18, 4)}
"""First byte of width and height, and bytes of each, by how files begin."""

_DEEP_MODES = ("I", "F")
_warned: set[str] = set()

_ADVICE = "replace the file, remove the record or skip bad pictures with bad_image='skip'"


class PictureError(ValueError):
    """A picture file that cannot be read; ``fault`` says what is wrong with it."""

    def __init__(self, message: str, fault: PictureFault = "undecodable") -> None:
        super().__init__(message)
        self.fault = fault


@dataclass(frozen=True)
class PictureProbe:
    """What the header of a picture file says.

    ``width`` and ``height`` are those stored, before any rotation by the EXIF ``orientation`` (1, upright, to 8);
    ``mode`` and ``format`` are PIL's names; ``animated`` files hold further frames or pages; ``expected_format`` is
    what the extension promises, None for an unknown one; ``transparent`` is an alpha channel or a transparent color.
    """

    width: int
    height: int
    mode: str
    format: str
    orientation: int = _UPRIGHT
    animated: bool = False
    expected_format: str | None = None
    transparent: bool = False

    @property
    def wrong_extension(self) -> bool:
        """Whether the extension promises another format than the content has."""
        return self.expected_format not in (None, self.format, _SAME_FORMAT.get(self.format))

    def upright_size(self, apply_exif: bool) -> tuple[int, int]:
        """Width and height of what ``to_rgb`` makes of the picture."""
        turned = apply_exif and self.orientation >= 5
        return (self.height, self.width) if turned else (self.width, self.height)


def open_picture(path: str | Path | io.BytesIO, owner: str = "", max_pixels: int | None = None) -> Image.Image:
    """Open and fully decode a picture file, in the color mode of the file.

    Args:
        path: The file, or its bytes.
        owner: Whose picture it is, for the message, such as ``"record 17 of train.json"``.
        max_pixels: Largest number of pixels; None for Pillow's limit (twice ``PIL.Image.MAX_IMAGE_PIXELS``, 179
            million). A limit above Pillow's raises that one for the process.

    Raises:
        PictureError: The file is missing, empty, truncated, not a picture or too large; the message names file and
            owner.
    """
    with _opened(path, owner, max_pixels) as image:
        image.load()
        return image


def probe_picture(path: str | Path, owner: str = "", max_pixels: int | None = None) -> PictureProbe:
    """What the header of a picture file says, without decoding it; arguments as in ``open_picture``.

    Raises:
        PictureError: The file is missing, empty, not a picture or too large. Truncated ones are not noticed.
    """
    with _opened(path, owner, max_pixels) as image:
        return _probe(image, path, image.size)


def verify_picture(path: str | Path, owner: str = "", max_pixels: int | None = None) -> PictureProbe:
    """As ``probe_picture``, for a file that can be decoded to its end; errors as from ``open_picture``.

    Reads all of the file, but decodes JPEG at an eighth of its size, which is a few times faster.
    """
    with _opened(path, owner, max_pixels) as image:
        size = image.size
        image.draft(None, (1, 1))  # type: ignore[arg-type]
        image.load()
        return _probe(image, path, size)


def to_rgb(image: Image.Image, mode: BoxMode = "reference", apply_exif: bool = False) -> Image.Image:
    """Convert a picture of any color mode to RGB; the input is left alone.

    ``reference`` is PIL's plain conversion: transparency is dropped and 16-bit gray saturates. ``exact`` lays
    transparent pictures on white and scales 16-bit gray, and gray in 0..1, to 8 bits. The first picture of a process
    that stays on its side, and the first that saturates, are logged.

    Args:
        image: Any PIL picture. CMYK is converted without a color profile.
        mode: ``reference`` or ``exact``.
        apply_exif: Rotate as the EXIF orientation says. The published data did not, and boxes must be in the frame of
            the picture that results.

    Raises:
        PictureError: The color mode cannot be converted.
    """
    if not apply_exif:
        _warn_of_rotation(image)
    if mode == "reference" and image.mode.startswith(_DEEP_MODES):
        scale = "mode='exact' of the picture processor scales it to 8 bits"
        _warn("deep", f"{_name_of(image)}: 16-bit gray (mode {image.mode}) saturates at 255; {scale}")
    return _to_rgb(image, mode, apply_exif)


def _to_rgb(image: Image.Image, mode: BoxMode, apply_exif: bool) -> Image.Image:
    if apply_exif and exif_orientation(image) != _UPRIGHT:
        image = ImageOps.exif_transpose(image)
    if image.mode == "RGB":
        return image
    if mode == "exact":
        if image.mode.startswith(_DEEP_MODES):
            return _deep_gray_to_rgb(image)
        if _is_transparent(image):
            rgba = _convert(image, "RGBA")
            return Image.alpha_composite(Image.new("RGBA", rgba.size, _ALPHA_BACKGROUND), rgba).convert("RGB")
    return _convert(image, "RGB")


def exif_orientation(image: Image.Image) -> int:
    """EXIF orientation of a picture, 1 (upright) to 8; 1 where there is none or it cannot be read."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, _UPRIGHT)
    except Exception:  # the parsers raise nearly anything on broken metadata, which is no reason to lose the picture
        return _UPRIGHT
    return int(value) if value in range(1, 9) else _UPRIGHT


def content_hash(image: Image.Image) -> str:
    """32 hexadecimal digits that are equal for equal size and RGB pixels, whatever the file, format or color mode.

    Transparency and EXIF orientation are left out of account, as by ``to_rgb(image)``.
    """
    rgb = _to_rgb(image, "reference", apply_exif=False)
    digest = hashlib.sha256(f"{rgb.width}x{rgb.height}:".encode())
    digest.update(rgb.tobytes())
    return digest.hexdigest()[:_HASH_DIGITS]


def picture_path(folder: str, name: str, owner: str = "", allow_outside: bool = False, advice: str = "") -> str:
    """Path of a picture that a record names, relative to the image folder (see ``places``).

    With ``allow_outside`` it may lie elsewhere: under an absolute path, above the folder, or behind a link. ``advice``
    says in the message how to allow that, if not as in a data set.

    Raises:
        PictureError: It lies outside of the folder.
    """
    folder = without_scheme(folder)
    if is_stored(folder):
        stored = stored_path(folder, name)
        if stored is not None:
            return stored
        raise PictureError(f"picture {name[:_SHOWN]} of {owner} lies outside of image_folder {folder}", "outside")
    path = os.path.join(folder, name)
    if allow_outside:
        return path
    root, real = _real_path(folder), os.path.realpath(path)
    if real != root and not real.startswith(os.path.join(root, "")):
        found = f"picture {name[:_SHOWN]} of {owner} lies outside of image_folder {folder}, at {real[:_SHOWN]}"
        advice = advice or "set faults=dict(outside_pictures='allow')"
        raise PictureError(f"{found}; put it there, or {advice}", "outside")
    return path


@lru_cache
def _real_path(folder: str) -> str:
    return os.path.realpath(folder)


@contextmanager
def _opened(path: str | Path | io.BytesIO, owner: str, max_pixels: int | None) -> Iterator[Image.Image]:
    """An opened file of allowed size; whatever goes wrong while it is open becomes a ``PictureError``."""
    name = f"picture {'in memory' if isinstance(path, io.BytesIO) else path}" + (f" of {owner}" if owner else "")
    limit = Image.MAX_IMAGE_PIXELS
    if max_pixels is not None and limit is not None and max_pixels > 2 * limit:
        Image.MAX_IMAGE_PIXELS = max_pixels  # lets Pillow open what the caller allows; ours is checked below
    try:
        if isinstance(path, StoredPath):
            path = io.BytesIO(path.read())
        elif not (isinstance(path, io.BytesIO) or stat.S_ISREG(os.stat(path).st_mode)):  # a pipe would wait forever
            raise OSError("it is no regular file")
        with Image.open(path) as image:
            if max_pixels is not None and image.width * image.height > max_pixels:
                found = f"{image.width} x {image.height} pixels"
                raise Image.DecompressionBombError(f"{found} exceed the limit of {max_pixels} pixels")
            yield image
    except TransferError as error:  # the picture may be there, so that leaving it out would change the data
        raise TransferError(f"{name}: {error}") from error
    except FileNotFoundError as error:
        raise PictureError(f"{name} does not exist; check image_folder and the record", fault="missing") from error
    except Exception as error:  # Pillow's plug-ins raise nearly anything on broken bytes: KeyError, zlib.error, ...
        fault = _fault_of(path, error)
        detail = "no pixels" if fault == "zero size" else f"{type(error).__name__}: {error}"
        raise PictureError(f"{name} cannot be read ({fault}; {detail}); {_ADVICE}", fault) from error


def _fault_of(path: str | Path | io.BytesIO, error: Exception) -> PictureFault:
    """What is wrong with a file that raised ``error`` when read."""
    if isinstance(error, Image.DecompressionBombError | MemoryError):
        return "too large"
    if not isinstance(path, io.BytesIO) and not os.path.isfile(path):
        return "undecodable" if isinstance(path, StoredPath) else "not a picture"
    try:
        with open(path, "rb") if not isinstance(path, io.BytesIO) else nullcontext(path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            head = file.read(_HEADER_BYTES)
    except OSError:
        return "undecodable"
    if not head:
        return "empty"
    if _has_no_pixels(head):
        return "zero size"
    if "truncated" in str(error).lower() or isinstance(error, EOFError) or _is_cut_webp(head, size):
        return "truncated"
    return "not a picture" if isinstance(error, Image.UnidentifiedImageError) else "undecodable"


def _has_no_pixels(head: bytes) -> bool:
    """Whether the header of a PNG, GIF or BMP file gives a side of zero, which Pillow does not recognize."""
    places = [place for mark, place in _SIDES.items() if head.startswith(mark)]
    sides = [head[at : at + size] for first, size in places for at in (first, first + size)]
    return any(len(side) > 1 and not any(side) for side in sides)


def _is_cut_webp(head: bytes, size: int) -> bool:
    """Whether a WebP file is shorter than its header says; its decoder does not tell."""
    if not (head.startswith(b"RIFF") and head[8:12] == b"WEBP"):
        return False
    return size < 8 + int.from_bytes(head[4:8], "little")


def _probe(image: Image.Image, path: str | Path, size: tuple[int, int]) -> PictureProbe:
    suffix = os.path.splitext(path)[1].lower()
    file_format = image.format or ""
    return PictureProbe(
        width=size[0],
        height=size[1],
        mode=image.mode,
        format=file_format,
        orientation=exif_orientation(image),
        animated=file_format not in _SAME_FORMAT and bool(getattr(image, "is_animated", False)),
        expected_format=Image.registered_extensions().get(suffix),
        transparent=_is_transparent(image),
    )


def _warn_of_rotation(image: Image.Image) -> None:
    if "exif" not in _warned and (orientation := exif_orientation(image)) != _UPRIGHT:
        _warn(
            "exif",
            f"{_name_of(image)}: EXIF orientation {orientation} is not applied, as in the published training, so that "
            "the picture is seen on its side; apply_exif=True of the picture processor (--apply-exif) turns it, and "
            "boxes must then be for the turned picture",
        )


def _warn(kind: str, message: str) -> None:
    """Log the first of a kind in this process."""
    if kind not in _warned:
        _warned.add(kind)
        from mmengine.logging import print_log  # loads torch, without which tables are read

        print_log(f"{message}; further ones are not named", logger="current", level=logging.WARNING)


def _name_of(image: Image.Image) -> str:
    return f"picture {getattr(image, 'filename', '') or 'without a file'}"


def _is_transparent(image: Image.Image) -> bool:
    return "A" in image.mode.replace("LAB", "") or "a" in image.mode or "transparency" in image.info


def _convert(image: Image.Image, mode: str) -> Image.Image:
    try:
        if image.mode == "La":  # PIL has no other way out of this mode
            image = image.convert("LA")
        return image.convert(mode)
    except (ValueError, OSError, KeyError) as error:
        raise PictureError(f"color mode {image.mode} cannot be converted to {mode} ({error}); {_ADVICE}") from error


def _deep_gray_to_rgb(image: Image.Image) -> Image.Image:
    """Gray with more than 8 bits per pixel to RGB: values above 255 read as 16-bit, those within 0..1 as shares."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    highest = values.max(initial=0.0)
    if image.mode.startswith("I;16") or highest > 255:
        values = values // 256
    elif image.mode == "F" and 0 < highest <= 1:
        values = np.round(values * 255)
    gray = cast(Any, values.clip(0, 255).astype(np.uint8))
    return Image.fromarray(gray).convert("RGB")
