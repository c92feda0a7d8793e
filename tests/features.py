"""A toy training set with a feature cache that was filled for it."""

from pathlib import Path
from typing import Any

from mg_llava.data.dataset import LLaVADataset
from mg_llava.data.features.cache import FeatureCache
from mg_llava.data.features.file import FeatureWriter
from mg_llava.data.features.fill import Pictures, about_cache, fill_feature_cache, list_jobs
from mg_llava.models.vision import FeatureExtractor
from tests import toy
from tests.settings import grouped


def make_source(data: dict[str, str], llm: str, **changes: Any) -> LLaVADataset:
    """The toy data as a source."""
    settings: dict[str, Any] = {
        "tokenizer": llm,
        "template": "vicuna",
        "picture_processor": {"type": "mg_llava.PictureProcessor", "image_size": toy.CANVAS},
        "long_text_margin": None,
    }
    return LLaVADataset(**grouped(**{**data, **settings, **changes}))


def fill(
    source: LLaVADataset, folder: Path, extractor: FeatureExtractor, dtype: str = "float32", shard_bytes: int = 2000
) -> dict[str, Any]:
    """Fill a folder for a source; gives the report."""
    about = about_cache([source], dtype, extractor.sizes, extractor.describe())  # type: ignore[arg-type]
    writer = FeatureWriter(folder, about, shard_bytes)
    pictures = Pictures([source], list_jobs([source]), FeatureCache(folder), extractor.sizes["pooled"] is not None)
    return fill_feature_cache(pictures, extractor, writer, dtype, batch_size=3)  # type: ignore[arg-type]
