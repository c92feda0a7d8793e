"""Pictures and boxes to the model's input, by the code of training; ``preprocessor_config.json`` has the settings."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from mg_llava.data.inputs import PictureLike, list_pictures, load_picture, make_boxes
from mg_llava.data.pictures.processor import PictureProcessor, ProcessedPicture

_OWNER = "picture {}"


class PictureBatch(BatchFeature):
    """A batch whose boxes stay float32: newer releases of transformers cast tensors in lists too."""

    def to(self, *args: Any, **kwargs: Any) -> "PictureBatch":
        """As ``BatchFeature.to``."""
        boxes = self.get("boxes")
        moved = super().to(*args, **kwargs)
        if boxes is not None:
            moved["boxes"] = [own.to(new.device) for own, new in zip(boxes, moved["boxes"], strict=True)]
        return moved


class MGLLaVAImageProcessor(BaseImageProcessor):
    """``PictureProcessor`` in transformers' form: its arguments are attributes that are saved and loaded.

    Args:
        **kwargs: Arguments of ``PictureProcessor``; ``image_size`` is needed.
    """

    model_input_names = ["pixel_values"]

    def __init__(self, **kwargs: Any) -> None:
        settings = {name: kwargs.pop(name) for name in _settings() if name in kwargs}
        super().__init__(**kwargs)
        for name, value in PictureProcessor(**settings).to_dict().items():
            setattr(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        """As ``BaseImageProcessor.to_dict``, settings that are None included."""
        return {**super().to_dict(), **{name: getattr(self, name) for name in _settings()}}

    @property
    def picture_processor(self) -> PictureProcessor:
        """The processor with the present settings."""
        return PictureProcessor(**{name: getattr(self, name) for name in _settings()})

    def preprocess(
        self, images: Any, boxes: Sequence[Any] | None = None, return_tensors: Any = "pt", **kwargs: Any
    ) -> BatchFeature:
        """Process N pictures.

        Args:
            images: A picture (PIL, or the path of a file), or a sequence of them.
            boxes: For each picture its boxes xyxy in original pixels: ``(n, 4)`` numbers, a dict with ``boxes``,
                ``scores`` and ``labels``, or None for none. Of one picture the boxes themselves.
            return_tensors: ``"pt"`` is all there is.
            **kwargs: Settings of ``PictureProcessor`` that differ for these pictures.

        Returns:
            ``pixel_values`` (N, 3, S, S) uint8 and ``boxes``, N tensors (n_i, 4) float32 in canvas pixels, filtered as
            in training. Neither is changed by ``.to(dtype)``.

        Raises:
            PictureError: A file cannot be read.
            ValueError: Boxes are malformed, or other than one set for each picture.
        """
        require_torch(return_tensors)
        pictures = list_pictures(images, "images")
        if boxes is not None and isinstance(images, PictureLike):
            boxes = [boxes]
        if boxes is not None and len(boxes) != len(pictures):
            raise ValueError(f"{len(pictures)} pictures but {len(boxes)} sets of boxes; give one, or None, for each")
        seen = self.see(pictures, [None] * len(pictures) if boxes is None else boxes, _OWNER, **kwargs)
        return PictureBatch(picture_features(seen))

    def settings(self, **kwargs: Any) -> PictureProcessor:
        """The processor with settings that differ for a call.

        Raises:
            TypeError: One is unknown.
        """
        unknown = sorted(set(kwargs) - set(_settings()))
        if unknown:
            raise TypeError(f"unknown settings {', '.join(unknown)}; known: {', '.join(_settings())}")
        return PictureProcessor(**{**self.picture_processor.to_dict(), **kwargs})

    def see(
        self, pictures: Sequence[Any], boxes: Sequence[Any], owner: str, are_frames: bool = False, **kwargs: Any
    ) -> list[ProcessedPicture]:
        """Pictures on their canvas with the boxes that are left; ``owner``, with a ``{}``, names them in messages."""
        process = self.settings(**kwargs)
        process = process.of_frames if are_frames else process
        return [
            process(
                load_picture(picture, owner.format(number)),
                None if found is None else make_boxes(found, owner.format(number)),
            )
            for number, (picture, found) in enumerate(zip(pictures, boxes, strict=True))
        ]


def picture_features(pictures: Sequence[ProcessedPicture]) -> dict[str, Any]:
    """``pixel_values`` and ``boxes`` of a batch; nothing where there are no pictures."""
    if not pictures:
        return {}
    pixels = torch.stack([picture.pixels for picture in pictures])
    return {"pixel_values": pixels, "boxes": [picture.boxes for picture in pictures]}


def require_torch(return_tensors: Any) -> None:
    """Refuse tensors of other libraries.

    Raises:
        ValueError: ``return_tensors`` names another library.
    """
    if return_tensors not in (None, "pt"):
        raise ValueError(f"return_tensors is {return_tensors!r}; 'pt' is all there is")


def _settings() -> list[str]:
    return [field.name for field in fields(PictureProcessor)]
