"""A detector that can be held, for tests that stop a run: it cannot end before, however late they are."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mg_llava.data.records.schema import BoxRecord
from mg_llava.detection.files import ProposalDetector
from mg_llava.work.journal import read_journals

_LONGEST = 600.0
"""Seconds until a batch goes on all the same, so that nothing waits for ever where a test itself was killed."""


def lines_done(out: Path) -> int:
    """Lines of results in all journals of a run."""
    return sum(1 for step in ("read", "detect") for _ in read_journals(out / "work" / step))


class HeldProposals(ProposalDetector):
    """Proposals; but no batch ends while a file is there that names a run with as many lines as it asks for.

    Args:
        hold: The file, see :func:`hold_at`.
    """

    def __init__(self, hold: str) -> None:
        super().__init__()
        self.hold = Path(hold)

    def detect(self, prepared: Sequence[Any], *about: Any) -> list[BoxRecord]:
        """See ``Detector``."""
        end = time.monotonic() + _LONGEST
        while _is_held(self.hold) and time.monotonic() < end:
            time.sleep(0.02)
        return super().detect(prepared, *about)


def _is_held(hold: Path) -> bool:
    try:
        out, lines = json.loads(hold.read_text())
    except FileNotFoundError:
        return False
    return lines_done(Path(out)) >= lines


def write_pipeline(folder: Path) -> Path:
    """A config with this detector, which is held by the file ``hold`` of the folder."""
    detector = {"type": f"{__name__}.{HeldProposals.__name__}", "hold": str(folder / "hold")}
    path = folder / "pipeline.py"
    path.write_text(f"box_pipeline = dict(detector={detector!r})\n")
    return path


def hold_at(folder: Path, out: Path, lines: int) -> Path:
    """Hold the next run into ``out`` once it has this many lines of results; it goes on without the returned file."""
    path = folder / "hold"
    path.write_text(json.dumps([str(out), lines]))
    return path
