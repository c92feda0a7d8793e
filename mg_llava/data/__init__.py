"""Records, pictures and boxes: everything between the files and the batch that the model takes."""

from .box_augment import BoxAugmentation
from .collate import collate
from .dataset import LLaVADataset
from .mixture import MixtureDataset, sources_of
from .processor import PictureProcessor
from .samplers import LengthGroupedSampler

__all__ = [
    "BoxAugmentation",
    "LLaVADataset",
    "LengthGroupedSampler",
    "MixtureDataset",
    "PictureProcessor",
    "collate",
    "sources_of",
]
