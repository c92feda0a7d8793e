"""Evaluation in batches against one question at a time, on the miniature, in the same run."""

import argparse
import contextlib
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

HELP = "evaluation: samples/s in batches, with batch size 1 beside it, and whether all replies are the same"

ROOT = Path(__file__).resolve().parents[2]
NANO = ROOT / "data" / "nano"
CONFIG = ROOT / "configs" / "mg_llava_nano_instruct.py"
_CHECKPOINTS = ("demo", "nano")

Texts = list[str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command line."""
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="trained miniature (default: the newest of work_dirs/demo and work_dirs/nano; where there is none, its "
        "encoders and LLM with random projectors)",
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
    with tempfile.TemporaryDirectory(prefix="evaluation-") as folder, _at_root():
        from mg_llava.data.boxes.store import open_box_store

        predictor, trained = _load(args.config, args.checkpoint)
        data = _make_data(Path(folder), args.pictures)
        benchmark, store = _benchmark(data), open_box_store(data / "heldout_boxes.json")
        ways: dict[str, Callable[[], Texts]] = {
            "one": lambda: _one_by_one(predictor, benchmark, store),
            "runner_1": lambda: _runner(predictor, benchmark, store, 1),
            "batched": lambda: _runner(predictor, benchmark, store, args.batch_size),
        }
        replies, rates = _measure(ways, args.rounds)
    identical = replies["one"] == replies["runner_1"] == replies["batched"]
    speedup, shared = rates["batched"] / rates["one"], rates["batched"] / rates["runner_1"]
    questions = len(replies["one"])
    model = "trained" if trained else "random projectors"
    print(
        f"{questions} questions about {args.pictures} pictures, {model}, {torch.get_num_threads()} threads, best of "
        f"{args.rounds} rounds\n"
    )
    titles = {
        "one": "one question and its picture at a time",
        "runner_1": "runner, batch size 1 (pictures once)",
        "batched": f"runner, batch size {args.batch_size}",
    }
    print(f"{'way':<42}{'samples/s':>10}{'times':>8}")
    for name, title in titles.items():
        print(f"{title:<42}{rates[name]:>10.1f}{rates[name] / rates['one']:>8.2f}")
    print(f"\nreplies are {'identical' if identical else 'DIFFERENT'}; {len(set(replies['one']))} different ones")
    return {
        "speedup": round(speedup, 2),
        "speedup_shared": round(shared, 2),
        "identical": identical,
        "samples_per_s": {name: round(rate, 1) for name, rate in rates.items()},
        "questions": questions,
        "pictures": args.pictures,
        "batch_size": args.batch_size,
        "threads": torch.get_num_threads(),
        "trained": trained,
    }


def _measure(ways: dict[str, Callable[[], Texts]], rounds: int) -> tuple[dict[str, Texts], dict[str, float]]:
    """Replies and best rate of each way; the ways take turns, so that a busy machine slows all of them."""
    replies: dict[str, Texts] = {}
    rates = dict.fromkeys(ways, 0.0)
    for _ in range(rounds):
        for name, way in ways.items():
            begin = time.perf_counter()
            found = way()
            rates[name] = max(rates[name], len(found) / (time.perf_counter() - begin))
            if replies.setdefault(name, found) != found:
                raise RuntimeError(f"{name}: two rounds gave different replies")
    return replies, rates


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


def _load(config: Path, checkpoint: Path | None) -> tuple[Any, bool]:
    """The predictor, and whether it was trained."""
    from mg_llava.inference import Predictor
    from mg_llava.registry import MODELS

    found = checkpoint or _newest()
    if found is not None:
        # one that was found may be of an older miniature
        with contextlib.nullcontext() if checkpoint else contextlib.suppress(ValueError):
            return Predictor.from_pretrained(config, found, "cpu"), True
    parsed = Config.fromfile(str(config))
    torch.manual_seed(0)
    model = MODELS.build({**parsed.model, "pretrained_pth": None})
    return Predictor(model, parsed.tokenizer, parsed.prompt_template, parsed.picture_processor), False


def _newest() -> Path | None:
    found = [
        path
        for name in _CHECKPOINTS
        for path in (ROOT / "work_dirs" / name).glob("full_seed*/stage2/iter_*.pth")
        if path.is_file()
    ]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def _make_data(folder: Path, pictures: int) -> Path:
    command: Sequence[str] = [sys.executable, str(NANO / "make_data.py"), "--out", str(folder)]
    sizes = ["--stage1", "0", "--stage2", "0", "--heldout", str(pictures)]
    done = subprocess.run([*command, *sizes], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"data/nano/make_data.py failed: {done.stderr[-2000:]}")
    return folder


def _benchmark(data: Path) -> Any:
    sys.path.insert(0, str(NANO))
    try:
        import benchmarks
    finally:
        sys.path.remove(str(NANO))
    return benchmarks.NanoKinds(data / "heldout.jsonl")


@contextlib.contextmanager
def _at_root() -> Iterator[None]:
    """The miniature's configs name files relative to the repository; its logs are not part of the table."""
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        os.chdir(before)
