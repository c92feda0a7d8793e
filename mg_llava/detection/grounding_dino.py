"""Grounding DINO: boxes for tags, several pictures at a time.

All tags of a picture form one text; where they are too many for the network's limit, they take several passes. A
picture is padded to multiples of ``step`` pixels whatever stands beside it, so that its batch makes no difference.

Shapes: N pictures, L tokens, K queries, h x w resized picture, H x W padded one.
"""

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mg_llava.data.records.schema import BoxRecord
from mg_llava.detection.boxes import centers_to_pixels, join_records
from mg_llava.detection.detector import Size
from mg_llava.detection.networks import NetworkDetector
from mg_llava.detection.tags import PictureName, Tags
from mg_llava.registry import DETECTORS
from mg_llava.work.devices import autocast

_SEPARATORS = str.maketrans({".": " ", "?": " "})
"""The network takes these for ends of a phrase."""


class _Text(NamedTuple):
    """One pass: token ids, and for each the number of the tag that it belongs to, -1 for none."""

    ids: list[int]
    owners: list[int]


@DETECTORS.register_module()
class GroundingDINODetector(NetworkDetector):
    """Grounding DINO of transformers.

    Args:
        path: Folder or hub name, such as ``IDEA-Research/grounding-dino-base``.
        threshold: Least score of a box, exclusive: of its best token.
        step: Pictures are padded to multiples of so many pixels.
        device: ``auto``, ``cpu``, ``cuda:1``...
        dtype: Dtype of the computation; ``auto`` is float32, as boxes lose up to a pixel in bfloat16.

    Raises:
        OSError: The folder lacks config, weights or tokenizer.
    """

    name = "Grounding DINO"

    def __init__(
        self,
        path: str = "IDEA-Research/grounding-dino-base",
        threshold: float = 0.25,
        step: int = 64,
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        from transformers import GroundingDinoForObjectDetection, GroundingDinoImageProcessor

        dtype = "float32" if dtype == "auto" else dtype
        super().__init__(path, GroundingDinoForObjectDetection, GroundingDinoImageProcessor, threshold, device, dtype)
        self.step = step
        self.shortest, self.longest = (self.processor.size[edge] for edge in ("shortest_edge", "longest_edge"))
        config = self.model.config
        self.limit = int(min(config.max_text_len, config.text_config.max_position_embeddings))
        self._end = self.tokenizer.convert_tokens_to_ids(".")

    def prepare(self, image: Image.Image) -> Tensor:
        """See :meth:`Detector.prepare`; (h, w, 3) uint8, resized."""
        resized = image.convert("RGB").resize(self._resized(image.size), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(resized))

    def shape(self, size: Size) -> Hashable:
        """See :meth:`Detector.shape`; width and height after resizing and padding."""
        return tuple(-(-side // self.step) * self.step for side in self._resized(size))

    def detect(
        self, prepared: Sequence[Any], sizes: Sequence[Size], tags: Sequence[Tags], names: Sequence[PictureName]
    ) -> list[BoxRecord]:
        """See :meth:`Detector.detect`."""
        texts = [self._texts(part) for part in tags]
        found: list[list[BoxRecord]] = [[] for _ in sizes]
        for number in range(max(map(len, texts))):
            groups: dict[Hashable, list[int]] = {}
            for index, size in enumerate(sizes):
                if number < len(texts[index]):
                    groups.setdefault(self.shape(size), []).append(index)
            for group in groups.values():
                outputs = self._forward([prepared[i] for i in group], [texts[i][number] for i in group])
                for index, (boxes, scores, owners) in zip(group, outputs, strict=True):
                    labels = tuple(tags[index][owner] for owner in owners)
                    found[index].append(BoxRecord(centers_to_pixels(boxes, sizes[index]), scores, labels))
        return [join_records(records) for records in found]

    def _resized(self, size: Size) -> Size:
        """Width and height that the network sees: the shorter side as trained, unless the longer gets too long."""
        shorter, longer = min(size), max(size)
        target = float(self.shortest)
        if longer / shorter * target > self.longest:
            target = self.longest * shorter / longer
        short = max(1, round(target))
        long = max(1, int(target * longer / shorter))
        return (short, long) if size[0] < size[1] else (long, short)

    def fits(self, text: str) -> bool:
        """See :class:`NetworkDetector`; beside both ends of a text there is the end of the phrase."""
        return len(self._ids(text)) + 3 <= self.limit

    def _texts(self, tags: Tags) -> list[_Text]:
        """The passes that a picture's tags need."""
        passes: list[_Text] = []
        for number, tag in enumerate(tags):
            parts = [self._ids(part) for part in self.parts_of(tag, tag.translate(_SEPARATORS))]
            for tokens in (part for part in parts if part):
                if not passes or len(passes[-1].ids) + len(tokens) > self.limit - 2:
                    passes.append(_Text([self.tokenizer.cls_token_id], [-1]))
                passes[-1].ids.extend([*tokens, self._end])
                passes[-1].owners.extend([number] * len(tokens) + [-1])
        for text in passes:
            text.ids.append(self.tokenizer.sep_token_id)
            text.owners.append(-1)
        return passes

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def _forward(self, pictures: Sequence[Tensor], texts: Sequence[_Text]) -> list[tuple]:
        """Boxes as shares (n, 4), scores (n,) and numbers of tags (n) of pictures of one shape."""
        pixels, pixel_mask = self._pad(pictures)
        ids, attention, owners = (
            pad_sequence([torch.tensor(values) for values in rows], batch_first=True, padding_value=fill)
            for rows, fill in (
                ([text.ids for text in texts], self.tokenizer.pad_token_id or 0),
                ([[1] * len(text.ids) for text in texts], 0),
                ([text.owners for text in texts], -1),
            )
        )  # (N, L) each
        with autocast(self.device, self.dtype):
            output = self.model(
                pixel_values=pixels,
                pixel_mask=pixel_mask,
                input_ids=ids.to(self.device),
                token_type_ids=torch.zeros_like(ids).to(self.device),
                attention_mask=attention.to(self.device),
            )
        probabilities = output.logits[:, :, : ids.shape[1]].float().sigmoid().cpu()  # (N, K, L)
        best = probabilities.masked_fill((owners < 0)[:, None], -1.0).max(dim=-1)
        boxes = output.pred_boxes.float().cpu()
        results = []
        for row in range(len(texts)):
            chosen = best.values[row] > self.threshold
            numbers = owners[row][best.indices[row][chosen]].tolist()
            results.append((boxes[row][chosen].numpy(), best.values[row][chosen].double().numpy(), numbers))
        return results

    def _pad(self, pictures: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) normalized pixels with zeros at bottom and right, and (N, H, W) where the pictures are."""
        height, width = (-(-side // self.step) * self.step for side in pictures[0].shape[:2])
        pixels = torch.zeros(len(pictures), 3, height, width, device=self.device)
        mask = torch.zeros(len(pictures), height, width, dtype=torch.int64, device=self.device)
        for row, picture in enumerate(pictures):
            content = picture.to(self.device).permute(2, 0, 1).float() / 255  # (h, w, 3) -> (3, h, w)
            high, wide = content.shape[1:]
            pixels[row, :, :high, :wide] = (content - self._mean) / self._std
            mask[row, :high, :wide] = 1
        return pixels, mask
