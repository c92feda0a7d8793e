"""Evaluation in batches against one question at a time, on the miniature, in the same run."""

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mg_llava.profiling._measure import NANO, make_miniature, print_table, rounded, take_turns
from mg_llava.profiling._miniature import CONFIG, at_root, load_miniature

HELP = "evaluation: samples/s in batches, with batch size 1 beside it, and whether all replies are the same"

Texts = list[str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command line."""
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="trained miniature (default: the newest of demo and grid; without one, its encoders and LLM with "
        "random projectors)",
    )
    parser.add_argument("--config", type=Path, default=CONFIG, help="its config (default: the full model's)")
    parser.add_argument(
        "--pictures", type=int, default=48, help="pictures, seven questions each (default: %(default)s)"
    )
    parser.add_argument("--batch-size", type=int, default=128, help="questions at a time (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="of torch (default: torch's choice)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds; the best of each way counts (default: 2)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, and print a table.

    Returns:
        ``speedup`` of batches over one question at a time with its picture, ``speedup_shared`` over the runner itself
        with batch size 1 (which encodes a picture once for all its questions), ``identical`` (whether the replies of
        all ways are equal), ``samples_per_s`` of each way, and the sizes.

    Raises:
        RuntimeError: The miniature's pictures cannot be made.
    """
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory(prefix="evaluation-") as folder, at_root():
        from mg_llava.data.boxes.store import open_box_store

        predictor, trained = load_miniature(args.config, args.checkpoint)
        data = Path(folder)
        make_miniature(data, heldout=args.pictures)
        benchmark, store = _benchmark(data), open_box_store(data / "heldout_boxes.json")
        ways = {
            "one": partial(_one_by_one, predictor, benchmark, store),
            "runner_1": partial(_runner, predictor, benchmark, store, 1),
            "batched": partial(_runner, predictor, benchmark, store, args.batch_size),
        }
        questions = len(benchmark.questions())
        replies, rates = take_turns(ways, questions, args.rounds)
    identical = replies["one"] == replies["runner_1"] == replies["batched"]
    titles = [
        "one question and its picture at a time",
        *(f"runner, batch size {size} (pictures once)" for size in (1, args.batch_size)),
    ]
    model, threads = "trained" if trained else "random projectors", torch.get_num_threads()
    print(f"{questions} questions, {model}, {threads} threads, best of {args.rounds} rounds\n")
    rows = [(title, rate, rate / rates["one"]) for title, rate in zip(titles, rates.values(), strict=True)]
    print_table([("way", "samples/s", "times"), *rows])
    same = "identical" if identical else "NOT identical"
    print(f"\nreplies are {same}; {len(set(replies['one']))} different ones")
    return {
        "speedup": round(rates["batched"] / rates["one"], 2),
        "speedup_shared": round(rates["batched"] / rates["runner_1"], 2),
        "identical": identical,
        "samples_per_s": rounded(rates),
        "questions": questions,
        "pictures": args.pictures,
        "batch_size": args.batch_size,
        "threads": threads,
        "trained": trained,
    }


def _one_by_one(predictor: Any, benchmark: Any, store: Any) -> Texts:
    """The plain loop: each question opens and encodes its picture."""
    texts = []
    for question in benchmark.questions():
        boxes = store.get(question.box_key)
        texts.append(predictor.predict(question.picture(), question.text, boxes, max_new_tokens=24).text)
    return texts


def _runner(predictor: Any, benchmark: Any, store: Any, batch_size: int) -> Texts:
    from mg_llava.evaluation.box_source import build_box_source
    from mg_llava.evaluation.runner import Asking, run_benchmark

    with tempfile.TemporaryDirectory() as out:
        source = build_box_source("detected", store)
        result = run_benchmark(benchmark, predictor, out, source, Asking(batch_size), model_identity={})
    assert result is not None
    return [sample["text"] for sample in result.samples]


def _benchmark(data: Path) -> Any:
    sys.path.insert(0, str(NANO))
    try:
        import benchmarks
    finally:
        sys.path.remove(str(NANO))
    return benchmarks.NanoKinds(data / "heldout.jsonl")
