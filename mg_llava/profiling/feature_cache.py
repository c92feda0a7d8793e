"""Training from a feature cache against training from pictures: loading and step, with random weights."""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from mg_llava.profiling._measure import compare_costs, print_table, run_child
from mg_llava.profiling.train import add_size_arguments, case_from

HELP = "training steps from a feature cache, by dtype, with the same steps from pictures beside them"

_HERE = "mg_llava.profiling.feature_cache"
_DTYPES = ("float32", "float16", "bfloat16", "int8")
_PARTS = ("load", "transport", "encoders", "fusion", "boxes", "llm", "optimizer")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command line."""
    add_size_arguments(parser)
    parser.set_defaults(vision="nano", batch_size=4, text=60, baseline="none", checkpointing="off")
    parser.add_argument("--boxes", type=int, default=10, help="boxes of a picture (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="steps that are measured (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them (default: %(default)s)")
    parser.add_argument("--dtypes", nargs="+", choices=_DTYPES, default=_DTYPES, help="of the caches (default: all)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, each way in a process of its own, and print a table.

    Returns:
        For the first dtype: ``speedup`` of a step with loading, one after the other; ``step_speedup`` without it;
        ``speedup_cpu`` of processor time; ``memory_ratio`` of peak memory (pictures to cache); ``bytes_ratio`` of what
        a picture costs on its way to the model (cache to 8-bit canvas); ``error``, the largest relative difference of
        the losses. The same for all dtypes under ``by_dtype``, what each way took under ``ways``.
    """
    case = asdict(case_from(args, boxes=args.boxes))
    with tempfile.TemporaryDirectory(prefix="features-") as folder:
        write_data(Path(folder), case, args.warmup + args.steps)
        ways = {}
        for dtype in (None, *args.dtypes):
            print(f"measuring: {dtype or 'pictures'}", file=sys.stderr, flush=True)
            filled = {} if dtype is None else run_child(f"{_HERE}.fill_cache", folder, case, dtype)
            ways[dtype or "pictures"] = (
                run_child(f"{_HERE}.measure_case", folder, case, dtype, args.warmup, args.steps) | filled
            )
    compared = {dtype: _compare(ways["pictures"], ways[dtype]) for dtype in args.dtypes}
    _print_table(args, ways, compared)
    return {**compared[args.dtypes[0]], "dtype": args.dtypes[0], "by_dtype": compared, "case": case, "ways": ways}


def write_data(folder: Path, case: dict[str, Any], steps: int) -> None:
    """Pictures, records and boxes for the steps of a case."""
    import numpy as np

    from mg_llava.profiling.data import make_pictures

    count = case["batch_size"] * steps
    pictures = make_pictures(folder, count)
    rng = np.random.default_rng(case["seed"])
    records, boxes = [], []
    for number, path in enumerate(pictures):
        words = " ".join(["seven"] * max(1, case["text"] // 2))
        turns = [{"from": "human", "value": f"<image>\n{words}"}, {"from": "gpt", "value": words}]
        records.append({"id": str(number), "image": path.name, "conversations": turns})
        corners = np.sort(rng.uniform(0, 300, (case["boxes"], 2, 2)), axis=1).reshape(-1, 4)
        labels = [str(box) for box in range(case["boxes"])]  # one each, so that none is suppressed
        boxes.append({"id": str(number), "boxes": corners.tolist(), "scores": [0.5] * case["boxes"], "labels": labels})
    (folder / "records.json").write_text(json.dumps(records))
    (folder / "boxes.json").write_text(json.dumps(boxes))


def fill_cache(folder: str, settings: dict[str, Any], dtype: Any) -> dict[str, float]:
    """Fill a cache; for ``run_child``.

    Returns:
        ``fill_seconds`` of a picture, and ``rounding``, what that changed of its features.
    """
    from mg_llava.data.features.cache import FeatureCache
    from mg_llava.data.features.file import FeatureWriter
    from mg_llava.data.features.fill import Pictures, about_cache, fill_feature_cache, list_jobs
    from mg_llava.models.vision import FeatureExtractor
    from mg_llava.profiling._sizes import Case, build_model

    case = Case(**settings)
    model = build_model(case)
    source = _open_source(Path(folder), model, None)
    extractor = FeatureExtractor(model)
    about = about_cache([source], dtype, extractor.sizes, extractor.describe())
    writer = FeatureWriter(Path(folder) / dtype, about)
    pictures = Pictures([source], list_jobs([source]), FeatureCache(writer.folder), True)

    def extract(images: Any, boxes: list[Any]) -> Any:
        return extractor(images.to(case.device), [own.to(case.device) for own in boxes])

    start = time.perf_counter()
    report = fill_feature_cache(pictures, extract, writer, dtype, case.batch_size)
    return {"fill_seconds": (time.perf_counter() - start) / report["added"], "rounding": report["error"]}


def measure_case(folder: str, settings: dict[str, Any], dtype: str | None, warmup: int, steps: int) -> dict[str, Any]:
    """Measure so many steps of a case after some, from pictures or from a cache that was filled; for ``run_child``.

    Returns:
        Of the fastest step ``seconds`` with loading, ``step_seconds`` without, and ``parts``; the mean
        ``cpu_seconds``; ``peak_mb``, ``losses``, and ``bytes`` of a picture on its way to the model.
    """
    from mg_llava.profiling._measure import use
    from mg_llava.profiling._sizes import Case
    from mg_llava.profiling._step import Stepper

    case = Case(**settings)
    stepper = Stepper(case)
    source = _open_source(Path(folder), stepper.model, None if dtype is None else Path(folder) / dtype)
    if dtype is not None:
        cache = source.features.cache
        stepper.model.cached.accept(cache.about["encoders"], cache.name)
    taken = []
    for number in range(warmup + steps):
        (loss, loading), usage = use(partial(_step, stepper, source, number), case.device)
        taken.append((usage, loss, {"load": loading, **stepper.clock.seconds()}))
    measured = taken[warmup:]
    usage, _, parts = min(measured, key=lambda item: item[0].seconds)  # what others do on the machine slows the rest
    return {
        "seconds": usage.seconds,
        "step_seconds": usage.seconds - parts["load"],
        "cpu_seconds": sum(item[0].cpu_seconds for item in measured) / steps,
        "peak_mb": max(item[0].peak_mb for item in taken),
        "parts": {part: parts.get(part, 0.0) for part in _PARTS},
        "losses": [loss for _, loss, _ in taken],
        "bytes": _bytes(source[0]),
    }


def _step(stepper: Any, source: Any, number: int) -> tuple[float, float]:
    """Load and take batch ``number``; its loss, and the seconds of loading."""
    start = time.perf_counter()
    batch = stepper.transport(_load(source, number, stepper.case.batch_size))
    loading = time.perf_counter() - start
    return float(stepper.step(batch)["loss"]), loading


def _open_source(folder: Path, model: Any, cache: Path | None) -> Any:
    from mg_llava.data.dataset import LLaVADataset
    from mg_llava.profiling._sizes import LLMS

    return LLaVADataset(
        folder / "records.json",
        folder,
        tokenizer=LLMS["nano"],
        template="vicuna",
        picture_processor={"type": "mg_llava.PictureProcessor", "image_size": model.canvas_size},
        box_path=folder / "boxes.json",
        caches={"feature_cache": cache},
    )


def _load(source: Any, number: int, size: int) -> dict[str, Any]:
    """Batch ``number``."""
    from mg_llava.data.collate import collate

    return collate([source[number * size + place] for place in range(size)])["data"]


def _bytes(sample: dict[str, Any]) -> int:
    """Bytes of the picture of a sample, as a worker sends it."""
    arrays = [array for picture in sample.get("features") or () for array in picture.values()]
    return sum(tensor.nbytes for tensor in [*arrays, *sample["images"]])


def _compare(pictures: dict[str, Any], cache: dict[str, Any]) -> dict[str, float]:
    return {
        **compare_costs(cache, pictures),
        "step_speedup": round(pictures["step_seconds"] / cache["step_seconds"], 3),
        "bytes_ratio": round(cache["bytes"] / pictures["bytes"], 4),
        "rounding": cache["rounding"],
    }


def _print_table(args: argparse.Namespace, ways: dict[str, Any], compared: dict[str, Any]) -> None:
    print(
        f"stage {args.stage}, {args.llm} with the {args.vision} encoders, {args.batch_size} samples of one picture, "
        f"{args.boxes} boxes and about {args.text} text tokens, {args.steps} steps after {args.warmup}, the fastest; "
        f"{args.device}\n"
    )
    columns, others = ("seconds", "cpu_seconds", "peak_mb", "bytes"), ("speedup", "error", "rounding")
    rows = []
    for name, found in ways.items():
        parts = [found["parts"][part] for part in _PARTS]
        other = [compared[name][key] for key in others] if name in compared else [""] * len(others)
        rows.append((name, *(found[key] for key in columns), *parts, *other))
    print_table([("from", *columns, *(f"{part} s" for part in _PARTS), *others), *rows])
    seconds = [found["fill_seconds"] for found in ways.values() if "fill_seconds" in found]
    print(f"\nfilling takes {min(seconds):.3f} s a picture; files were in the system's memory when they were read")
