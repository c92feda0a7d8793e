"""The judgment of a whole source, and its summary."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mg_llava.data.faults import FAULTS
from mg_llava.inspection.doctor.boxes import LinkResult
from mg_llava.inspection.doctor.coordinates import Mapped, bound_of, draw_and_find, pixel_bound
from mg_llava.inspection.doctor.findings import Found
from mg_llava.inspection.doctor.sources import OpenedSource, UsedRecord
from mg_llava.inspection.doctor.verdicts import judge_source

_DRAWN = 16


def conclude(source: OpenedSource, links: Sequence[LinkResult], positions: int | None, is_part: bool) -> None:
    """Judge the whole of a source and sum it up, in its findings and its summary.

    Args:
        source: The source.
        links: What is known of its pictures with their boxes.
        positions: Number of positions that the LLM knows; None where unknown.
        is_part: Whether only a part of the records was checked.
    """
    source.findings.extend(judge_source([row for link in links for row in link.statistics]))
    lengths = [length for link in links for length in link.lengths]
    for record, length in zip(source.used, lengths, strict=True):
        if positions is not None and length > positions:
            detail = f"{length} tokens, the LLM knows {positions} positions"
            source.findings.add(Found("over_context", record.id, record.row, detail))
    skipped = {record.row for record in source.used if not record.has_labels}.union(*(link.skipped for link in links))
    limit = source.faults.max_bad_samples
    if "skip" in [getattr(source.faults, name) for name in FAULTS] and len(skipped) > limit:
        part = f" among {len(source.indices)} records checked" if is_part else ""
        source.tell("too_many_bad", detail=f"{len(skipped)} samples{part}; max_bad_samples is {limit}")
    text_limit = source.budget.max_length or source.budget.context_length
    limits = {"context_length": source.budget.context_length, "positions_of_the_LLM": positions}
    paths = {name: source.arguments[name] for name in ("image_folder", "box_path")}
    source.summary = {
        "data_path": source.data_path,
        "format": source.form,
        **{name: None if path is None else str(path) for name, path in paths.items()},
        "records": len(source.records),
        "checked": len(source.indices),
        "used": sum(record.has_labels for record in source.used),
        "pictures": sum(link.pictures for link in links),
        "files": len({name for record in source.used for name in record.images}),
        "boxes": sum(link.boxes for link in links),
        "box_tokens": sum(link.box_tokens for link in links),
        "template": source.summary["template"],
        "lengths": length_summary(source.used, text_limit),
        "sequence": _spread([length for length in lengths if length > 0], limits),
        "coordinates": _prove(source, [mapped for link in links for mapped in link.mapped]),
    }


def length_summary(used: Sequence[UsedRecord], limit: int | None, bins: int = 10) -> dict[str, Any]:
    """Statistics of the untruncated lengths, a picture counting as one id.

    Args:
        used: The records.
        limit: Largest number of ids.
        bins: Number of bars of the histogram; they end at the limit, with one more for what exceeds it.
    """
    lengths = [record.full_length for record in used if record.full_length]
    if not lengths:
        return {}
    edges = np.unique(np.linspace(0, limit or max(lengths), bins + 1).round().astype(np.int64))
    # Bars (a, b], so that a text of exactly max_length is no excess.
    counts = np.bincount(np.searchsorted(edges[1:], lengths, side="left"), minlength=len(edges)).tolist()
    spread = _spread(lengths, {"total": sum(lengths), "edges": edges.tolist(), "counts": counts})
    return {"limit": limit, **spread}


def _spread(lengths: Sequence[int], more: dict[str, Any]) -> dict[str, Any]:
    if not lengths:
        return {}
    middle, high = (int(value) for value in np.percentile(lengths, [50, 95]))
    return {"median": middle, "percentile_95": high, "longest": max(lengths), **more}


def _prove(source: OpenedSource, mapped: Sequence[Mapped]) -> dict[str, Any]:
    """Errors of boxes on the way to the canvas and back, and of some that are drawn."""
    if not mapped:
        return {}
    canvas_bound, drawn_bound = bound_of(source.processor), pixel_bound(source.processor)
    worst = max(mapped, key=lambda one: one.canvas_error)
    if worst.canvas_error > canvas_bound:
        detail = f"a box is {worst.canvas_error:.3g} canvas pixels off in a picture of {worst.size}"
        source.tell("coordinates", detail=detail)
    # Of different sizes, as far as there are.
    by_size = {one.size: one.example for one in mapped if one.example is not None}
    chosen = list(by_size.items())[:: max(1, len(by_size) // _DRAWN)][:_DRAWN]
    drawn = [draw_and_find(source.processor, size, example) for size, example in chosen]
    seen = [error for error in drawn if error is not None]
    if seen and max(seen) > drawn_bound:
        detail = f"a drawn box is {max(seen):.3g} canvas pixels away from where the box is"
        source.tell("coordinates", detail=detail)
    return {
        "compared": sum(one.compared for one in mapped),
        "original_error": max(one.original_error for one in mapped),
        "canvas_error": worst.canvas_error,
        "canvas_bound": canvas_bound,
        "drawn": len(seen),
        "drawn_error": max(seen, default=0.0),
        "drawn_bound": drawn_bound,
    }
