"""One checkpoint under several settings of boxes and parts: what each is worth, with paired bootstrap intervals."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mg_llava.evaluation.box_source import is_box_file, parse_box_spec
from mg_llava.evaluation.overview import points, text_table
from mg_llava.evaluation.results import metric_of
from mg_llava.evaluation.scoring.joining import ScoreResult
from mg_llava.evaluation.statistics import Interval, paired_bootstrap, scores_of


@dataclass(frozen=True)
class Setting:
    """How a checkpoint is run: its boxes, as ``--boxes`` takes them, whether the fusion is on, and without what."""

    boxes: str = "detected"
    fusion: bool = True
    without: str = ""

    @property
    def name(self) -> str:
        """For tables."""
        name = f"boxes {self.boxes}" + ("" if self.fusion else ", fusion off")
        return f"{name}, without {self.without}" if self.without else name

    @property
    def folder(self) -> str:
        """Name of the folder with this setting's predictions."""
        plain = "".join(c if c.isalnum() or c in "=.-" else "_" for c in Path(self.boxes).name)
        if Path(self.boxes).name != self.boxes:  # box files of one name in two places
            plain += "-" + hashlib.blake2b(self.boxes.encode(), digest_size=3).hexdigest()
        folder = f"boxes-{plain}" + ("" if self.fusion else "_fusion-off")
        return f"{folder}_without-{self.without}" if self.without else folder


def parse_settings(boxes: str, fusion: str = "on", without: str = "") -> list[Setting]:
    """All combinations of ``--boxes`` and ``--fusion``, each with commas between several, the baseline first.

    After them come the combinations of ``--boxes`` and ``--without``.

    Raises:
        ValueError: A spec is malformed or comes twice.
    """
    specs = [part.strip() for part in boxes.split(",")]
    switches = [part.strip() for part in fusion.split(",")]
    wrong = sorted(set(switches) - {"on", "off"})
    if wrong:
        raise ValueError(f"fusion={fusion!r}: {wrong[0]!r} is unknown; allowed: on, off, or on,off")
    for spec in specs:
        if not is_box_file(spec):
            parse_box_spec(spec)
    left_out = [part.strip() for part in without.split(",") if part.strip()]
    if unknown := sorted(set(left_out) - set(SWITCHES)):
        raise ValueError(f"without={without!r}: {unknown[0]!r} is unknown; allowed: {', '.join(SWITCHES)}")
    settings = [Setting(spec, switch == "on") for switch in switches for spec in specs]
    settings += [Setting(spec, without=part) for part in left_out for spec in specs]
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


@contextmanager
def without_prompt(predictor: Any) -> Iterator[None]:
    """Ask without what the boxes change in the text.

    Raises:
        ValueError: They change nothing.
    """
    front_end = predictor.front_end
    if not front_end.parts:
        raise ValueError("no prompt is made of the boxes; leave out --without prompt")
    predictor.front_end = replace(front_end, parts=())
    try:
        yield
    finally:
        predictor.front_end = front_end


@contextmanager
def without_objects(predictor: Any) -> Iterator[None]:
    """Add nothing of the object branch to the prompts inside the LLM's layers.

    Raises:
        ValueError: The model has no object branch.
    """
    branch = getattr(predictor.model, "objects", None)
    if branch is None:
        raise ValueError("the model has no object branch; leave out --without objects")
    handle = branch.register_forward_hook(lambda module, given, output: output.new_zeros(output.shape))
    try:
        yield
    finally:
        handle.remove()


SWITCHES: dict[str, Callable[[Any], AbstractContextManager[None]]] = {
    "prompt": without_prompt,
    "objects": without_objects,
}
"""What ``--without`` knows; each takes the predictor."""


@contextmanager
def applied(setting: Setting, predictor: Any) -> Iterator[None]:
    """Inside, a predictor is as a setting says, but for its boxes."""
    with ExitStack() as stack:
        if not setting.fusion:
            stack.enter_context(fusion_off(predictor.model))
        if setting.without:
            stack.enter_context(SWITCHES[setting.without](predictor))
        yield


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
    results: Mapping[str, Mapping[str, ScoreResult]],
    headlines: Mapping[str, tuple[str, str]] | None = None,
    groups: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Difference]:
    """Differences of all settings to the first, benchmark by benchmark.

    Args:
        results: Scores by setting and benchmark, the baseline first.
        headlines: Rule and metric to compare by, for each benchmark; the first rule by default.
        groups: For each benchmark what is drawn together, by question id; see ``statistics.paired_bootstrap``.

    Raises:
        ValueError: Settings were scored on different questions.
    """
    (_, baseline), *others = results.items()
    rows = []
    for benchmark, reference in baseline.items():
        rule, metric = (headlines or {}).get(benchmark, ("", ""))
        if not reference["rules"]:
            continue  # a split without answers
        if rule not in reference["rules"]:
            rule = next(iter(reference["rules"]))
        first = scores_of(reference["rules"][rule]["per_sample"])
        known = (groups or {}).get(benchmark)
        together = None if known is None else {name: known.get(name, name) for name in first}
        for setting, result in others:
            scores = scores_of(result[benchmark]["rules"][rule]["per_sample"])
            interval = paired_bootstrap(scores, first, together)
            ours, base = (sum(some.values()) / max(len(some), 1) for some in (scores, first))
            values = (_number(metric_of(one["rules"], rule, metric)) for one in (result[benchmark], reference))
            rows.append(Difference(benchmark, setting, rule, ours, base, interval, metric, *values))
    return rows


def _number(value: Any) -> float | None:
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
        ends = f"{points(row.interval.low)} to {points(row.interval.high)}"
        mark = "*" if row.interval.excludes_zero else ""
        numbers = [f"{100 * row.score:.1f}", points(row.interval.mean), ends, mark]
        cells.append(["", row.setting, row.rule, *numbers])
    note = "paired bootstrap over questions; * the interval excludes zero"
    return f"{text_table(cells, left=range(7))}\n{note}"
