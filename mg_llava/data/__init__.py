"""Records, pictures and boxes: everything between the files and the batch that the model takes."""

from mg_llava.data.boxes.augment import BoxAugmentation
from mg_llava.data.collate import collate
from mg_llava.data.dataset import LLaVADataset
from mg_llava.data.mixture import MixtureDataset, sources_of
from mg_llava.data.pictures.processor import PictureProcessor
from mg_llava.data.samplers import LengthGroupedSampler

__all__ = [
    "BoxAugmentation",
    "LLaVADataset",
    "LengthGroupedSampler",
    "MixtureDataset",
    "PictureProcessor",
    "collate",
    "sources_of",
]
