"""The chat server over HTTP: many clients at once against one at a time, on the miniature, in the same run."""

import argparse
import base64
import json
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

import torch

from mg_llava.profiling._measure import make_miniature, print_table, rounded, run_child
from mg_llava.profiling._miniature import CONFIG, at_root, load_miniature

HELP = "chat server: answers/s over HTTP, many clients at once beside one at a time, and whether answers are the same"

WORKLOADS = ("descriptions", "questions", "questions about one picture")

MOST_TOKENS = 64
"""New ids of an answer, at most."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command line."""
    parser.add_argument("--checkpoint", type=Path, help="trained miniature (default: as for eval)")
    parser.add_argument("--config", type=Path, default=CONFIG, help="its config (default: the full model's)")
    parser.add_argument(
        "--questions", type=int, default=128, help="pictures, described and asked about (default: %(default)s)"
    )
    parser.add_argument("--clients", type=int, default=32, help="connections at once (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="of the server (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="of torch (default: torch's choice)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds; the best of each way counts (default: 2)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, and print a table.

    Returns:
        ``speedup`` of all clients at once over one, for descriptions of pictures, and ``speedup_short`` for short
        questions, whose time is that of the encoders, and ``speedup_shared`` for those about one picture, which is
        encoded and read once for a batch; all in answers a second. ``identical`` tells whether the answers are;
        ``answers_per_s``, and ``cpu_ms`` that the server took for an answer, are of each way.

    Raises:
        RuntimeError: The miniature's pictures cannot be made, or a client failed.
    """
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory(prefix="serving-") as folder, at_root():
        predictor, trained = load_miniature(args.config, args.checkpoint)
        make_miniature(Path(folder), heldout=args.questions)
        files = {name: _write_bodies(Path(folder), name, args.questions) for name in WORKLOADS}
        with _serving(predictor, args.batch_size) as port:
            ways = [
                Way(f"{name}, {n} at once", port, str(files[name]), n) for name in files for n in (1, args.clients)
            ]
            _measure(ways, args.rounds)
    model, threads = "trained" if trained else "random projectors", torch.get_num_threads()
    print(f"{args.questions} of each, {model}, {threads} threads, best of {args.rounds} rounds\n")
    pairs = list(zip(ways[::2], ways[1::2], strict=True))
    rows = [(way.title, way.rate, way.rate / alone.rate, way.cpu) for alone, many in pairs for way in (alone, many)]
    print_table([("way", "answers/s", "times", "CPU ms"), *rows])
    identical = all(alone.texts == many.texts for alone, many in pairs)
    print(f"\nanswers are {'identical' if identical else 'NOT identical'}")
    gains = [round(many.rate / alone.rate, 2) for alone, many in pairs]
    return {
        "speedup": gains[0],
        "speedup_short": gains[1],
        "speedup_shared": gains[2],
        "identical": identical,
        "answers_per_s": rounded({way.title: way.rate for way in ways}),
        "cpu_ms": rounded({way.title: way.cpu for way in ways}),
        "questions": args.questions,
        "batch_size": args.batch_size,
        "threads": threads,
        "trained": trained,
    }


@dataclass
class Way:
    """One way of asking, with the best of what it gave: answers a second, and CPU milliseconds of an answer."""

    title: str
    port: int
    file: str
    clients: int
    texts: list[str] = field(default_factory=list)
    rate: float = 0.0
    cpu: float = inf

    def measure(self) -> None:
        """Ask all; the seconds are those of the clients, in a process of their own."""
        before = time.process_time()
        found = run_child("mg_llava.profiling._clients.ask", self.port, self.file, self.clients)
        spent = time.process_time() - before
        self.texts = found["texts"]
        self.rate = max(self.rate, len(self.texts) / found["seconds"])
        self.cpu = min(self.cpu, 1000 * spent / len(self.texts))


def _measure(ways: Sequence[Way], rounds: int) -> None:
    """Measure in turns, so that a busy machine slows all of them; the first round warms up."""
    for way in ways[1::2]:
        way.measure()
        way.rate, way.cpu = 0.0, inf
    for _ in range(rounds):
        for way in ways:
            way.measure()


@contextmanager
def _serving(predictor: Any, batch_size: int) -> Iterator[int]:
    """The port of a server, which runs in a thread."""
    from mg_llava.inference.serving.server import ChatServer

    server = ChatServer(predictor, port=0, batch_size=batch_size)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server.port
    finally:
        server.stop()
        thread.join()


def _write_bodies(data: Path, workload: str, count: int) -> Path:
    """Bodies of chat completions: descriptions of pictures, or a question of each kind in turn."""
    lines = [json.loads(line) for line in (data / "heldout.jsonl").read_text().splitlines()]
    boxes = {str(one["id"]): one["boxes"] for one in json.loads((data / "heldout_boxes.json").read_text())}
    by_picture: dict[str, list[dict[str, str]]] = {}
    for line in lines:
        by_picture.setdefault(line["image"], []).append(line)
    bodies = []
    shown = list(by_picture.items())[:count]
    for number, (image, asked) in enumerate(shown[:1] * len(shown) if workload == WORKLOADS[2] else shown):
        line = asked[number % len(asked)]
        url = "data:image/jpeg;base64," + base64.b64encode((data / "images" / image).read_bytes()).decode()
        picture = {"type": "image_url", "image_url": {"url": url, "boxes": boxes[line["picture"]]}}
        text = "Describe the picture." if workload == "descriptions" else line["question"]
        content = [picture, {"type": "text", "text": text}]
        bodies.append({"messages": [{"role": "user", "content": content}], "max_tokens": MOST_TOKENS})
    file = data / f"{workload}.json"
    file.write_text(json.dumps(bodies))
    return file
