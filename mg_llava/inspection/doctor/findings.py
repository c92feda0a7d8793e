"""All that can be wrong with data: every kind of finding with meaning, weight and fix, and a counter of them."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mg_llava.data.pictures.files import PictureFault

Level = Literal["error", "warning", "note"]
"""``error``: training fails, stops by its policies, or learns from wrong coordinates throughout a source. ``warning``:
it skips or changes something. ``note``: worth knowing."""

LEVELS: tuple[Level, ...] = ("error", "warning", "note")

_KEPT = 1000


class FindingKind(NamedTuple):
    """One thing that can be wrong.

    Attributes:
        what: What it means, in one line.
        fix: What to do about it.
        level: Weight, unless the source's policies say otherwise.
    """

    what: str
    fix: str
    level: Level


def _read_kinds() -> dict[str, FindingKind]:
    text = Path(__file__).with_suffix(".tsv").read_text(encoding="utf-8")
    rows: Iterable[dict[str, Any]] = csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    return {row.pop("kind"): FindingKind(**row) for row in rows}


KINDS: dict[str, FindingKind] = _read_kinds()
"""The table of all findings, in the order of reports."""

PICTURE_FAULTS: dict[PictureFault, str] = {
    "missing": "missing_picture",
    "empty": "empty_picture",
    "zero size": "zero_size_picture",
    "truncated": "truncated_picture",
    "not a picture": "not_a_picture",
    "undecodable": "undecodable_picture",
    "too large": "oversized_picture",
    "outside": "outside_picture",
}


class Found(NamedTuple):
    """One finding.

    Attributes:
        kind: Key of ``KINDS``.
        id: Id of the record, box record or file; empty for what concerns all of a source.
        row: Place of the record in its file; None for anything else.
        detail: What was found.
    """

    kind: str
    id: str = ""
    row: int | None = None
    detail: str = ""


@dataclass
class Findings:
    """Findings of one source: counts, and the first of each kind.

    Args:
        levels: Weights that differ from those of ``KINDS``, by kind.
    """

    levels: dict[str, Level] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[Found]] = field(default_factory=dict)

    def add(self, found: Found, count: int = 1) -> None:
        """Count a finding, for ``count`` cases."""
        self.counts[found.kind] = self.counts.get(found.kind, 0) + count
        examples = self.examples.setdefault(found.kind, [])
        if len(examples) < _KEPT:
            examples.append(found)

    def extend(self, found: Iterable[Found]) -> None:
        """Count several findings."""
        for one in found:
            self.add(one)

    def level(self, kind: str) -> Level:
        """Weight of a kind in this source."""
        return self.levels.get(kind, KINDS[kind].level)

    def sorted_kinds(self) -> list[str]:
        """Kinds that were found, errors first, in the order of ``KINDS``."""
        found = [kind for kind in KINDS if kind in self.counts]
        return sorted(found, key=lambda kind: LEVELS.index(self.level(kind)))

    def total(self, level: Level) -> int:
        """Number of findings of a weight."""
        return sum(count for kind, count in self.counts.items() if self.level(kind) == level)

    def to_list(self) -> list[dict[str, Any]]:
        """All kinds with counts and examples as plain values for JSON."""
        return [
            {
                "kind": kind,
                "level": self.level(kind),
                "count": self.counts[kind],
                "what": KINDS[kind].what,
                "fix": KINDS[kind].fix,
                "examples": [found._asdict() for found in self.examples[kind]],
            }
            for kind in self.sorted_kinds()
        ]
