"""Checkpoints in and out of every layout that users have, one tensor in memory at a time.

Read: an mmengine ``.pth``, the reference's published ``.pth``, DeepSpeed folders (ZeRO 1, 2, 3), bare state dicts and
safetensors, LoRA adapters (in a ``.pth`` or a PEFT folder), and the folders that are written. Written: a Hugging Face
folder of the whole model, a folder with the merged LLM and a small vision part, and ``.pth`` files in the reference's
layout and in mmengine's.
"""

from mg_llava.conversion.convert import TARGETS, convert
from mg_llava.conversion.files import ConversionError
from mg_llava.conversion.inputs import open_checkpoint
from mg_llava.conversion.prepare import inspect
from mg_llava.conversion.types import Checkpoint, ConversionOptions
from mg_llava.models.weights.report import KeyReport

__all__ = [
    "TARGETS",
    "Checkpoint",
    "ConversionError",
    "ConversionOptions",
    "KeyReport",
    "convert",
    "inspect",
    "open_checkpoint",
]
