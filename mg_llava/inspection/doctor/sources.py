"""The sources that a config's training reads: their settings, and what the checks know of them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mg_llava.data.boxes._table import BoxTable
from mg_llava.data.pictures.files import PictureError, picture_path
from mg_llava.data.settings import BoxUse, Draw, FaultPolicy
from mg_llava.data.text.budget import TokenBudget
from mg_llava.data.text.conversation import Template
from mg_llava.inspection.doctor.findings import Findings


@dataclass
class Source:
    """One source of a training set, as far as it can be opened; what is None could not be, or is not configured.

    Attributes:
        name: Its name in reports.
        arguments: Arguments of its ``LLaVADataset``, with the defaults.
        faults: Its policies.
        boxes: What it does with boxes.
        draw: Which records it has in an epoch.
        records: Raw records.
        indices: Those to check.
        tokenizer: The LLM's tokenizer.
        template: Its template.
        processor: Its picture processor.
        budget: Its limits of tokens.
        table: Its box file.
        bad_boxes: Ids of box records that were left out as malformed.
        has_folder: Whether the image folder exists.
        findings: What was found so far.
    """

    name: str
    arguments: dict[str, Any]
    faults: FaultPolicy = field(default_factory=FaultPolicy)
    boxes: BoxUse = field(default_factory=BoxUse)
    draw: Draw = field(default_factory=Draw)
    records: Sequence[Any] = ()
    indices: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    tokenizer: Any = None
    template: Template | None = None
    processor: Any = None
    budget: TokenBudget = field(default_factory=TokenBudget)
    table: BoxTable | None = None
    bad_boxes: frozenset[str] = frozenset()
    has_folder: bool = False
    findings: Findings = field(default_factory=Findings)

    @property
    def data_path(self) -> str:
        """The file of records."""
        return str(self.arguments["data_path"])

    @property
    def apply_exif(self) -> bool:
        """Whether pictures are rotated as their EXIF orientation says."""
        return bool(getattr(self.processor, "apply_exif", False))

    def is_outside(self, name: str) -> bool:
        """Whether a picture of a record lies outside of the image folder and may not."""
        try:
            picture_path(os.fspath(self.arguments["image_folder"]), name, "", self.faults.outside_pictures == "allow")
        except PictureError:
            return True
        return False

    def path_of(self, name: str) -> str:
        """Path of a picture of a record."""
        return os.path.join(os.fspath(self.arguments["image_folder"]), name)
