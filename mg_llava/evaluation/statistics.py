"""Statistics of the scores of single questions: intervals, paired differences of settings, accuracy by kind of boxes.

Scores are joined by question id, never by order. Questions that share a picture are not independent; give their
``groups`` to draw whole pictures.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Scores = Mapping[str, float]
"""Scores 0-1 by question id."""

SAMPLES = 2000
CONFIDENCE = 0.95
_CELLS = 4_000_000
"""Most numbers of a block of bootstrap samples in memory."""


@dataclass(frozen=True)
class Interval:
    """The mean of ``n`` values with the ends of its bootstrap interval."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero."""
        return self.low > 0 or self.high < 0

    def to_dict(self) -> dict[str, float]:
        """Plain values for JSON."""
        return asdict(self)


def scores_of(per_sample: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Scores by id of a rule's ``per_sample``; ids become strings."""
    return {str(entry["id"]): float(entry["score"]) for entry in per_sample}


def bootstrap_mean(
    values: Sequence[float] | np.ndarray, groups: Sequence[Any] | None = None, samples: int = SAMPLES
) -> Interval:
    """Percentile bootstrap interval of a mean, always the same for the same values.

    Args:
        values: n numbers.
        groups: n labels; values of one label are drawn together. None draws each value on its own.
        samples: Number of bootstrap samples.

    Raises:
        ValueError: There are no values, or ``groups`` are of another number.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if not len(numbers):
        raise ValueError("there are no scores to take the mean of")
    sums, sizes = _by_group(numbers, groups)
    count = len(sums)
    rng = np.random.default_rng(0)
    means = np.empty(samples)
    block = max(1, _CELLS // count)
    for start in range(0, samples, block):
        # how often each group was drawn: (block, groups)
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=min(block, samples - start))
        means[start : start + len(drawn)] = (drawn @ sums) / (drawn @ sizes)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(numbers.mean()), float(low), float(high), len(numbers))


def paired_bootstrap(scores: Scores, baseline: Scores, groups: Mapping[str, Any] | None = None) -> Interval:
    """Mean difference ``scores - baseline`` over the same questions, with its bootstrap interval.

    ``groups`` tells by question id what is drawn together, such as the picture; None draws each question alone.

    Raises:
        ValueError: The settings were scored on different questions, or on none.
    """
    if set(scores) != set(baseline):
        odd = sorted(set(scores) ^ set(baseline))
        raise ValueError(
            f"{len(odd)} questions have a score in one setting alone, such as {odd[0]!r}; score both settings on the "
            "same data"
        )
    ids = sorted(scores)
    differences = np.array([scores[name] - baseline[name] for name in ids])
    labels = None if groups is None else [groups[name] for name in ids]
    return bootstrap_mean(differences, labels)


def _by_group(values: np.ndarray, groups: Sequence[Any] | None) -> tuple[np.ndarray, np.ndarray]:
    """Sum of the values and their number, for each group."""
    if groups is None:
        return values, np.ones(len(values))
    if len(groups) != len(values):
        raise ValueError(f"{len(values)} scores and {len(groups)} groups; they are parallel")
    numbers: dict[Any, int] = {}
    index = np.array([numbers.setdefault(group, len(numbers)) for group in groups])
    return np.bincount(index, values), np.bincount(index).astype(np.float64)


# -- accuracy by kind of boxes ---------------------------------------------------------------------------------

BoxFacts = Mapping[str, Mapping[str, float]]
"""What is known of the boxes of each question, by its id."""

Buckets = Sequence[tuple[str, float]]
"""Names and upper ends (not included), in rising order; the last end is infinite."""
_SIZES: Buckets = (("small (< 6 %)", 0.06), ("medium (6-17 %)", 0.17), ("large (> 17 %)", np.inf))
"""By the side of a square of the same area, relative to that of the picture: COCO's 32 and 96 px at 640 x 480."""
_COUNTS: Buckets = (("0", 1), ("1-10", 11), ("11-20", 21), ("21-30", 31), ("31-50", 51), ("> 50", np.inf))
_CONFIDENCES: Buckets = (("< 0.3", 0.3), ("0.3-0.5", 0.5), (">= 0.5", np.inf))

BREAKDOWNS: Mapping[str, tuple[str, Buckets]] = {
    "size of the annotated object": ("object_size", _SIZES),
    "mean size of the boxes": ("size", _SIZES),
    "boxes per picture": ("boxes", _COUNTS),
    "detector confidence": ("confidence", _CONFIDENCES),
}
"""Title of a breakdown: the fact it goes by and its buckets."""


def facts_of(samples: Iterable[Mapping[str, Any]], object_sizes: Scores | None = None) -> dict[str, dict[str, float]]:
    """Facts from the ``samples`` of a run, and sizes of annotated objects where they are known."""
    facts: dict[str, dict[str, float]] = {}
    for sample in samples:
        name = str(sample["id"])
        facts[name] = {key: float(sample[key]) for key in ("boxes", "confidence", "size") if key in sample}
        if object_sizes is not None and name in object_sizes:
            facts[name]["object_size"] = object_sizes[name]
    return facts


def break_down(scores: Scores, facts: BoxFacts) -> dict[str, list[dict[str, Any]]]:
    """Mean score by object size, boxes per picture and detector confidence, as far as facts are known.

    Returns:
        For each breakdown with facts its buckets that have questions: ``name``, ``n``, ``mean``, ``low``, ``high``.
    """
    tables = {}
    for title, (key, buckets) in BREAKDOWNS.items():
        found: dict[str, list[float]] = {name: [] for name, _ in buckets}
        for question, score in scores.items():
            value = facts.get(question, {}).get(key)
            if value is not None:
                found[next(name for name, end in buckets if value < end)].append(score)
        rows = [{"name": name, **bootstrap_mean(part).to_dict()} for name, part in found.items() if part]
        if rows:
            tables[title] = rows
    return tables
