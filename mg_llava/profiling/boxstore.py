"""Box store against the plain way: all of the JSON file in a dict, as the reference holds it in every process."""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mg_llava.profiling._measure import MB, memory_of, peak_memory, print_table, rounded, run_child

HELP = (
    "box store: conversion, opening, random access and memory of a 4-worker loader, with the plain JSON way beside it"
)

_BODIES = 4096
_BOXES = 14
_TAGS = 4585
_FRACTION = 10
_LOOKUPS = 20_000
_WORKERS = 4
_HERE = "mg_llava.profiling.boxstore"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command line."""
    parser.add_argument(
        "--records", type=int, default=1_000_000, help="records of the box file (default: %(default)s)"
    )
    parser.add_argument(
        "--plain-records",
        type=int,
        help="records of the plain way, which needs up to 20 kB each (default: a tenth of --records, scaled up)",
    )
    parser.add_argument("--work-dir", type=Path, help="folder for files of 2 kB a record (default: temporary)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, and print a table.

    Returns:
        ``speedup`` of opening, ``memory_ratio`` of what a loader with its workers holds because of the boxes (plain to
        store, mapped pages of the store counted as memory), ``error``, the largest difference between boxes of the
        store and of the JSON file, and the single values.
    """
    records = args.records
    fewer = max(1, records // _FRACTION)
    plain_records = min(args.plain_records or fewer, records)
    if args.work_dir is not None:
        args.work_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="boxstore-", dir=args.work_dir) as name:
        folder = Path(name)
        converted, small = (_make(folder, count) for count in (records, fewer))
        access = run_child(f"{_HERE}.measure_access", converted["json"], converted["store"], records)
        # As many reads everywhere; the plain way reads each of its records about once.
        loader = partial(run_child, f"{_HERE}.measure_loader", plain_records)
        nothing = loader("nothing", "", records)
        stores = [loader("store", made["store"], made["records"]) for made in (small, converted)]
        plain_file = folder / "plain.json"
        write_boxes(plain_file, plain_records)
        plain = loader("plain", str(plain_file), plain_records)
    scale = records / plain_records
    # Growth over a loader without boxes; of less than a megabyte it is noise.
    own_small, own = (max(1.0, store["own"] - nothing["own"]) for store in stores)
    mapped = max(0.0, stores[1]["mapped"] - nothing["mapped"])
    plain_own = max(1.0, plain["own"] - nothing["own"]) * scale
    result = {
        "speedup": plain["open_s"] * scale / access["open_s"],
        "memory_ratio": plain_own / (own + mapped),
        "records": records,
        "plain_records": plain_records,
        **{name: converted[name] for name in ("json_mb", "store_mb", "convert_s", "convert_cpu_s", "convert_peak_mb")},
        "convert_peak_mb_tenth": small["convert_peak_mb"],
        **access,
        "loader_own_mb": own,
        "loader_own_mb_tenth": own_small,
        "loader_mapped_mb": mapped,
        "plain_open_s": plain["open_s"] * scale,
        "plain_access_ms": plain["access_ms"],
        "plain_loader_mb": plain_own,
    }
    rows = [(name.replace("_", " "), value) for name, value in result.items()]
    print_table([("store beside plain JSON", ""), *rows])
    print(
        f"Plain: one dict in all processes, measured with {plain_records} records and scaled to {records}; memory "
        "above a loader without boxes, shared pages once."
    )
    return rounded(result)


def write_boxes(path: Path, records: int) -> None:
    """Write a box file in the reference's layout; the same few thousand sets of boxes come again and again."""
    bodies = list(_bodies())
    chosen = np.random.default_rng(1).integers(0, len(bodies), records).tolist()
    with path.open("w") as file:
        for number, body in enumerate(chosen):
            file.write(f"{',' if number else '['}{{{json.dumps('id')}: {json.dumps(_key(number))}, {bodies[body]}")
        file.write("]")


def measure_conversion(source: str, target: str) -> dict[str, Any]:
    """Time and memory of a conversion; for ``run_child``."""
    from mg_llava.data.boxes.convert import convert_boxes

    start, start_cpu = time.perf_counter(), time.process_time()
    report = convert_boxes([source], target)
    assert report.written, str(report)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    return {"convert_s": seconds, "convert_cpu_s": cpu_seconds, "convert_peak_mb": peak_memory()}


def measure_access(source: str, store: str, records: int) -> dict[str, Any]:
    """Opening, random access and exactness of a store; for ``run_child``."""
    from mg_llava.data.boxes.store import open_box_store
    from mg_llava.data.records.json_stream import stream_json

    start = time.perf_counter()
    boxes = open_box_store(store)
    opened = time.perf_counter() - start
    times = _access_times(boxes.get, records)
    start = time.perf_counter()
    boxes.check(_key(number) for number in range(records))
    checked = time.perf_counter() - start
    error = 0.0
    for entry in stream_json(source):
        if entry.number % 50 == 0:
            found = boxes.get(entry.value["id"])
            assert list(found.labels) == entry.value["labels"], entry.value["id"]
            for ours, theirs in ((found.boxes, entry.value["boxes"]), (found.scores, entry.value["scores"])):
                error = max(error, float(np.abs(ours - np.array(theirs).reshape(ours.shape)).max(initial=0)))
    return {
        "open_s": opened,
        "access_ms": float(np.median(times)) * 1e3,
        "access_p99_ms": float(np.quantile(times, 0.99)) * 1e3,
        "check_s": checked,
        "error": error,
    }


def measure_loader(reads: int, kind: str, path: str, records: int) -> dict[str, Any]:
    """Memory of a loader and its workers after they read records at random; for ``run_child``.

    Args:
        reads: Number of reads by all workers together.
        kind: ``nothing`` for a data set without boxes, ``store``, or ``plain``.
        path: The store or the JSON file.
        records: Number of records.
    """
    import multiprocessing

    from torch.utils.data import DataLoader

    start = time.perf_counter()
    lookup = _open(kind, path)
    opened = time.perf_counter() - start
    order = np.random.default_rng(3).integers(0, records, reads).tolist()
    loader: DataLoader[int] = DataLoader(
        _Lookup(lookup, records),  # type: ignore[arg-type]
        batch_size=256,
        sampler=order,
        num_workers=_WORKERS,
        persistent_workers=True,
        collate_fn=sum,
    )
    boxes = sum(iter(loader))
    processes = [os.getpid(), *(child.pid for child in multiprocessing.active_children() if child.pid)]
    assert len(processes) == 1 + _WORKERS, processes
    memory = memory_of(processes)
    access = float(np.median(_access_times(lookup, records)))
    return {**memory, "open_s": opened, "access_ms": access * 1e3, "boxes": boxes}


def _access_times(lookup: Callable[[str], Any], records: int) -> np.ndarray:
    """(n,) seconds for each of many random keys."""
    times = []
    for number in np.random.default_rng(2).integers(0, records, _LOOKUPS).tolist():
        key = _key(number)
        start = time.perf_counter()
        lookup(key)
        times.append(time.perf_counter() - start)
    return np.array(times)


class _Lookup:
    """Data set whose samples are the numbers of boxes of the records."""

    def __init__(self, lookup: Callable[[str], int], records: int) -> None:
        self.lookup = lookup
        self.records = records

    def __len__(self) -> int:
        return self.records

    def __getitem__(self, index: int) -> int:
        return self.lookup(_key(index))


def _open(kind: str, path: str) -> Callable[[str], int]:
    """A function from key to number of boxes, which makes the arrays that a data set needs."""
    # Imported in all cases, so that the modules' memory is in all of them.
    from mg_llava.data.boxes.store import open_box_store

    if kind == "nothing":
        return len
    if kind == "store":
        store = open_box_store(path)
        return lambda key: len(store.get(key))
    with open(path) as file:
        records = {str(record["id"]): record for record in json.load(file)}

    def find(key: str) -> int:
        record = records[key]
        boxes, scores = np.array(record["boxes"], dtype=float), np.array(record["scores"], dtype=float)
        labels = tuple(record["labels"])
        assert len(boxes) == len(scores) == len(labels)
        return len(boxes)

    return find


def _make(folder: Path, records: int) -> dict[str, Any]:
    """A box file and its store."""
    source, target = folder / f"{records}.json", folder / f"{records}.safetensors"
    write_boxes(source, records)
    made = run_child(f"{_HERE}.measure_conversion", str(source), str(target))
    sizes = {"json_mb": source.stat().st_size / MB, "store_mb": target.stat().st_size / MB}
    return {**made, **sizes, "json": str(source), "store": str(target), "records": records}


def _key(number: int) -> str:
    return f"coco_train2017_{number:012d}"


def _bodies() -> Iterator[str]:
    """Boxes of a picture as JSON without the opening brace: integers, single-precision scores and tags of a list."""
    rng = np.random.default_rng(0)
    for count in rng.poisson(_BOXES, _BODIES).tolist():
        corners = np.sort(rng.integers(0, 640, (count, 2, 2)), axis=1)
        record = {
            "boxes": corners.reshape(count, 4).tolist(),  # (n, 2 corners, x and y) -> (n, 4)
            "scores": rng.uniform(0.2, 1, count).astype(np.float32).astype(float).tolist(),
            "labels": [f"object {tag}" for tag in rng.integers(0, _TAGS, count).tolist()],
        }
        yield json.dumps(record)[1:] + "\n"
