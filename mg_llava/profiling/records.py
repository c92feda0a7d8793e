"""Start, memory of a worker and time of a sample as the data set grows, with all records in memory beside it."""

import argparse
import json
import os
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mg_llava.profiling._measure import MB, memory_of, print_table, rounded, run_child

HELP = "data set of up to 10 million records: start, memory per worker, time per sample; a list in memory beside it"

_PLAIN = 100_000
_READS = 20_000
_WORKERS = 2
_BATCH = 128
_HERE = "mg_llava.profiling.records"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command line."""
    parser.add_argument(
        "--records", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000], help="(100000 1000000 10000000)"
    )
    parser.add_argument("--work-dir", type=Path, help="folder for files of 0.3 kB a record (default: temporary)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, and print a table.

    Returns:
        ``speedup`` of starts at the largest size and ``memory_ratio`` of a worker (all records as a list, measured
        with 100,000 and scaled, to ours), and ``points``: for each size the seconds of the first start, which checks
        every record, of later ones, and of the order of an epoch; MB of the main process, and of a worker alone;
        milliseconds of a record at random.
    """
    points = []
    with tempfile.TemporaryDirectory(prefix="records-", dir=args.work_dir) as name:
        for count in sorted(args.records):
            folder = Path(name, str(count))
            write_record_file(folder, count)
            first = run_child(f"{_HERE}.measure_start", str(folder), count)
            later = run_child(f"{_HERE}.measure_reading", str(folder), count)
            points.append({"records": count, "file_mb": first["file_mb"], "first_s": first["start_s"], **later})
            (folder / "data.jsonl").unlink()
        folder = Path(name, "plain")
        write_record_file(folder, _PLAIN)
        plain = run_child(f"{_HERE}.measure_plain", str(folder))
    names = list(points[0])
    print_table([names, *([point[key] for key in names] for point in points)])
    most, scale = points[-1], points[-1]["records"] / _PLAIN
    print(
        f"\nA list of all {most['records']} records, scaled from {_PLAIN}: start {plain['start_s'] * scale:.1f} s, "
        f"{plain['own_mb'] * scale:.0f} MB in each process that touches them. Memory is that of a worker alone, pages "
        "that it shares left out; first_s checks every record, and later_s finds that done."
    )
    return rounded(
        {
            "speedup": plain["start_s"] * scale / most["later_s"],
            "memory_ratio": plain["own_mb"] * scale / max(1.0, most["worker_mb"]),
            "points": points,
            "plain": plain,
        }
    )


def write_record_file(folder: Path, count: int) -> None:
    """``data.jsonl``, records about pictures that are not there, with texts of different lengths."""
    folder.mkdir(parents=True)
    words = "the small dog sits on a red chair beside two open windows of an old house near the sea".split()
    rng = np.random.default_rng(0)
    bodies = []
    for length in rng.integers(4, 60, 512).tolist():
        turns = [("human", "<image>\nDescribe the image."), ("gpt", " ".join(rng.choice(words, length)))]
        bodies.append(json.dumps([{"from": role, "value": text} for role, text in turns]))
    chosen = rng.integers(0, len(bodies), count)
    with (folder / "data.jsonl").open("w") as file:
        for start in range(0, count, 10_000):
            rows = enumerate(chosen[start : start + 10_000].tolist(), start)
            file.writelines(
                f'{{"id": "r{number:09d}", "image": "{number % 1000:03d}/{number:09d}.jpg", '
                f'"conversations": {bodies[body]}}}\n'
                for number, body in rows
            )


def measure_start(folder: str, count: int) -> dict[str, Any]:
    """The first start, which leaves what it learned for later ones; for ``run_child``."""
    import mg_llava.data.records.index  # noqa: F401  (imports are no part of it)

    start = time.perf_counter()
    _open(folder, count)
    return {"start_s": time.perf_counter() - start, "file_mb": os.path.getsize(f"{folder}/data.jsonl") / MB}


def measure_reading(folder: str, count: int) -> dict[str, Any]:
    """A later start, an epoch's order, and reading at random in workers; for ``run_child``."""
    import multiprocessing

    from torch.utils.data import DataLoader

    import mg_llava.data.records.index  # noqa: F401  (imports are no part of it)
    from mg_llava.data.samplers import LengthGroupedSampler

    start = time.perf_counter()
    samples = _open(folder, count)
    opened = time.perf_counter()
    sampler = LengthGroupedSampler(_Read(samples), _BATCH, seed=0)
    first = list(islice(sampler, _READS))
    ordered = time.perf_counter()
    loader: DataLoader[int] = DataLoader(
        _Read(samples),  # type: ignore[arg-type]
        batch_size=_BATCH,
        sampler=first,
        num_workers=_WORKERS,
        persistent_workers=True,
        collate_fn=sum,
    )
    pictures = sum(iter(loader))
    assert pictures == len(first), pictures
    workers = [child.pid for child in multiprocessing.active_children() if child.pid]
    own = [_private(process) for process in workers]
    times = []
    for index in first[:2000]:
        begin = time.perf_counter()
        samples.record(index)
        times.append(time.perf_counter() - begin)
    return {
        "later_s": opened - start,
        "order_s": ordered - opened,
        "main_mb": memory_of([os.getpid()])["own"],
        "worker_mb": max(own),
        "sample_ms": float(np.median(times)) * 1e3,
    }


def measure_plain(folder: str) -> dict[str, Any]:
    """All records as a list of dicts; for ``run_child``."""
    before, start = memory_of([os.getpid()])["own"], time.perf_counter()
    with open(f"{folder}/data.jsonl") as file:
        records = [json.loads(line) for line in file]
    seconds = time.perf_counter() - start
    return {"start_s": seconds, "own_mb": memory_of([os.getpid()])["own"] - before, "records": len(records)}


class _Read:
    """Samples whose value is their number of pictures."""

    def __init__(self, samples: Any) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> int:
        return len(self.samples.record(index).images)

    def modality_lengths(self) -> np.ndarray:
        """(M,) int32 characters, in place of tokens."""
        return self.samples.index.sizes[self.samples.positions, 0]


def _open(folder: str, count: int) -> Any:
    from mg_llava.data.records.index import Samples

    samples = Samples(f"{folder}/data.jsonl", cache=f"{folder}/cache")
    assert len(samples) == count
    return samples


def _private(process: int) -> float:
    """Memory that a process shares with no other, MB."""
    with open(f"/proc/{process}/smaps_rollup") as file:
        lines = [line for line in file if line.startswith(("Private_Dirty", "Private_Clean"))]
    return sum(int(line.split()[1]) for line in lines) * 1024 / MB
