"""Box features: separable pooling on the stages' own grids, with the dense way of the publication beside it.

Shapes: N pictures, C_s channels of stage s on a grid H_s x W_s, n boxes a picture, S side of the canvas in pixels.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mg_llava.profiling._measure import compare_costs, print_table, rounded, run_child, use

HELP = "box features: time, extra memory and error of separable pooling, with upsample-concatenate-RoIAlign beside it"

_HERE = "mg_llava.profiling.boxes"
_BINS = 56


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command line."""
    parser.add_argument("--boxes", type=int, default=100, help="boxes of a picture (default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=1, help="pictures in a batch (default: %(default)s)")
    parser.add_argument("--canvas", type=int, default=768, help="side of the canvas (default: %(default)s)")
    parser.add_argument(
        "--channels",
        type=int,
        nargs="+",
        default=[192, 384, 768, 1536],
        help="channels of the stages, whose strides are 4, 8, 16, … (default: those of ConvNeXt-L)",
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the separable way, the best counts (3)")
    parser.add_argument("--dense-rounds", type=int, default=1, help="rounds of the dense way, which is slow (1)")
    parser.add_argument("--threads", type=int, default=2, help="of torch (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, and print a table.

    Returns:
        ``speedup``, ``memory_ratio`` of what pooling takes above its inputs (dense to separable), and ``error``, the
        largest relative difference between features of a box.
    """
    sizes = [args.canvas, args.channels, args.threads, args.device]
    with tempfile.TemporaryDirectory(prefix="boxes-") as folder:
        found = {}
        for way, rounds in (("separable", args.rounds), ("dense", args.dense_rounds)):
            file = str(Path(folder) / f"{way}.pt")
            found[way] = run_child(f"{_HERE}.measure_pooling", way, args.pictures, args.boxes, rounds, file, *sizes)
        error = _largest_error(*(torch.load(Path(folder) / f"{way}.pt", weights_only=True) for way in found))
    print(f"{args.pictures} x {args.boxes} boxes, canvas {args.canvas}, channels {args.channels}, on {args.device}\n")
    columns = ("seconds", "cpu_seconds", "extra_mb")
    print_table([("way", *columns), *((way, *(usage[name] for name in columns)) for way, usage in found.items())])
    print(f"largest relative difference: {error:.1e}")
    ratio = found["dense"]["extra_mb"] / max(found["separable"]["extra_mb"], 1.0)
    compared = compare_costs(found["separable"], found["dense"]) | {"memory_ratio": round(ratio, 1), "error": error}
    sizes_of = {name: getattr(args, name) for name in ("boxes", "pictures", "device", "threads")}
    return {**compared, **sizes_of, **rounded(found)}


def measure_pooling(
    way: str,
    pictures: int,
    boxes: int,
    rounds: int,
    file: str,
    canvas: int,
    channels: Sequence[int],
    threads: int,
    device: str,
) -> dict[str, float]:
    """Cost of one way; its features go into ``file``; for ``run_child``."""
    torch.set_num_threads(threads)
    pool = _pooling(way)
    pool(*_inputs(1, 1, 64, [2] * len(channels), device), 64, _BINS)  # loads libraries
    stages, rois = _inputs(pictures, boxes, canvas, channels, device)
    if way == "dense":  # each way gets the layout that its encoder works in
        stages = [stage.contiguous() for stage in stages]
    # memory is that of the first round: later ones take again what it has freed
    features, first = use(lambda: pool(stages, rois, canvas, _BINS), device)
    torch.save(torch.cat(features).cpu(), file)
    del features
    rest = [use(lambda: pool(stages, rois, canvas, _BINS), device)[1] for _ in range(rounds - 1)]
    best = {key: min(getattr(usage, key) for usage in (first, *rest)) for key in ("seconds", "cpu_seconds")}
    return {**asdict(first), **best}


def _pooling(way: str) -> Any:
    from mg_llava.models.objects.roi_align import pool_boxes
    from mg_llava.profiling._reference import dense_box_features

    return pool_boxes if way == "separable" else dense_box_features


def _inputs(
    pictures: int, boxes: int, canvas: int, channels: Sequence[int], device: str
) -> tuple[list[Tensor], list[Tensor]]:
    """Stage maps as the encoder gives them, and boxes with corners anywhere on the canvas."""
    generator = torch.Generator().manual_seed(0)
    stages = []
    for index, width in enumerate(channels):
        side = canvas // (4 << index)
        stage = torch.randn(pictures, width, side, side, generator=generator)
        stages.append(stage.to(device, memory_format=torch.channels_last))
    corners = torch.rand(pictures, boxes, 2, 2, generator=generator).sort(dim=2).values * canvas  # (.., 2 ends, x y)
    return stages, list(corners.flatten(2).to(device).unbind())


def _largest_error(ours: Tensor, dense: Tensor) -> float:
    """Largest difference relative to the size of a box's features, over the boxes ``(n, C)``."""
    return float(((ours - dense).norm(dim=1) / dense.norm(dim=1).clamp(min=1e-12)).max())
