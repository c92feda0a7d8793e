"""The detector of a system, such as MR-MLLM's, on its own: it sees pictures as the system does."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from mg_llava.data.pictures.processor import PictureProcessor, ProcessedPicture
from mg_llava.data.records.schema import BoxRecord
from mg_llava.detection.detector import Detector, Size
from mg_llava.detection.tags import PictureName, Tags
from mg_llava.models.parts import build_part
from mg_llava.registry import DETECTORS
from mg_llava.work.devices import pick_device


@DETECTORS.register_module()
class EncoderDetector(Detector):
    """An encoder that detects, on the canvas of the picture processor.

    Args:
        path: Folder or hub name of a detector of the DETR family, such as ``facebook/detr-resnet-50``.
        threshold: Least score of a box.
        image_size: Side of the canvas; None for that of the detector.
        encoder: Another encoder in place of ``path``, such as a row of ``configs/_base_/detectors.py``.
        device: ``auto``, ``cpu``, ``cuda:1``...

    Raises:
        ValueError: Neither or both of ``path`` and ``encoder`` are given.
    """

    needs_tags = False

    def __init__(
        self,
        path: str | None = None,
        threshold: float = 0.05,
        image_size: int | None = None,
        encoder: Mapping[str, Any] | None = None,
        device: str = "auto",
    ) -> None:
        if (path is None) == (encoder is None):
            raise ValueError("give either path, a folder of the DETR family, or encoder, the config of one")
        given = {"type": "mg_llava.TransformerDetector", "path": path, "image_size": image_size, "dtype": "float32"}
        self.device, self.threshold = pick_device(device), threshold
        self.encoder = build_part(given if encoder is None else {"dtype": "float32", **encoder}).to(self.device)
        self.processor = PictureProcessor(self.encoder.spec.image_size)

    def prepare(self, image: Image.Image) -> ProcessedPicture:
        """See :meth:`Detector.prepare`."""
        return self.processor(image)

    def detect(
        self, prepared: Sequence[Any], sizes: Sequence[Size], tags: Sequence[Tags], names: Sequence[PictureName]
    ) -> list[BoxRecord]:
        """See :meth:`Detector.detect`; tags are not read."""
        found = self.encoder(torch.stack([picture.pixels for picture in prepared]).to(self.device)).detected
        classes = self.encoder.spec.classes
        scores, best = found.scores.double().cpu().numpy(), found.logits[..., : len(classes)].argmax(-1).cpu().numpy()
        records = []
        for row, picture in enumerate(prepared):
            kept = scores[row] >= self.threshold
            boxes = picture.canvas.from_centers(found.boxes[row].double().cpu().numpy()[kept])
            labels = tuple(classes[number] for number in best[row][kept].tolist())
            records.append(BoxRecord(boxes, scores[row][kept], labels))
        return records
