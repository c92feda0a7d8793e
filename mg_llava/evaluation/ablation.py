"""One checkpoint under several settings of boxes and fusion: what each is worth, with paired bootstrap intervals."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mg_llava.evaluation.box_source import is_box_file, parse_box_spec
from mg_llava.evaluation.results import metric_of
from mg_llava.evaluation.scoring.joining import ScoreResult
from mg_llava.evaluation.statistics import Interval, paired_bootstrap, scores_of

SettingScores = Mapping[str, ScoreResult]
"""SettingScores by benchmark."""


@dataclass(frozen=True)
class Setting:
    """How a checkpoint is run: its boxes, as ``--boxes`` takes them, and whether the fusion is on."""

    boxes: str = "detected"
    fusion: bool = True

    @property
    def name(self) -> str:
        """For tables."""
        return f"boxes {self.boxes}" + ("" if self.fusion else ", fusion off")

    @property
    def folder(self) -> str:
        """Name of the folder with this setting's predictions."""
        plain = "".join(c if c.isalnum() or c in "=.-" else "_" for c in Path(self.boxes).name)
        if Path(self.boxes).name != self.boxes:  # box files of one name in two places
            plain += "-" + hashlib.blake2b(self.boxes.encode(), digest_size=3).hexdigest()
        return f"boxes-{plain}" + ("" if self.fusion else "_fusion-off")


def parse_settings(boxes: str | Sequence[str], fusion: str = "on") -> list[Setting]:
    """All combinations of ``--boxes`` and ``--fusion``, the baseline first.

    Args:
        boxes: Specs, or one text with commas between them.
        fusion: ``on``, ``off``, or ``on,off``.

    Raises:
        ValueError: A spec is malformed or comes twice.
    """
    specs = [part.strip() for part in (boxes.split(",") if isinstance(boxes, str) else boxes)]
    switches = [part.strip() for part in fusion.split(",")]
    wrong = sorted(set(switches) - {"on", "off"})
    if wrong:
        raise ValueError(f"fusion={fusion!r}: {wrong[0]!r} is unknown; allowed: on, off, or on,off")
    for spec in specs:
        if not is_box_file(spec):
            parse_box_spec(spec)
    settings = [Setting(spec, switch == "on") for switch in switches for spec in specs]
    if len(set(settings)) < len(settings):
        raise ValueError(f"boxes={boxes!r}, fusion={fusion!r}: a setting comes twice; name each once")
    return settings


@contextmanager
def fusion_off(model: Any) -> Iterator[None]:
    """Run a model without its fusion: the projector sees the low-resolution tokens as they are.

    The fusion is taken out and put back, so that weights and ``state_dict`` are untouched afterwards; without a box
    projector the high-resolution encoder does not even run.

    Raises:
        ValueError: The model has no fusion, or one that changes the width of the tokens.
    """
    model = getattr(model, "module", model)
    fusion = model.fuse_module
    if fusion is None:
        raise ValueError("the model has no fusion to switch off; leave out --fusion off")
    low = model.visual_encoder.spec
    shape, own = (fusion.out_tokens(low.tokens), fusion.out_channels), (low.tokens, low.channels)
    if shape != own:
        raise ValueError(
            f"{type(fusion).__name__} gives {shape[0]} tokens of {shape[1]} channels where the low-resolution encoder "
            f"gives {own[0]} of {own[1]}, so that the projector cannot do without it"
        )
    model.fuse_module = None
    try:
        yield
    finally:
        model.fuse_module = fusion


@dataclass(frozen=True)
class Difference:
    """One setting against the baseline on one benchmark.

    Attributes:
        benchmark: Name of the benchmark.
        setting: Name of the setting.
        rule: The rule that scored both.
        score: Mean score of the questions, 0-1.
        baseline: The baseline's.
        interval: Of the difference, ``score - baseline``, paired by question.
        metric: Name of the benchmark's headline metric.
        metric_value: The setting's headline, None where the rule does not give it.
        metric_baseline: The baseline's.
    """

    benchmark: str
    setting: str
    rule: str
    score: float
    baseline: float
    interval: Interval
    metric: str = ""
    metric_value: float | None = None
    metric_baseline: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**vars(self), "interval": self.interval.to_dict()}


def compare(
    results: Mapping[str, SettingScores],
    headlines: Mapping[str, tuple[str, str]] | None = None,
    groups: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
) -> list[Difference]:
    """Differences of all settings to the first, benchmark by benchmark.

    Args:
        results: SettingScores by setting and benchmark, the baseline first.
        headlines: Rule and metric to compare by, for each benchmark; the first rule by default.
        groups: For each benchmark what is drawn together, by question id; see ``statistics.paired_bootstrap``.
        seed: Of the bootstrap.

    Raises:
        ValueError: Settings were scored on different questions.
    """
    (_, baseline), *others = results.items()
    rows = []
    for benchmark, reference in baseline.items():
        rule, metric = (headlines or {}).get(benchmark, ("", ""))
        if rule not in reference["rules"]:
            rule = next(iter(reference["rules"]), "")
        if not reference["rules"]:
            continue  # a split without answers
        first = scores_of(reference["rules"][rule]["per_sample"])
        together = _groups(first, (groups or {}).get(benchmark))
        for setting, result in others:
            found = result[benchmark]
            scores = scores_of(found["rules"][rule]["per_sample"])
            rows.append(
                Difference(
                    benchmark,
                    setting,
                    rule,
                    sum(scores.values()) / max(len(scores), 1),
                    sum(first.values()) / max(len(first), 1),
                    paired_bootstrap(scores, first, together, seed=seed),
                    metric,
                    _number(found, rule, metric),
                    _number(reference, rule, metric),
                )
            )
    return rows


def _number(result: ScoreResult, rule: str, metric: str) -> float | None:
    """A metric of a rule; None where there is no such number."""
    value = metric_of(result.get("rules", {}), rule, metric)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def format_differences(rows: Sequence[Difference], baseline: str) -> str:
    """A table for the terminal; scores and differences in percent and points."""
    if not rows:
        return f"nothing to compare with {baseline}"
    cells = [["benchmark", "setting", "rule", "score, %", "difference", "95 % interval", ""]]
    last = None
    for row in rows:
        if row.benchmark != last:
            cells.append([row.benchmark, baseline, row.rule, f"{100 * row.baseline:.1f}", "", "", ""])
            last = row.benchmark
        ends = f"{100 * row.interval.low:+.1f} to {100 * row.interval.high:+.1f}"
        mark = "*" if row.interval.excludes_zero else ""
        difference = f"{100 * row.interval.mean:+.1f}"
        cells.append(["", row.setting, row.rule, f"{100 * row.score:.1f}", difference, ends, mark])
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    note = "paired bootstrap over questions; * the interval excludes zero"
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], note])


def _groups(scores: Mapping[str, float], groups: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Groups of the questions scored; those without one stand alone."""
    return None if groups is None else {name: groups.get(name, name) for name in scores}
