"""The sources that a config's training reads: their settings, and what the checks know of them."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from mg_llava.data.boxes._table import BoxTable
from mg_llava.data.boxes.store import frame_keys, picture_keys
from mg_llava.data.pictures.files import PictureError, picture_path
from mg_llava.data.pictures.places import check_folder, place_of
from mg_llava.data.records.formats import RecordFormat
from mg_llava.data.records.regions import Region
from mg_llava.data.settings import Draw, FaultPolicy
from mg_llava.data.text.budget import TokenBudget
from mg_llava.data.text.conversation import Template
from mg_llava.data.text.regions import RegionUse
from mg_llava.inspection.doctor.findings import Findings, Found


class UsedRecord(NamedTuple):
    """A record that training uses; its lengths, a picture counting as one id, are 0 where there is no tokenizer."""

    row: int
    id: str
    images: tuple[str, ...]
    length: int
    full_length: int
    """Before truncation."""
    has_labels: bool
    is_video: bool = False
    regions: tuple[Region, ...] = ()
    named: int = 0
    """Regions that its text needs."""
    crops: int = 0
    """Object images in its text."""

    @property
    def box_keys(self) -> list[str]:
        """Ids of the boxes of its pictures, or of the frames of its video."""
        return (frame_keys if self.is_video else picture_keys)(self.id, len(self.images))


@dataclass
class OpenedSource:
    """One source of a training set, as far as it can be opened; what is None could not be, or is not configured.

    Attributes:
        name: Its name in reports.
        arguments: Arguments of its ``LLaVADataset``, with the defaults.
        indices: The records to check.
        bad_boxes: Ids of box records that were left out as malformed.
        used: The records that can be used.
        summary: Counts and statistics for the report, plain values.
    """

    name: str
    arguments: dict[str, Any]
    faults: FaultPolicy = field(default_factory=FaultPolicy)
    draw: Draw = field(default_factory=Draw)
    records: Sequence[Any] = ()
    indices: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    tokenizer: Any = None
    template: Template | None = None
    processor: Any = None
    budget: TokenBudget = field(default_factory=TokenBudget)
    table: BoxTable | None = None
    bad_boxes: frozenset[str] = frozenset()
    findings: Findings = field(default_factory=Findings)
    used: list[UsedRecord] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def data_path(self) -> str:
        """The file of records."""
        return str(self.arguments["data_path"])

    @property
    def form(self) -> RecordFormat:
        """Format of the records."""
        return self.arguments.get("format") or "llava"

    @cached_property
    def has_folder(self) -> bool:
        """True if the image folder exists."""
        folder = self.arguments["image_folder"]
        if folder is None:
            return False
        try:
            check_folder(os.fspath(folder))
        except (OSError, ValueError):
            return False
        return True

    @property
    def frames(self) -> int:
        """Frames of a video."""
        return 1 if self.processor is None else self.processor.video.frames

    @property
    def regions(self) -> RegionUse:
        """How regions enter texts."""
        return getattr(self.processor, "regions", RegionUse())

    def budget_of(self, is_video: bool) -> TokenBudget:
        """The limits of a record about pictures or about a video."""
        return self.budget.of_frames if is_video else self.budget

    @property
    def apply_exif(self) -> bool:
        """True if pictures are rotated as their EXIF orientation says."""
        return bool(getattr(self.processor, "apply_exif", False))

    def is_outside(self, name: str) -> bool:
        """Tell whether a picture of a record lies outside of the image folder and may not."""
        try:
            picture_path(os.fspath(self.arguments["image_folder"]), name, "", self.faults.outside_pictures == "allow")
        except PictureError:
            return True
        return False

    def path_of(self, name: str) -> str:
        """Path of a picture of a record."""
        return place_of(self.arguments["image_folder"], name)

    def tell(self, kind: str, where: str = "", detail: str = "", count: int = 1) -> None:
        """Note a finding about the source or one of its files."""
        self.findings.add(Found(kind, where, detail=detail), count)

    @contextmanager
    def telling(self, kind: str, where: str, *errors: type[Exception], what: str = "") -> Iterator[None]:
        """Let errors of a block become findings of a kind; of ``config_path`` where something does not exist."""
        try:
            yield
        except errors as error:
            is_path = isinstance(error, FileNotFoundError) or "does not exist" in str(error)
            self.tell("config_path" if is_path else kind, where, f"{what if is_path else ''}{error}")
