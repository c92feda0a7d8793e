"""The feature cache as one data set uses it: what it lacks, what happens then, and how often it did."""

import contextlib
import hashlib
import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np
from mmengine.logging import print_log

from mg_llava.data.boxes.augment import BoxAugmentation
from mg_llava.data.faults import Tally
from mg_llava.data.features.cache import FeatureCache, FeatureError
from mg_llava.data.features.file import describe_pictures, picture_key
from mg_llava.data.records.index import Samples
from mg_llava.data.records.open import fingerprint
from mg_llava.work.arrays import load_arrays, save_arrays

MissingFeatures = Literal["error", "picture"]

_SHOWN = 3
_VERSION = 2


class FeatureSource:
    """A feature cache that was compared with the settings and records of a data set.

    With ``missing`` as ``picture``, pictures whose features are absent or stale are opened and encoded. What an
    augmentation may do is limited, because boxes are pooled beforehand.

    Raises:
        FileNotFoundError: There is no feature cache.
        ValueError: Settings do not fit the cache, or ``missing`` is ``error`` and there are absent pictures or videos.
    """

    def __init__(
        self,
        cache: FeatureCache | str | Path,
        missing: MissingFeatures,
        samples: Samples,
        processor: Any,
        augmentation: Any = None,
    ) -> None:
        self.cache = cache if isinstance(cache, FeatureCache) else FeatureCache(cache)
        self.missing = missing
        self._missed = Tally()
        self._check_settings(processor, augmentation)
        self.absent = self._check_records(samples)

    @property
    def encoded_anew(self) -> int:
        """Number of samples whose pictures were opened and encoded so far, in all workers of this process."""
        return self._missed.total

    def miss(self, owner: str, error: FeatureError) -> None:
        """Count a sample without features, or refuse it, as the policy says.

        Raises:
            FeatureError: The policy is ``error``.
        """
        if self.missing == "error":
            raise FeatureError(f"{owner}: {error}; {_advice()}") from error
        self._missed.add(f"{owner}: {error}; such samples are counted, their pictures are opened and encoded")

    def _check_settings(self, processor: Any, augmentation: Any) -> None:
        stated, own = self.cache.about["pictures"], describe_pictures(processor)
        wrong = [f"{key} was {stated.get(key)}, now {own[key]}" for key in own if stated.get(key) != own[key]]
        if wrong:
            raise ValueError(
                f"feature cache {self.cache.folder} was filled with other canvases: {'; '.join(wrong)}; fill another "
                "folder with tools/fill_feature_cache.py"
            )
        if self.cache.holds_boxes and not keeps_boxes(augmentation):
            raise ValueError(
                "a feature cache holds pooled boxes, so that box_augmentation may drop all boxes of a picture "
                f"(drop_all) but not choose or move boxes; found {augmentation}. Set dropout, cap_probability and "
                "jitter to 0, or feature_cache=None"
            )

    def _check_records(self, samples: Samples) -> int:
        """Number of pictures that were never filled in; videos, which no cache holds, are none of them."""
        shown = samples.picture_positions()
        is_video = samples.index.videos[shown]
        positions, videos = shown[~is_video], int(is_video.sum())
        if videos:
            lacking = f"{samples.path}: there are {videos} videos, which no feature cache holds"
            self._tell(lacking, "set missing_features='picture'")
        absent = ~self.cache.has(_keys(samples, positions, self.cache.folder))
        count = int(absent.sum())
        if count:
            owners = np.unique(np.repeat(positions, samples.index.sizes[positions, 1])[absent])
            ids = ", ".join(repr(samples.at(int(position)).id) for position in owners[:_SHOWN])
            message = f"{samples.path}: feature cache {self.cache.folder} lacks {count} of {len(absent)} pictures"
            self._tell(f"{message}, such as those of record {ids}", _advice())
        return count

    def _tell(self, lacking: str, advice: str) -> None:
        """Log what is opened and encoded, or refuse it, as the policy says."""
        if self.missing == "error":
            raise ValueError(f"{lacking}; {advice}")
        print_log(f"{lacking}; they are opened and encoded", logger="current", level=logging.WARNING)


def keeps_boxes(augmentation: Any) -> bool:
    """Whether an augmentation leaves the boxes of a picture all as they are, or drops them all."""
    if augmentation is None:
        return True
    if not isinstance(augmentation, BoxAugmentation):
        return False
    moves = augmentation.jitter > 0 and augmentation.jitter_probability > 0
    return not (augmentation.dropout or augmentation.cap_probability or moves)


def _keys(samples: Samples, positions: np.ndarray, folder: Path) -> np.ndarray:
    """(pictures,) uint64 keys of the pictures of (n,) records; kept in the cache's folder: records are read once.

    None of the records is about a video: the number of its pictures would be that of the frames of the moment.
    """
    content = samples.fingerprint or fingerprint(samples.path)
    digest = hashlib.blake2b(repr((_VERSION, content)).encode(), digest_size=16)
    digest.update(samples.index.rows[positions].tobytes())
    path = folder / f"{digest.hexdigest()}.keys.npz"
    known = load_arrays(path)
    if known is not None:
        return known["keys"]
    names = [name for position in positions.tolist() for name in samples.at(position).images]
    keys = np.array([picture_key(name) for name in names], dtype=np.uint64)
    with contextlib.suppress(OSError):
        save_arrays(path, keys=keys)
    return keys


def _advice() -> str:
    return "fill it with tools/fill_feature_cache.py, or set missing_features='picture'"
