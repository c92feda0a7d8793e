"""OWLv2: boxes for tags, several pictures at a time.

Other than in transformers' own forward pass, each prompt is encoded once and kept, and pictures are padded and resized
on the device: to the same values as ``Owlv2ImageProcessor``, without its square array of floats for long pictures.

Shapes: N pictures, Q prompts, P patches, D width of the joint embedding, S side of the network's input, h x w picture.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mg_llava.data.records.schema import BoxRecord
from mg_llava.detection.boxes import from_padded_square
from mg_llava.detection.detector import Size
from mg_llava.detection.networks import NetworkDetector
from mg_llava.detection.tags import PictureName, Tags
from mg_llava.registry import DETECTORS
from mg_llava.work.devices import autocast

_GRAY = 0.5
"""Color of the padding, of 0..1."""
_PROMPTS = 32
"""Prompts at a time, always as many, so that rounding does not depend on their number."""
_KEPT_PROMPTS = 50_000


@DETECTORS.register_module()
class OWLv2Detector(NetworkDetector):
    """OWLv2 of transformers.

    Args:
        path: Folder or hub name, such as ``google/owlv2-large-patch14-ensemble``.
        threshold: Least score of a box, exclusive.
        prompt: Text for a tag.
        device: ``auto``, ``cpu``, ``cuda:1``...
        dtype: Dtype of the vision tower; ``auto`` is bfloat16 on CUDA, else float32. Boxes and scores are always
            computed in float32.

    Raises:
        OSError: The folder lacks config, weights or tokenizer.
        ValueError: The prompt has no place for the tag, or the model does not take squares.
    """

    name = "OWLv2"

    def __init__(
        self,
        path: str = "google/owlv2-large-patch14-ensemble",
        threshold: float = 0.2,
        prompt: str = "a photo of {}",
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        from transformers import Owlv2ForObjectDetection, Owlv2ImageProcessor

        if "{}" not in prompt:
            raise ValueError(f"prompt is {prompt!r}; it needs {{}} where the tag goes")
        super().__init__(path, Owlv2ForObjectDetection, Owlv2ImageProcessor, threshold, device, dtype)
        self.prompt, size = prompt, self.processor.size
        self.side = int(size["height"])
        expected = self.model.config.vision_config.image_size
        if not self.side == size["width"] == expected:
            raise ValueError(f"{path}: the processor makes {size}, the model takes {expected} px squares")
        self.limit = int(self.model.config.text_config.max_position_embeddings)
        self._texts: dict[str, Tensor] = {}

    def prepare(self, image: Image.Image) -> Tensor:
        """See :meth:`Detector.prepare`; (h, w, 3) uint8."""
        return torch.from_numpy(np.array(image.convert("RGB")))

    def detect(
        self, prepared: Sequence[Any], sizes: Sequence[Size], tags: Sequence[Tags], names: Sequence[PictureName]
    ) -> list[BoxRecord]:
        """See :meth:`Detector.detect`."""
        prompts, owners = zip(*map(self._prompts, tags), strict=True)
        pixels = torch.stack([self._square(picture) for picture in prepared])  # (N, 3, S, S)
        with autocast(self.device, self.dtype):
            feature_map = self.model.image_embedder(pixel_values=pixels)[0]
        feature_map = feature_map.float()
        features = feature_map.flatten(1, 2)  # (N, rows, columns, C) -> (N, P, C)
        queries, mask = self._queries(prompts)
        logits = self.model.class_predictor(features, queries, mask)[0].float()  # (N, P, Q)
        boxes = self.model.box_predictor(features, feature_map).float()  # (N, P, 4)
        best = logits.max(dim=-1)
        scores = torch.sigmoid(best.values)
        found = []
        for number, size in enumerate(sizes):
            chosen = scores[number] > self.threshold
            placed = from_padded_square(boxes[number][chosen].cpu().numpy(), size)
            winners = best.indices[number][chosen].tolist()
            labels = tuple(tags[number][owners[number][winner]] for winner in winners)
            found.append(BoxRecord(placed, scores[number][chosen].double().cpu().numpy(), labels))
        return found

    def fits(self, text: str) -> bool:
        """See :class:`NetworkDetector`; the prompt counts."""
        return len(self.tokenizer(self.prompt.format(text), verbose=False)["input_ids"]) <= self.limit

    def _prompts(self, tags: Tags) -> tuple[list[str], list[int]]:
        """Prompts of a picture's tags, and the number of the tag that each belongs to."""
        parts = [self.parts_of(tag, tag) for tag in tags]
        owners = [number for number, part in enumerate(parts) for _ in part]
        return [self.prompt.format(text) for part in parts for text in part], owners

    def _queries(self, prompts: Sequence[list[str]]) -> tuple[Tensor, Tensor]:
        """(N, Q, D) embeddings of the prompts of each picture, zeros at the end, and (N, Q) which are prompts."""
        if len(self._texts) > _KEPT_PROMPTS:
            self._texts.clear()
        self._encode(list(dict.fromkeys(p for part in prompts for p in part if p not in self._texts)))
        queries = [torch.stack([self._texts[prompt] for prompt in part]) for part in prompts]
        mask = [torch.ones(len(part), dtype=torch.bool, device=self.device) for part in prompts]
        return pad_sequence(queries, batch_first=True), pad_sequence(mask, batch_first=True)

    def _encode(self, prompts: Sequence[str]) -> None:
        """Encode and keep prompts."""
        for start in range(0, len(prompts), _PROMPTS):
            batch = list(prompts[start : start + _PROMPTS])
            filled = batch + batch[-1:] * (_PROMPTS - len(batch))
            tokens = self.tokenizer(filled, padding="max_length", max_length=self.limit, return_tensors="pt")
            texts = self.model.owlv2.get_text_features(
                input_ids=tokens["input_ids"].to(self.device), attention_mask=tokens["attention_mask"].to(self.device)
            )
            texts = getattr(texts, "pooler_output", texts)  # newer releases give all that the text tower makes
            texts = texts / texts.norm(dim=-1, keepdim=True)
            self._texts |= dict(zip(batch, texts, strict=False))

    def _square(self, picture: Tensor) -> Tensor:
        """(h, w, 3) uint8 to (3, S, S) float32: padded with gray to a square, resized, normalized.

        The gray is subtracted, so that only the picture is computed with.
        """
        height, width = picture.shape[:2]
        content = picture.to(self.device).permute(2, 0, 1).float() / 255 - _GRAY  # (h, w, 3) -> (3, h, w)
        rows = _resize_weights(max(height, width), height, self.side, self.device)  # (S, h)
        columns = _resize_weights(max(height, width), width, self.side, self.device)  # (S, w)
        resized = rows @ (content @ columns.T) if width > height else (rows @ content) @ columns.T
        return (resized + _GRAY - self._mean) / self._std


@lru_cache(maxsize=64)
def _resize_weights(side: int, content: int, size: int, device: torch.device) -> Tensor:
    """(size, content) float32 weights of a resize of ``side`` pixels to ``size``, of the first ``content`` of them.

    A Gaussian against aliasing where the picture shrinks, then linear interpolation; both mirror at the edges.
    """
    factor = side / size
    sigma = max(0.0, (factor - 1) / 2)
    radius = int(4 * sigma + 0.5)
    steps = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (steps / sigma) ** 2) if radius else np.ones(1)
    kernel /= kernel.sum()
    places = (np.arange(size) + 0.5) * factor - 0.5  # (size,)
    first = np.floor(places).astype(np.int64)
    share = (places - first)[:, None]
    # (size, 2 * radius + 2): the kernel around both neighbors
    taps = (1 - share) * np.append(kernel, 0.0) + share * np.append(0.0, kernel)
    mirrored = np.pad(np.arange(side), radius + 2, mode="reflect")
    indices = mirrored[first[:, None] + np.arange(2, 2 * radius + 4)]
    rows = np.broadcast_to(np.arange(size)[:, None], indices.shape)
    inside = indices < content
    weights = np.zeros((size, content))
    np.add.at(weights, (rows[inside], indices[inside]), taps[inside])
    return torch.from_numpy(weights.astype(np.float32)).to(device)
