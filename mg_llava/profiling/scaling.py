"""How the cost of a training step grows with boxes, pictures of a sample, length of the text, and batch."""

import argparse
import sys
from dataclasses import replace
from typing import Any

import numpy as np

from mg_llava.profiling._measure import measure_ways, print_table, rounded
from mg_llava.profiling.train import add_size_arguments, case_from

HELP = (
    "growth of a training step with boxes, pictures of a sample, text tokens and batch, with the published way beside"
)

_AXES = {"boxes": (0, 10, 50, 100), "pictures": (1, 2, 4), "text": (64, 256, 1024), "batch_size": (1, 2, 4, 8)}
_START = {"boxes": 10, "pictures": 1, "batch_size": 2}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command line."""
    add_size_arguments(parser)
    parser.set_defaults(vision="nano")
    parser.add_argument("--axes", nargs="+", choices=list(_AXES), default=list(_AXES), help="what grows (all)")
    for axis, values in _AXES.items():
        name = f"--{axis.replace('_', '-')}-values"
        parser.add_argument(name, type=int, nargs="+", default=list(values), help=f"(default: {values})")
    parser.add_argument("--boxes", type=int, default=_START["boxes"], help="boxes while another axis grows (10)")
    parser.add_argument("--steps", type=int, default=3, help="steps per point; the fastest counts (default: 3)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, each way in a process of its own, and print a table for each axis.

    Returns:
        ``axes``: by axis its ``values``, by way ``seconds``, ``cpu_seconds`` and ``peak_mb`` of a step, and
        ``power``, the exponent with which the CPU time (on a GPU the time) grows;
        ``speedup`` and ``memory_ratio`` (reference to ours) at the largest number of boxes.
    """
    start = case_from(args, boxes=args.boxes, pictures=_START["pictures"])
    ways = {"ours": start}
    if args.baseline == "reference":
        ways["reference"] = replace(start, way="reference", model={})
    axes: dict[str, Any] = {}
    for axis in args.axes:
        values = getattr(args, f"{axis}_values")
        axes[axis] = {"values": values}
        points = [{axis: value} for value in values]
        print(axis, file=sys.stderr, flush=True)
        for name, found in measure_ways("mg_llava.profiling._step.measure_points", ways, points, args.steps).items():
            columns = {key: [point[key] for point in found] for key in found[0]}  # type: ignore[index]
            clock = columns["seconds" if args.device.startswith("cuda") else "cpu_seconds"]
            axes[axis][name] = {**rounded(columns), "power": _power(values, clock)}
        _print_table(axis, axes[axis], list(ways))
    result: dict[str, Any] = {"axes": axes, "llm": args.llm, "vision": args.vision, "device": args.device}
    if "boxes" in axes and "reference" in ways:
        ours, reference = axes["boxes"]["ours"], axes["boxes"]["reference"]
        result["speedup"] = round(reference["seconds"][-1] / ours["seconds"][-1], 3)
        result["memory_ratio"] = round(reference["peak_mb"][-1] / ours["peak_mb"][-1], 3)
    return result


def _power(values: list[int], seconds: list[float]) -> float | None:
    """Exponent p of ``seconds = a * values ** p``, by least squares of logarithms; None without two points."""
    points = [(value, second) for value, second in zip(values, seconds, strict=True) if value > 0 and second > 0]
    if len(points) < 2:
        return None
    x, y = np.log(np.array(points)).T
    return round(float(np.polyfit(x, y, 1)[0]), 3)


def _print_table(axis: str, found: dict[str, Any], ways: list[str]) -> None:
    keys = ("seconds", "cpu_seconds", "peak_mb")
    columns = [found[way][key] for way in ways for key in keys]
    rows = zip(found["values"], *columns, strict=True)
    print()
    print_table([(axis, *(f"{way}: {key}" for way in ways for key in keys)), *rows])
    print("cost grows as " + ", ".join(f"{axis}^{found[way]['power']} ({way})" for way in ways))
