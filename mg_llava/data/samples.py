"""Loaded samples, and what collate gets of them."""

from dataclasses import dataclass
from typing import Any

from mg_llava.batch import TokenCount
from mg_llava.data.pictures.loading import LoadedPicture
from mg_llava.data.records.schema import LLaVARecord
from mg_llava.data.text.conversation import EncodedConversation
from mg_llava.tokens import BOX_TOKEN_INDEX


@dataclass(frozen=True)
class LoadedSample:
    """A sample with its record, its text as ids, and its pictures and object images in the order of placeholders."""

    record: LLaVARecord
    encoded: EncodedConversation
    pictures: tuple[LoadedPicture, ...]

    @property
    def is_named(self) -> bool:
        """Whether boxes have placeholders of their own, with names before them."""
        return BOX_TOKEN_INDEX in self.encoded.input_ids


def make_sample(loaded: LoadedSample, count: TokenCount | None, feature_cache: str = "") -> dict[str, Any]:
    """A sample as collate takes it, as ``LLaVADataset`` describes it.

    Args:
        loaded: The sample.
        count: Tokens of its placeholders; None where they are not counted.
        feature_cache: Name of the cache that features come from.
    """
    encoded, pictures = loaded.encoded, loaded.pictures
    sample: dict[str, Any] = {"id": loaded.record.id}
    sample |= {"input_ids": encoded.input_ids, "labels": encoded.labels}
    sample["images"] = [picture.pixels for picture in pictures if picture.features is None]
    sample["boxes"] = [picture.boxes for picture in pictures]
    if count is not None:
        sample["tokens"] = [tokens for one in pictures for tokens in _tokens(one, count, loaded.is_named)]
    objects = [picture.objects for picture in pictures]
    if any(known is not None for known in objects):
        sample["objects"] = objects
    if loaded.record.video is not None:
        sample["is_video"] = True
    if encoded.regions:
        sample["crops"] = [picture.region is not None for picture in pictures]
    if loaded.is_named:
        sample["named"] = [picture.region is None for picture in pictures]
    if any(picture.features is not None for picture in pictures):
        sample["features"] = [picture.features for picture in pictures if picture.features is not None]
        sample |= {"feature_cache": feature_cache, "cached": [picture.features is not None for picture in pictures]}
    return sample


def _tokens(picture: LoadedPicture, count: TokenCount, is_named: bool) -> list[int]:
    """Tokens of each placeholder of a picture."""
    if picture.region is not None:
        return [count.per_crop]
    boxes = len(picture.boxes)
    return [count(1, 0), *[count.per_box] * boxes] if is_named else [count(1, boxes)]
