"""Records, pictures and boxes: everything between the files and the batch that the model takes."""

from .processor import PictureProcessor

__all__ = ["PictureProcessor"]
