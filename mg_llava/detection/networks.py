"""The base of detectors with a network of transformers: loading it, and splitting tags that are too long."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from mmengine.logging import print_log

from mg_llava.compat import dtype_name
from mg_llava.detection.detector import Detector
from mg_llava.models.weights.loading import load_hugging_face
from mg_llava.work.devices import pick_device


class NetworkDetector(Detector):
    """A network that looks for texts.

    Args:
        path: Folder or hub name of the network, its processor and its tokenizer.
        network: Class of the network.
        processor: Class of its image processor.
        threshold: Least score of a box, exclusive.
        device: ``auto``, ``cpu``, ``cuda:1``...
        dtype: Dtype of the computation.

    Attributes:
        limit: Most tokens of a text.

    Raises:
        OSError: The folder lacks config, weights or tokenizer.
    """

    name: str
    limit: int

    def __init__(self, path: str, network: Any, processor: Any, threshold: float, device: str, dtype: str) -> None:
        from transformers import AutoTokenizer

        self.threshold, self.device, self.dtype = threshold, pick_device(device), dtype
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.processor = processor.from_pretrained(path)
        model = load_hugging_face(network, path, **{dtype_name(): torch.float32})
        self.model = model.eval().requires_grad_(False).to(self.device)
        self._mean = torch.tensor(self.processor.image_mean, device=self.device).view(3, 1, 1)
        self._std = torch.tensor(self.processor.image_std, device=self.device).view(3, 1, 1)
        self._parts: dict[str, list[str]] = {}

    def fits(self, text: str) -> bool:
        """Tell whether a text is short enough for the network."""
        raise NotImplementedError

    def parts_of(self, tag: str, text: str) -> list[str]:
        """The text of a tag, or its parts where it is too long, which is logged once."""
        if tag not in self._parts:
            parts = self._parts[tag] = split_text(text, self.fits)
            if len(parts) > 1:
                message = f"{self.name} takes {self.limit} tokens, tag {tag!r} is longer"
                message += f"; it is looked for in {len(parts)} parts"
                print_log(message, logger="current", level=logging.WARNING)
        return self._parts[tag]


def split_text(text: str, fits: Callable[[str], bool]) -> list[str]:
    """Cut a text into as few parts that fit as going from left to right allows: between words, or in long words.

    Args:
        text: The text.
        fits: Whether a part is short enough; must hold for single characters.
    """
    if fits(text):
        return [text]
    words = text.split()
    if len(words) < 2:
        half = len(text) // 2
        return [text] if half == 0 else split_text(text[:half], fits) + split_text(text[half:], fits)
    parts: list[str] = []
    for word in words:
        if parts and fits(f"{parts[-1]} {word}"):
            parts[-1] = f"{parts[-1]} {word}"
        else:
            parts += split_text(word, fits)
    return parts
