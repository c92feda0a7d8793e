"""The published step, XTuner's own LLaVA step and ours side by side, over numbers of boxes.

On a GPU the weights are made there, so that nothing is downloaded or copied. Each way builds its model once, in a
process of its own, and takes steps of every number of boxes.
"""

import argparse
from dataclasses import asdict, replace
from typing import Any

from mg_llava.profiling._measure import difference, measure_ways, print_table, rounded, run_child
from mg_llava.profiling.train import add_size_arguments, case_from

HELP = (
    "training step beside the published one and stock XTuner's LLaVA, with 0, 10 and 100 boxes: samples/s, peak "
    "memory, MFU, HFU, padding; frozen LLM and LoRA"
)

SHAPES = {"frozen": "nothing", "lora": "adapters", "full": "all"}
"""What is trained beside the connectors: nothing, adapters of the LLM, all of it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command line."""
    add_size_arguments(parser)
    parser.set_defaults(vision="nano")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["frozen", "lora"], help="(frozen lora)")
    parser.add_argument("--boxes", type=int, nargs="+", default=[0, 10, 100], help="boxes of a picture (0 10 100)")
    parser.add_argument("--steps", type=int, default=2, help="steps per point; the fastest counts (default: 2)")
    parser.add_argument("--peak-tflops", type=float, help="what MFU is of (default: the maker's number, or measured)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, and print a table.

    Returns:
        ``speedup`` and ``memory_ratio`` (published to ours) of the last shape with most boxes, ``error``, the largest
        relative difference of their losses, and ``points``: by shape, boxes and way what it took.
    """
    device = run_child("mg_llava.profiling._step.describe_device", args.device, args.threads)
    peak = args.peak_tflops * 1e12 if args.peak_tflops else device["published"] or device["measured"]
    points: dict[str, Any] = {}
    errors = []
    for shape in args.shapes:
        case = case_from(args, llm_trains=SHAPES[shape])
        points[shape] = _measure_shape(case, args.boxes, args.steps, peak)
        losses = [[point[way]["loss"] for point in points[shape].values()] for way in ("ours", "published")]
        errors.append(difference(*losses))
    _print_table(args, device, peak, points)
    most = points[args.shapes[-1]][str(max(args.boxes))]
    return {
        "speedup": round(most["ours"]["samples_per_s"] / most["published"]["samples_per_s"], 3),
        "memory_ratio": round(most["published"]["peak_mb"] / most["ours"]["peak_mb"], 3),
        "error": max(errors),
        "points": rounded(points),
        "device": device,
        "llm": args.llm,
        "vision": args.vision,
        "batch_size": args.batch_size,
    }


def _measure_shape(case: Any, boxes: list[int], steps: int, peak: float) -> dict[str, Any]:
    """By number of boxes what each way took."""
    ways = {
        "published": (replace(case, way="reference", model={}), boxes),
        # it has no boxes
        "stock": (replace(case, way="stock", model={}), [0] if 0 in boxes else []),
        "ours": (case, boxes),
    }
    found: dict[str, Any] = {str(count): {} for count in boxes}
    for name, (way, counts) in ways.items():
        points = [{"boxes": count} for count in counts]
        if not points:
            continue
        measured = measure_ways("mg_llava.profiling._step.measure_points", {name: way}, points, steps)[name]
        for count, point in zip(counts, measured, strict=True):
            found[str(count)][name] = dict(point)
    cases = [asdict(replace(case, boxes=count)) for count in boxes]
    works = run_child("mg_llava.profiling._sizes.count_works", cases, 0, steps)
    for count, work in zip(boxes, works, strict=True):
        for name, point in found[str(count)].items():
            point["samples_per_s"] = case.batch_size / point["seconds"]
            point["waste"] = work["waste_packed" if name == "ours" and case.model.get("packing") else "waste"]
            if name != "stock":  # which computes less
                point["mfu"] = work["flops"] / point["seconds"] / peak
                point["hfu"] = (work["flops"] + work["recomputed"]) / point["seconds"] / peak
    return found


def _print_table(args: argparse.Namespace, device: dict[str, Any], peak: float, points: dict[str, Any]) -> None:
    print(
        f"{args.llm} with the {args.vision} encoders, {args.batch_size} samples of one picture and about {args.text} "
        f"text tokens, checkpointing {args.checkpointing}; {device['name']}, {peak / 1e12:.3g} TFLOP/s\n"
    )
    rows = []
    for shape, by_boxes in points.items():
        for boxes, ways in by_boxes.items():
            for way, point in ways.items():
                times = point["samples_per_s"] / ways["published"]["samples_per_s"]
                shares = [f"{point[key]:.1%}" if key in point else "-" for key in ("mfu", "hfu", "waste")]
                numbers = (point["samples_per_s"], times, point["cpu_seconds"], point["peak_mb"])
                rows.append((f"{shape}, {boxes} boxes, {way}", *numbers, *shares, f"{point['loss']:.6g}"))
    heads = ("samples/s", "times", "CPU s", "peak MB", "MFU", "HFU", "padding", "first loss")
    print_table([("trained, boxes, way", *heads), *rows])
    print("HFU counts what checkpointing of the LLM computes again; stock XTuner has no boxes and no second encoder")
