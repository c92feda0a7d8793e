"""Records, pictures and boxes: everything between the files and the batch that the model takes."""

from .collate import collate
from .dataset import LLaVADataset
from .processor import PictureProcessor
from .samplers import LengthGroupedSampler

__all__ = ["LLaVADataset", "LengthGroupedSampler", "PictureProcessor", "collate"]
