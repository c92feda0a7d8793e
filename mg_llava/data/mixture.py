"""Several sources as one data set: each with its own records, pictures, boxes, share and policies."""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from mg_llava.data.boxes.store import BoxStore
from mg_llava.data.config import build_transform, open_boxes, resolve_paths
from mg_llava.data.dataset import LLaVADataset
from mg_llava.data.features.cache import FeatureCache
from mg_llava.data.samplers import sample_lengths
from mg_llava.data.settings import build_group, build_tokens, merge_settings
from mg_llava.data.text.conversation import Template
from mg_llava.data.text.tokenizer import build_tokenizer
from mg_llava.registry import DATASETS


@DATASETS.register_module()
class MixtureDataset(Dataset):
    """The samples of all sources, one source after the other; samplers bring them into order.

    What an index gives depends on the index and the seeds of the sources alone. A sample that cannot be used is
    replaced by another one of its source.

    Args:
        sources: Arguments of a ``LLaVADataset`` each (or of another ``type``), or data sets. ``draw``
            decides how much of a source an epoch has; a source that shall be w of M samples is given
            ``draw=dict(repeat=w * M / records)``.
        defaults: Arguments of all sources that do not have them themselves, such as ``tokenizer`` or ``data_root``; in
            groups of settings, field by field. What is given here, and box files that several sources name, is built
            once.

    Raises:
        ValueError: There are no sources, or two have one name.
    """

    def __init__(self, sources: Sequence[Mapping[str, Any] | Dataset], **defaults: Any) -> None:
        if not sources:
            raise ValueError("the mixture has no sources; give a list of data sets, or of their arguments")
        builder = _Builder(defaults)
        self.sources: list[Any] = [builder.build(source) for source in sources]
        names = Counter(source.name for source in self.sources)
        twice = sorted(name for name, count in names.items() if count > 1)
        if twice:
            raise ValueError(f"several sources are called {', '.join(twice)}; give each a name=... of its own")
        self._ends = np.cumsum([len(source) for source in self.sources])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Sample ``index``; see ``LLaVADataset``."""
        number, place = self.locate(index)
        return self.sources[number][place]

    def locate(self, index: int) -> tuple[int, int]:
        """Number of the source of sample ``index``, and its index there; negative indices count from the end.

        Raises:
            IndexError: There is no such sample.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is not among the {len(self)} samples of the mixture")
        index %= len(self)
        number = int(self._ends.searchsorted(index, side="right"))
        return number, index - (int(self._ends[number - 1]) if number else 0)

    def set_epoch(self, epoch: int) -> None:
        """Draw anew what the sources draw; see ``LLaVADataset``."""
        for source in self.sources:
            if hasattr(source, "set_epoch"):
                source.set_epoch(epoch)

    @property
    def modality_length(self) -> list[int]:
        """Length of each sample, for samplers: positive with pictures, negative without."""
        return self.modality_lengths().tolist()

    def modality_lengths(self) -> np.ndarray:
        """(M,) int32 the same as an array."""
        return np.concatenate([sample_lengths(one).astype(np.int32) for one in self.sources])

    @property
    def bad_samples(self) -> int:
        """Number of different records skipped so far, by all workers of this process."""
        return sum(source.bad_samples for source in self.sources)

    def report(self) -> dict[str, Any]:
        """What there is, and what all workers of this process skipped so far, for each source."""
        return {"samples": len(self), "sources": [source.report() for source in self.sources]}


def sources_of(dataset: Any) -> list[LLaVADataset]:
    """The sources a data set is made of, in their order: of a mixture or concatenation, or the data set itself.

    Raises:
        TypeError: Something else is found.
    """
    if isinstance(dataset, LLaVADataset):
        return [dataset]
    parts = getattr(dataset, "sources", None) or getattr(dataset, "datasets", None)
    if parts is None:
        raise TypeError(f"found a {type(dataset).__name__}; a LLaVADataset, a mixture or a concatenation is needed")
    return [source for part in parts for source in sources_of(part)]


_BUILT: dict[str, Callable[[Any], Any]] = {
    "tokenizer": build_tokenizer,
    "template": Template.build,
    "tokens": build_tokens,
    "picture_processor": build_transform,
}


class _Builder:
    """Builds sources; what several of them use is built once."""

    def __init__(self, defaults: Mapping[str, Any]) -> None:
        known = {name: build for name, build in _BUILT.items() if name in defaults}
        self._defaults = {**defaults, **{name: build(defaults[name]) for name, build in known.items()}}
        caches = defaults.get("caches")
        if isinstance(caches, Mapping) and isinstance(caches.get("feature_cache"), str | Path):
            self._defaults["caches"] = {**caches, "feature_cache": FeatureCache(caches["feature_cache"])}
        self._stores: dict[tuple[Any, ...], BoxStore | None] = {}

    def build(self, source: Mapping[str, Any] | Dataset) -> Any:
        """A source from its arguments."""
        if not isinstance(source, Mapping):
            return source
        settings = resolve_paths({"type": LLaVADataset, **merge_settings(self._defaults, source)})
        if isinstance(settings.get("box_path"), str):
            settings["box_path"] = self._store(settings)
        return DATASETS.build(settings)

    def _store(self, settings: Mapping[str, Any]) -> BoxStore | None:
        path, processor = settings["box_path"], settings.get("picture_processor")
        faults = build_group("faults", settings.get("faults"))
        proposer = build_group("boxes", settings.get("boxes")).proposer
        policies = faults.missing_box, faults.bad_box_record
        key = (os.path.abspath(path), *policies, repr(proposer), repr(processor))
        if key not in self._stores:
            self._stores[key] = open_boxes(path, *policies, proposer, build_transform(processor))
        return self._stores[key]
