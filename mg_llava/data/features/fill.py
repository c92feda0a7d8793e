"""Filling a feature cache: each picture of some data sets once, with every box that may become a token.

Shapes: N pictures, S side of the canvas in pixels, n boxes of a picture.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mg_llava.data.dataset import LLaVADataset
from mg_llava.data.features.cache import FeatureCache, FeatureError, NoPictureError, match_boxes, unique_boxes
from mg_llava.data.features.file import FeatureWriter, Stamp, describe_cache, describe_pictures, stamp_of
from mg_llava.data.pictures.files import PictureError, open_picture
from mg_llava.data.pictures.places import is_stored, is_there, place_of
from mg_llava.features import FeatureDtype, Features, pack_features, stack, unpack
from mg_llava.work.pool import run_batches

Extract = Callable[[Tensor, list[Tensor]], Features]
"""From ``(N, 3, S, S)`` uint8 pixels and N tensors ``(n_i, 4)`` of boxes to what the encoders give."""

State = Literal["known", "absent", "changed", "unreadable"]
"""What a cache knows of a picture: all; nothing; another file or other boxes; that it cannot be read."""

PictureProgress = Callable[[int], object]

_NO_FILE = Stamp(-1, -1, 0)
_SURVEYED = 32


class PictureJob(NamedTuple):
    """A picture of one or more records: its image folder, and its path below it.

    ``uses`` has for each record that shows it the number of the source, of the record there, and of the picture in it.
    """

    folder: str
    name: str
    uses: list[tuple[int, int, int]]


class Finding(NamedTuple):
    """A picture, and what is to be done about it.

    ``message`` says why it cannot be read; ``stamp`` is None where there is nothing to add. A picture that is to be
    encoded has ``frame``, width and height in the frame of its boxes, (n, 4) float32 ``boxes`` to pool, and
    (3, S, S) uint8 ``pixels``.
    """

    name: str
    state: State
    message: str = ""
    stamp: Stamp | None = None
    frame: tuple[int, int] = (0, 0)
    boxes: np.ndarray | None = None
    pixels: np.ndarray | None = None


def about_cache(
    sources: Sequence[LLaVADataset], dtype: FeatureDtype, sizes: Mapping[str, Any], encoders: Mapping[str, Any]
) -> dict[str, Any]:
    """What a cache of some sources is for; arguments as for ``feature_file.describe_cache``.

    Raises:
        ValueError: No source has pictures, or two make canvases in different ways.
    """
    found = [describe_pictures(source.picture_processor) for source in sources if source.picture_positions()]
    if not found:
        raise ValueError("no source has pictures; there is nothing to encode")
    if any(item != found[0] for item in found):
        raise ValueError("sources make canvases in different ways; fill a folder for each picture_processor")
    return describe_cache(dtype, sizes, encoders, found[0])


def add_reports(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The reports of ``fill_feature_cache`` of several processes as one."""
    errors = [report["error"] for report in reports if report["error"] is not None]
    return {
        "pictures": dict(sum((Counter(report["pictures"]) for report in reports), Counter())),
        "added": sum(report["added"] for report in reports),
        "bytes": sum(report["bytes"] for report in reports),
        "unreadable": [message for report in reports for message in report["unreadable"]],
        "error": max(errors, default=None),
    }


def list_jobs(sources: Sequence[LLaVADataset], rank: int = 0, processes: int = 1) -> list[PictureJob]:
    """Every picture of some sources once, or the share of process ``rank`` of several."""
    jobs: dict[tuple[str, str], PictureJob] = {}
    for number, source in enumerate(sources):
        for position in source.picture_positions():
            record = source.record_at(position)
            if record.video is not None:
                continue
            folder = str(source.image_folder)
            folder = folder if is_stored(folder) else os.path.abspath(folder)
            for place, name in enumerate(record.images):
                jobs.setdefault((folder, name), PictureJob(folder, name, [])).uses.append((number, position, place))
    return list(jobs.values())[rank::processes]


class Pictures:
    """What is to be done about each picture of a list of jobs; ``pool`` says whether boxes are pooled."""

    def __init__(
        self, sources: Sequence[LLaVADataset], jobs: Sequence[PictureJob], cache: FeatureCache, pool: bool
    ) -> None:
        self.jobs = jobs
        self._sources, self._cache, self._pool = sources, cache, pool

    def batches(self, size: int, workers: int, progress: PictureProgress | None) -> Iterator[list[Finding]]:
        """All findings, found by ``workers`` processes."""
        return run_batches(_find_all, self, self.jobs, size, workers, progress)

    def find(self, job: PictureJob) -> Finding:
        """A finding; with pixels unless all is known."""
        path = place_of(job.folder, job.name)
        known = torch.zeros(0, 4)
        try:
            picture = self._cache.find(job.name, path)
            known = self._cache.boxes(picture)
            match_boxes(known, self._boxes(job, path, picture.frame), self._cache.folder)
            return Finding(job.name, "known")
        except NoPictureError as error:
            return Finding(job.name, "unreadable", str(error))
        except FeatureError:
            return self._open(job, path, "changed" if self._cache.holds(job.name) else "absent", known)

    def _open(self, job: PictureJob, path: str, state: State, known: Tensor) -> Finding:
        """A picture to encode, with the boxes of all that show it and (n, 4) boxes that were pooled before."""
        source = self._sources[job.uses[0][0]]
        # before it is opened: a change meanwhile then makes the features stale, not the stamp
        stamp = stamp_of(path) if is_there(path) else _NO_FILE
        try:
            image = open_picture(path, f"record {source.record_at(job.uses[0][1]).id!r}", source.faults.max_pixels)
        except PictureError as error:
            return Finding(job.name, "unreadable", str(error), stamp)
        loader = source.loader
        assert loader is not None  # the source has pictures
        frame = loader.frame_of(image)
        # what was pooled before is pooled again, so that the newest entry serves all
        boxes = unique_boxes(torch.cat([self._boxes(job, path, frame), known])).numpy()
        return Finding(job.name, state, "", stamp, frame, boxes, loader.processor(image).pixels.numpy())

    def _boxes(self, job: PictureJob, path: str, frame: tuple[int, int]) -> Tensor:
        """(n, 4) float32, the boxes of all records that show a picture."""
        if not self._pool:
            return torch.zeros(0, 4)
        found = []
        for number, position, place in job.uses:
            source = self._sources[number]
            record = source.record_at(position)
            key = record.box_keys[place]
            opener = partial(open_picture, path, max_pixels=source.faults.max_pixels)
            assert source.loader is not None
            found.append(source.loader.possible_boxes(key, frame, opener))
        return unique_boxes(torch.cat(found))


def survey_cache(pictures: Pictures, workers: int = 0, progress: PictureProgress | None = None) -> Counter[str]:
    """How many pictures are in each state, without changing anything; arguments as for ``fill_feature_cache``."""
    return Counter(item.state for batch in pictures.batches(_SURVEYED, workers, progress) for item in batch)


def fill_feature_cache(
    pictures: Pictures,
    extract: Extract,
    writer: FeatureWriter,
    dtype: FeatureDtype,
    batch_size: int = 8,
    workers: int = 0,
    progress: PictureProgress | None = None,
) -> dict[str, Any]:
    """Encode all pictures that a cache does not know yet, and add them.

    Args:
        pictures: What is to be done.
        extract: Runs the encoders.
        writer: Where features go.
        dtype: How they are kept.
        batch_size: Pictures that are encoded at once.
        workers: Processes that open pictures.
        progress: Gets the number of pictures after each batch.

    Returns:
        ``pictures`` in each state, ``added``, ``bytes`` that were written, ``unreadable``, the first messages about
        pictures that cannot be read, and ``error``, the root mean square of what rounding changed over that of the
        features, of the first batch (None where there is none).
    """
    counts: Counter[str] = Counter()
    messages: list[str] = []
    errors: list[float] = []
    waiting: list[Finding] = []

    def encode() -> None:
        found = _encode(waiting, extract, writer, dtype)
        waiting.clear()
        if not errors:
            errors.append(rounding_error(*found))

    for batch in pictures.batches(batch_size, workers, progress):
        for item in batch:
            counts[item.state] += 1
            if item.state == "unreadable":
                messages.append(item.message)
                if item.stamp is not None:
                    writer.add_unreadable(item.name, item.stamp)
            elif item.pixels is not None:
                waiting.append(item)
                if len(waiting) == batch_size:
                    encode()
    if waiting:
        encode()
    writer.close()
    return {
        "pictures": dict(counts),
        "added": counts["absent"] + counts["changed"],
        "bytes": writer.written,
        "unreadable": messages[:20],
        "error": next(iter(errors), None),
    }


def _encode(
    items: Sequence[Finding], extract: Extract, writer: FeatureWriter, dtype: FeatureDtype
) -> tuple[Features, list[dict[str, Tensor]]]:
    """Encode and add pictures; their features, and how they are kept."""
    boxes = [torch.from_numpy(item.boxes) for item in items]
    features = extract(torch.from_numpy(np.stack([item.pixels for item in items])), boxes)  # type: ignore[misc]
    arrays = pack_features(features, [len(own) for own in boxes], dtype)
    for item, own, kept in zip(items, boxes, arrays, strict=True):
        writer.add(item.name, item.stamp, item.frame, own, kept)  # type: ignore[arg-type]
    return features, arrays


def rounding_error(features: Features, arrays: Sequence[dict[str, Tensor]]) -> float:
    """Largest, over the kinds of features, of the RMS of what rounding changed over the RMS of the features."""
    errors = [0.0]
    for exact, kept in zip(features.tensors, unpack(stack(arrays)).tensors, strict=True):
        if exact.numel():
            exact = exact.detach().float().cpu()
            errors.append(((kept.float() - exact).square().mean() / exact.square().mean()).sqrt().item())
    return max(errors)


def _find_all(pictures: Pictures, jobs: Sequence[PictureJob]) -> list[Finding]:
    return list(map(pictures.find, jobs))
