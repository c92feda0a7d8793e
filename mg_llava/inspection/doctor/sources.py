"""The sources that a config's training reads: their settings, and what the checks know of them."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mg_llava.data.boxes._table import BoxTable
from mg_llava.data.dataset import resolve_paths
from mg_llava.data.text.budget import TokenBudget
from mg_llava.data.text.conversation import Template
from mg_llava.inspection.doctor.findings import Findings

MIXED = "sources"
"""Key of a mixture's sources; its other settings are defaults of theirs."""

_JOINED = "datasets"
_WRAPPED = "dataset"


class ConfigError(ValueError):
    """A config without a training set that could be checked."""


@dataclass
class Source:
    """One source of a training set, as far as it can be opened; what is None could not be, or is not configured.

    Attributes:
        name: Its name in reports.
        arguments: Arguments of its ``LLaVADataset``, with the defaults.
        records: Raw records.
        indices: Those to check.
        tokenizer: The LLM's tokenizer.
        template: Its template.
        processor: Its picture processor.
        budget: Its limits of tokens.
        boxes: Its box file.
        bad_boxes: Ids of box records that were left out as malformed.
        has_folder: Whether the image folder exists.
        findings: What was found so far.
    """

    name: str
    arguments: dict[str, Any]
    records: Sequence[Any] = ()
    indices: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    tokenizer: Any = None
    template: Template | None = None
    processor: Any = None
    budget: TokenBudget = field(default_factory=TokenBudget)
    boxes: BoxTable | None = None
    bad_boxes: frozenset[str] = frozenset()
    has_folder: bool = False
    findings: Findings = field(default_factory=Findings)

    @property
    def data_path(self) -> str:
        """The file of records."""
        return str(self.arguments["data_path"])

    @property
    def max_pixels(self) -> int | None:
        """Largest picture allowed."""
        return self.arguments["max_pixels"]

    @property
    def apply_exif(self) -> bool:
        """Whether pictures are rotated as their EXIF orientation says."""
        return bool(getattr(self.processor, "apply_exif", False))

    def path_of(self, name: str) -> str:
        """Path of a picture of a record."""
        return os.path.join(os.fspath(self.arguments["image_folder"]), name)


def find_dataset(config: Any) -> Mapping[str, Any]:
    """The settings of a config's training set as plain values.

    Raises:
        ConfigError: There is none.
    """
    plain = config.to_dict()
    dataset = (plain.get("train_dataloader") or {}).get("dataset")
    if not isinstance(dataset, Mapping):
        raise ConfigError(f"{config.filename} has no train_dataloader.dataset; give the config of a training")
    return dataset


def walk_sources(dataset: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The settings of each single source of a data set, of mixtures and concatenations too."""
    if "data_path" in dataset:
        yield resolve_paths(dataset)
    elif isinstance(dataset.get(MIXED), Sequence):
        shared = {name: value for name, value in dataset.items() if name not in (MIXED, "type")}
        for part in dataset[MIXED]:
            yield from walk_sources({**shared, **part})
    elif isinstance(dataset.get(_JOINED), Sequence):
        for part in dataset[_JOINED]:
            yield from walk_sources(part)
    elif isinstance(dataset.get(_WRAPPED), Mapping):
        yield from walk_sources(dataset[_WRAPPED])
    else:
        yield dataset
