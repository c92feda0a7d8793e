"""A plan as text."""

from collections.abc import Iterator

from mg_llava.planning.feature_cache import describe_feature_cache
from mg_llava.planning.flops import Flops
from mg_llava.planning.memory import GIB
from mg_llava.planning.plan import IMPOSSIBLE, MISSING, Plan

_FLOPS = (("TFLOPs", 1e12), ("GFLOPs", 1e9))


def describe(plan: Plan) -> str:
    """The plan for people, in a few short tables."""
    return "\n".join([f"{plan.config} on {plan.gpus} x {plan.gpu}", *_lines(plan), _verdict(plan)])


def _lines(plan: Plan) -> Iterator[str]:
    if plan.parameters:
        yield "\nparameters            all         trained"
        for part, count in plan.parameters.items():
            yield f"  {part:<18} {_short(count['all']):>8}  {_short(count['trained']) if count['trained'] else '-':>8}"
    if plan.flops is not None:
        yield from _flops_table(plan.flops)
    if plan.memory:
        yield from _memory_table(plan)
    steps = plan.steps
    if steps is not None and steps.hours_per_epoch is not None:
        epoch = f"{_duration(steps.hours_per_epoch)} per epoch at {plan.mfu:.0%} MFU"
        yield (
            f"\n{steps.samples:,} samples ({steps.source}) in batches of {steps.total_batch}: {steps.iterations:,} "
            f"iterations, {steps.updates:,} updates, {epoch}, epochs: {steps.epochs}"
        )
    if plan.features is not None:
        yield from describe_feature_cache(plan.features)
    for title, rows in (
        ("assumed", plan.notes),
        ("missing", [f"{item['what']} {item['path']}: {item['note']}" for item in plan.missing]),
        ("impossible", plan.conflicts),
    ):
        if rows:
            yield f"\n{title}"
            yield from (f"  {row}" for row in rows)


def _flops_table(flops: Flops) -> Iterator[str]:
    total = sum(flops.training.values())
    unit, size = next(item for item in _FLOPS if total >= 0.1 * item[1] or item is _FLOPS[-1])
    yield f"\n{unit} of a sample (row of {flops.length})   forward   training step"
    for part, forward in flops.forward.items():
        yield f"  {part:<34} {forward / size:8.3f}  {flops.training[part] / size:8.3f}"
    yield f"  {'all':<34} {sum(flops.forward.values()) / size:8.3f}  {total / size:8.3f}"
    yield f"  {'in multiply-adds, as the paper has':<34} {flops.multiply_adds / size:8.3f}"
    if flops.recomputed:
        yield f"  {'and computed again (checkpointing)':<34} {'':8}  {flops.recomputed / size:8.3f}"


def _memory_table(plan: Plan) -> Iterator[str]:
    names = "weights", "gradients", "states", "buffers", "activations", "total", "cpu"
    digits = 1 if max(item.activations for item in plan.memory) >= GIB else 3
    yield "\nGiB on one GPU            " + " ".join(f"{name:>11}" for name in names)
    for item in plan.memory:
        values = " ".join(f"{getattr(item, name) / GIB:11.{digits}f}" for name in names)
        yield f"  {item.strategy:<23} {values}  {'fits' if item.strategy in plan.fits else ''}".rstrip()


def _verdict(plan: Plan) -> str:
    if plan.status == IMPOSSIBLE:
        return "\nThis cannot run."
    advice = f" with {plan.fits[0]}" if plan.fits and plan.fits[0] != "none" else ""
    return f"\nThis can run{advice}{', once the missing files are there' if plan.status == MISSING else ''}."


def _duration(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 0.1 else f"{hours * 3600:.1f} seconds"


def _short(number: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return str(number)
