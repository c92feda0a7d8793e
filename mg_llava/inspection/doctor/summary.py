"""What was found out about a source, judged as a whole and summed up."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mg_llava.data.faults import FAULTS
from mg_llava.data.text.budget import TokenBudget
from mg_llava.inspection.doctor.boxes import LinkResult
from mg_llava.inspection.doctor.coordinates import Mapped, bound_of, draw_and_find, pixel_bound
from mg_llava.inspection.doctor.findings import Found
from mg_llava.inspection.doctor.report import SourceReport
from mg_llava.inspection.doctor.sources import Source
from mg_llava.inspection.doctor.texts import UsedRecord, length_summary
from mg_llava.inspection.doctor.verdicts import judge_source

_DRAWN = 16


@dataclass
class Gathered:
    """What the steps find out about one source: usable records, the template at work, and pictures with boxes."""

    used: list[UsedRecord] = field(default_factory=list)
    template: dict[str, str] = field(default_factory=dict)
    links: list[LinkResult] = field(default_factory=list)


def conclude(source: Source, gathered: Gathered, positions: int | None, is_part: bool) -> SourceReport:
    """Judge the whole of a source and sum it up.

    Args:
        source: The source.
        gathered: What was found out.
        positions: Number of positions that the LLM knows; None where unknown.
        is_part: Whether only a part of the records was checked.
    """
    links = gathered.links
    source.findings.extend(judge_source([row for link in links for row in link.statistics]))
    tokens = [row for link in links for row in link.tokens]
    _find_over_context(source, gathered.used, tokens, positions)
    _find_too_many_bad(source, gathered, is_part)
    summary = {
        "data_path": source.data_path,
        "image_folder": _as_text(source.arguments["image_folder"]),
        "box_path": _as_text(source.arguments["box_path"]),
        "records": len(source.records),
        "checked": len(source.indices),
        "used": sum(record.has_labels for record in gathered.used),
        "pictures": sum(link.pictures for link in links),
        "files": len({name for record in gathered.used for name in record.images}),
        "boxes": sum(link.boxes[0] for link in links),
        "box_tokens": sum(link.boxes[1] for link in links),
        "template": gathered.template,
        "lengths": length_summary(gathered.used, source.budget.max_length or source.budget.context_length),
        "sequence": _sequence_summary([length for _, length in tokens if length > 0], source.budget, positions),
        "coordinates": _prove(source, [mapped for link in links for mapped in link.mapped]),
    }
    return SourceReport(source.name, summary, source.findings)


def _find_over_context(
    source: Source, used: Sequence[UsedRecord], tokens: Sequence[tuple[int, int]], positions: int | None
) -> None:
    for record, (row, length) in zip(used, tokens, strict=True):
        if positions is not None and length > positions:
            detail = f"{length} tokens, the LLM knows {positions} positions"
            source.findings.add(Found("over_context", record.id, row, detail))


def _find_too_many_bad(source: Source, gathered: Gathered, is_part: bool) -> None:
    skipped = {row for link in gathered.links for row in link.skipped}
    skipped |= {record.row for record in gathered.used if not record.has_labels}
    limit = source.faults.max_bad_samples
    policies = [getattr(source.faults, name) for name in FAULTS]
    if "skip" in policies and len(skipped) > limit:
        part = f" among {len(source.indices)} records checked" if is_part else ""
        detail = f"{len(skipped)} samples{part}; max_bad_samples is {limit}"
        source.findings.add(Found("too_many_bad", detail=detail))


def _sequence_summary(tokens: Sequence[int], budget: TokenBudget, positions: int | None) -> dict[str, Any]:
    if not tokens:
        return {}
    middle, high = (int(value) for value in np.percentile(tokens, [50, 95]))
    limits = {"context_length": budget.context_length, "positions_of_the_LLM": positions}
    return {"median": middle, "percentile_95": high, "longest": max(tokens), **limits}


def _prove(source: Source, mapped: Sequence[Mapped]) -> dict[str, Any]:
    """Errors of boxes on the way to the canvas and back, and of some that are drawn."""
    if not mapped:
        return {}
    canvas_bound, drawn_bound = bound_of(source.processor), pixel_bound(source.processor)
    worst = max(mapped, key=lambda one: one.canvas_error)
    if worst.canvas_error > canvas_bound:
        detail = f"a box is {worst.canvas_error:.3g} canvas pixels off in a picture of {worst.size}"
        source.findings.add(Found("coordinates", detail=detail))
    # Of different sizes, as far as there are.
    by_size = {one.size: one for one in mapped if one.example is not None}
    chosen = list(by_size.values())[:: max(1, len(by_size) // _DRAWN)][:_DRAWN]
    drawn = [draw_and_find(source.processor, one.size, one.example) for one in chosen if one.example is not None]
    seen = [error for error in drawn if error is not None]
    if seen and max(seen) > drawn_bound:
        detail = f"a drawn box is {max(seen):.3g} canvas pixels away from where the box is"
        source.findings.add(Found("coordinates", detail=detail))
    return {
        "compared": sum(one.compared for one in mapped),
        "original_error": max(one.original_error for one in mapped),
        "canvas_error": worst.canvas_error,
        "canvas_bound": canvas_bound,
        "drawn": len(seen),
        "drawn_error": max(seen, default=0.0),
        "drawn_bound": drawn_bound,
    }


def _as_text(value: Any) -> str | None:
    return None if value is None else str(value)
