"""Evaluate a checkpoint on an MMBench table (dev or test, English or Chinese, circular or not).

Everything else is as in mg-llava evaluate, of which this is the short form for one file.

Examples:
    mg-llava evaluate-mmbench CONFIG.py --checkpoint iter_1000.pth --data MMBench_DEV_EN.tsv
    mg-llava evaluate-mmbench CONFIG.py --checkpoint iter_1000.pth --data MMBench_DEV_EN.tsv --boxes boxes.json
    torchrun --nproc_per_node 8 -m mg_llava evaluate-mmbench CONFIG.py --checkpoint ... --data MMBench_TEST_EN.tsv

Exit status: as of mg-llava evaluate.
"""

import argparse
from pathlib import Path

from mg_llava.evaluation import command


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="config of the training, Hugging Face folder of ours, or hub id")
    parser.add_argument("--data", type=Path, required=True, help="the TSV")
    command.add_arguments(parser)
    return parser.parse_args()


def main() -> int:
    """Evaluate one table."""
    arguments = parse_arguments()
    from mg_llava.evaluation.benchmark import BENCHMARKS

    stem = arguments.data.stem.lower()
    name = stem if stem.startswith("mmbench") and stem in BENCHMARKS.releases else "mmbench_dev_en"
    names = [f"{name}={arguments.data}"]
    arguments.data = arguments.data.parent
    return command.run(arguments, names)
