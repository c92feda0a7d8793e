"""A quick stand-in for ``xtuner train`` and for an evaluation; what it makes depends on leaf, seed, options, stages.

``stub.py train LEAF --work-dir DIR --seed N [--resume FILE] [--cfg-options KEY=VALUE ...]`` writes a checkpoint after
each step, ``stub.py evaluate CONFIG CHECKPOINT OUT`` a ``results.json``.
"""

import argparse
import hashlib
import json
import os
import sys
import time
from pathlib import Path

STEPS = 5


def train(words: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("leaf", type=Path)
    parser.add_argument("--work-dir", type=Path)
    parser.add_argument("--seed")
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--cfg-options", nargs="+", default=[])
    arguments = parser.parse_args(words)
    folder = arguments.work_dir
    settings: dict[str, str] = {}
    exec(arguments.leaf.read_text(), settings)
    if settings.get("fails"):
        sys.exit("something broke")
    before = [Path(text.partition("=")[2]).read_text() for text in arguments.cfg_options if "pretrained" in text]
    others = [text for text in arguments.cfg_options if "pretrained" not in text]
    start, state = 0, hashlib.sha256(repr((settings["name"], arguments.seed, others, before)).encode()).hexdigest()
    if arguments.resume:
        start, state = json.loads(arguments.resume.read_text())
    with Path(os.environ["STUB_CALLS"]).open("a") as calls:
        calls.write(f"{os.getpid()} {folder.name} from {start}\n")
    for step in range(start + 1, STEPS + 1):
        time.sleep(float(os.environ.get("STUB_SECONDS", 0)))
        state = hashlib.sha256(f"{state}{step}".encode()).hexdigest()
        checkpoint = folder / f"iter_{step}.pth"
        checkpoint.write_text(json.dumps([step, state]))
        (folder / "last_checkpoint").write_text(str(checkpoint))
        if step == 2 and os.environ.get("STUB_HOLD", " ") in folder.name:
            time.sleep(600)
        print(f"Iter(train) [ {step}/{STEPS}]  loss: {1 / step:.2f}  ", flush=True)
        if settings.get("stops") == step:
            return  # as a training that ran out of memory, which `xtuner` hides


def evaluate(words: list[str]) -> None:
    config, checkpoint, out = map(Path, words)
    assert config.is_file()
    value = int(json.loads(checkpoint.read_text())[1][:4], 16) / 0xFFFF
    rules = {"exact": {"metrics": {"accuracy": value, "kinds": {"a": value / 2}}}}
    head = {"rule": "exact", "metric": "accuracy", "value": value}
    found = {"benchmarks": {"quiz": {"headline": head, "score": {"rules": rules}}}}
    (out / "results.json").write_text(json.dumps(found))


if __name__ == "__main__":
    {"train": train, "evaluate": evaluate}[sys.argv[1]](sys.argv[2:])
