"""Pictures, boxes and prompts for vLLM, by the code of training; boxes come as ``mm_processor_kwargs``.

``{"boxes": [[[x1, y1, x2, y2], ...], ...]}`` has a list for each picture, xyxy in original pixels; of one picture the
boxes themselves will do. Shapes: N pictures, S side of the canvas in pixels, n_i boxes of picture i.
"""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.media import MediaWithBytes
from vllm.multimodal.parse import ImageProcessorItems, MultiModalDataParser
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
)

from mg_llava.batch import TokenCount
from mg_llava.data.inputs import list_boxes
from mg_llava.data.records.schema import BoxRecord
from mg_llava.hf.configuration import MGLLaVAConfig
from mg_llava.hf.parts import build_system
from mg_llava.hf.processing import MGLLaVAProcessor
from mg_llava.hf.prompts import encode_written_prompt, template_of
from mg_llava.tokens import IMAGE_PLACEHOLDER, IMAGE_TOKEN_INDEX

_STAND_IN = 0
"""Id where the tokens of a picture go in the prompt; any will do."""
_MOST_BOXES = 100
"""Boxes of a picture that vLLM plans with, where the model has no limit of its own."""


class _Pictures(ImageProcessorItems):
    """Pictures from the bytes of a request: vLLM has turned them as their EXIF says, and laid them on white."""

    def _unwrap(self, item: Any) -> Any:
        return Image.open(io.BytesIO(item.original_bytes)) if isinstance(item, MediaWithBytes) else item


class _Parser(MultiModalDataParser):
    def _parse_image_data(self, data: Any) -> Any:
        items = super()._parse_image_data(data)
        if type(items) is not ImageProcessorItems:
            return items
        given = data if isinstance(data, list) else items.data  # before vLLM has changed them
        return _Pictures(given)


class VLLMInfo(BaseProcessingInfo):
    """Sizes and processor of a model."""

    def get_hf_config(self) -> MGLLaVAConfig:
        """The config of the folder."""
        return self.ctx.get_hf_config(MGLLaVAConfig)

    def get_hf_processor(self, **_: object) -> MGLLaVAProcessor:
        """The processor of the folder; arguments of a request are of its pictures, not of the processor."""
        return self.ctx.get_hf_processor(MGLLaVAProcessor)

    def get_data_parser(self) -> MultiModalDataParser:
        """Reads pictures as they came."""
        missing = self.allow_missing_mm_embeddings
        return _Parser(expected_hidden_size=self._get_expected_hidden_size(), allow_missing_mm_embeddings=missing)

    def get_supported_mm_processor_kwargs(self) -> dict[str, set[str]]:
        """None that belong to one modality: they stay as they come."""
        return {}

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Any number of pictures."""
        return {"image": None}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        """Tokens of a picture with as many boxes as there may be."""
        return {"image": self.token_count(1, self.most_boxes)}

    @cached_property
    def token_count(self) -> TokenCount:
        """Tokens of a picture."""
        with torch.device("meta"):
            return build_system(self.get_hf_config(), None).token_count

    @property
    def most_boxes(self) -> int:
        """Boxes of a picture that vLLM plans with."""
        return self.get_hf_processor().image_processor.max_boxes or _MOST_BOXES


class VLLMDummyInputs(BaseDummyInputsBuilder[VLLMInfo]):
    """Pictures without content, by which vLLM measures its memory."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """A placeholder for each picture."""
        return IMAGE_PLACEHOLDER * mm_counts.get("image", 0)

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any) -> dict[str, Any]:
        """White pictures of the size of the canvas."""
        side = self.info.get_hf_processor().image_processor.image_size
        return {"image": self._get_dummy_images(width=side, height=side, num_images=mm_counts.get("image", 0))}


class VLLMProcessor(BaseMultiModalProcessor[VLLMInfo]):
    """Gives each picture its pixels ``(3, S, S)`` uint8 and boxes ``(n_i, 4)`` float32 in pixels of the canvas."""

    def _call_hf_processor(self, hf_data: Mapping[str, object], hf_kwargs: Mapping[str, object]) -> BatchFeature:
        images: Any = hf_data["images"]
        settings = {name: value for name, value in hf_kwargs.items() if name not in ("boxes", "truncation")}
        boxes = _boxes(hf_kwargs, len(images))
        return self.info.get_hf_processor().image_processor(list(images), boxes=boxes, **settings)

    def _get_mm_fields_config(self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]) -> Any:
        return {name: MultiModalFieldConfig.batched("image") for name in ("pixel_values", "boxes")}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        def tokens(number: int) -> list[int]:
            boxes = out_mm_kwargs["image"][number]["boxes"].data
            return [_STAND_IN] * self.info.token_count(1, len(boxes))

        return [PromptReplacement(modality="image", target=[IMAGE_TOKEN_INDEX], replacement=tokens)]

    def _postprocess_prompt(self, prompt: list[int]) -> list[int]:
        """The ids of training for what vLLM has tokenized as one text."""
        tokenizer: Any = self.info.get_tokenizer()
        text, piece, special = "", [], set(tokenizer.all_special_ids)
        for token in [*prompt, None]:
            if token is not None and token not in special:
                piece.append(token)
                continue
            text += tokenizer.decode(piece) if piece else ""
            text += "" if token is None else tokenizer.convert_ids_to_tokens(token)
            piece = []
        return encode_written_prompt(text, tokenizer, template_of(self.info.get_hf_config().template_config))

    # -- caches: a picture with other boxes is another one -----------------------------------------------------------

    def _get_mm_hashes(self, inputs: Any) -> Any:
        rest = {name: value for name, value in inputs.hf_processor_mm_kwargs.items() if name != "boxes"}
        hashes = super()._get_mm_hashes(replace(inputs, hf_processor_mm_kwargs=rest))
        boxes = _boxes(inputs.hf_processor_mm_kwargs, len(hashes.get("image", ())))
        return hashes | {
            "image": [
                own if one is None else f"{own}-{_digest(one)}"
                for own, one in zip(hashes.get("image", ()), boxes, strict=True)
            ]
        }

    def _get_cache_missing_processor_kwargs(self, inputs: Any, mm_is_cached: Any) -> Mapping[str, object]:
        given = inputs.hf_processor_mm_kwargs
        cached = mm_is_cached.get("image", ())
        boxes = [own for own, known in zip(_boxes(given, len(cached)), cached, strict=True) if not known]
        return {**given, "boxes": boxes}


def _boxes(given: Mapping[str, Any], pictures: int) -> list[BoxRecord | None]:
    """The boxes of each picture.

    Raises:
        ValueError: They are not as many, or no boxes.
    """
    return list_boxes(given.get("boxes"), pictures, "mm_processor_kwargs") if pictures else []


def _digest(boxes: BoxRecord) -> str:
    content = (boxes.boxes.tobytes(), boxes.scores.tobytes(), boxes.labels)
    return hashlib.sha256(repr(content).encode()).hexdigest()
