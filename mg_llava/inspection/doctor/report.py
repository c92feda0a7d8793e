"""The result of a check: readable lines and plain values for JSON."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mg_llava.inspection.doctor.findings import KINDS, LEVELS, Findings
from mg_llava.inspection.doctor.sources import OpenedSource

_BAR = 40
_SHOWN_CHARACTERS = 160
_VERSION = 1


@dataclass(frozen=True)
class CheckReport:
    """The result of a check of all sources of a config.

    Attributes:
        sources: What was found in each.
        evaluation: Number of different evaluation pictures that they were compared with; None where none were asked
            for.
    """

    sources: Sequence[OpenedSource]
    evaluation: int | None = None

    @property
    def errors(self) -> int:
        """Number of findings with which training fails."""
        return sum(source.findings.total("error") for source in self.sources)

    @property
    def warnings(self) -> int:
        """Number of findings that training skips or changes."""
        return sum(source.findings.total("warning") for source in self.sources)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "version": _VERSION,
            "training_would_fail": self.errors > 0,
            "totals": {level: sum(source.findings.total(level) for source in self.sources) for level in LEVELS},
            "evaluation_pictures": self.evaluation,
            "sources": [
                {"name": source.name, **source.summary, "findings": source.findings.to_list()}
                for source in self.sources
            ],
        }

    def to_text(self, examples: int = 3) -> str:
        """Readable lines, with this many examples of each kind."""
        lines: list[str] = []
        for source in self.sources:
            lines += [*_describe(source.name, source.summary), *_list_findings(source.findings, examples), ""]
        if self.evaluation is not None:
            lines.append(f"compared with {_count(self.evaluation, 'evaluation picture')}")
        counts = f"{_count(self.errors, 'error')}, {_count(self.warnings, 'warning')}"
        verdict = "training would fail or learn from wrong boxes" if self.errors else "training can start"
        return "\n".join([*lines, f"{counts}: {verdict}"])


def _describe(name: str, summary: Mapping[str, Any]) -> Iterator[str]:
    yield f"source {name!r}: {summary['data_path']}, read as {summary['format']}"
    of_all = "" if summary["checked"] == summary["records"] else f" of {summary['records']}"
    yield (
        f"  checked {summary['checked']}{of_all} records: {summary['used']} can be used, {summary['pictures']} "
        f"pictures ({summary['files']} files), {summary['boxes']} boxes ({summary['box_tokens']} box tokens)"
    )
    if summary["template"]:
        yield "  template: {prompt!r}, with loss {loss!r}".format(**summary["template"])
    if summary["lengths"]:
        yield from _describe_lengths(summary["lengths"])
    if summary["sequence"]:
        yield "  sequence with visual tokens and boxes: " + ", ".join(
            f"{name.replace('_', ' ')} {value}" for name, value in summary["sequence"].items() if value is not None
        )
    if summary["coordinates"]:
        yield (
            "  coordinates: {compared} boxes to the canvas and back, off by at most {original_error:.3g} pixels of "
            "the picture ({canvas_error:.3g} of the canvas, allowed {canvas_bound:.3g})"
        ).format(**summary["coordinates"])
        if summary["coordinates"]["drawn"]:
            yield (
                "    {drawn} boxes drawn and found again among the pixels of the canvas, off by at most "
                "{drawn_error:.3g} (allowed {drawn_bound:.3g})"
            ).format(**summary["coordinates"])


def _describe_lengths(lengths: Mapping[str, Any]) -> Iterator[str]:
    limit = "no limit" if lengths["limit"] is None else f"limit {lengths['limit']}"
    yield (
        f"  ids of text (a picture counts as one): median {lengths['median']}, 95 % up to {lengths['percentile_95']}, "
        f"longest {lengths['longest']}; {limit}"
    )
    edges, counts = lengths["edges"], lengths["counts"]
    for number, count in enumerate(counts):
        inside = number + 1 < len(edges)
        span = f"{edges[number] + 1}-{edges[number + 1]}" if inside else f"over {edges[-1]}"
        if inside or count:
            yield f"    {span:>14} {count:>8} {'#' * -(-_BAR * count // max(counts))}"


def _list_findings(findings: Findings, examples: int) -> Iterator[str]:
    last = None
    for kind in findings.sorted_kinds():
        level = findings.level(kind)
        if level != last:
            yield f"  {level}s"
            last = level
        yield f"    {kind}: {findings.counts[kind]} x {KINDS[kind].what}"
        for found in findings.examples[kind][:examples]:
            where = f"id {found.id!r}" if found.id else ""
            where += f" (record {found.row})" if found.row is not None else ""
            text = " ".join(": ".join(part for part in (where, found.detail) if part).split())
            yield f"      {text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + '...'}"
        yield f"      fix: {KINDS[kind].fix}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
